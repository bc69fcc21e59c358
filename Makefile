# Everything that a newcomer needs. Each target does the set-up that it needs, and says so.
#   make demo    three nodes on this machine: detection, fencing, recovery, migration, evacuation, shown in a minute
#   make test    all tests: unit, simulation, wire, contract
#   make cluster       a real Kubernetes cluster on this machine; prints its KUBECONFIG (root, Go)
#   make cluster-down  ends it; nothing is left behind
#   make test-cluster  tests of that cluster
#   make lint    formatting, clippy, licences of the dependencies
#   make bench   detection time over 50 failures, false verdicts under load
#   make soak    kill -9 halfway through migrations; the simulation for as many seeds as you like (SEEDS=100000)
SHELL := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

SEEDS ?= 20000
CRASHES ?= 3
NODES ?= 3
# Where cargo-deny is installed by CI: outside target/, so that `cargo clean` does not throw it away.
TOOLS ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/somersault-tools
CARGO_DENY_VERSION := 0.20.2
PATH := $(TOOLS)/bin:$(HOME)/.cargo/bin:$(PATH)
export PATH

# What `apt-get` is asked for, by the command that tells whether it is there already.
NEED_BUILD := cc:gcc cc:libc6-dev
NEED_DEMO := $(NEED_BUILD) ip:iproute2 unshare:util-linux nsenter:util-linux mkfs.ext4:e2fsprogs debugfs:e2fsprogs

NEED_CLUSTER := $(NEED_DEMO) mkfs.xfs:xfsprogs nft:nftables containerd:containerd runc:runc
# Kept across sudo: where Go is, and where the cluster's programs are kept.
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo --preserve-env=PATH,HOME,XDG_CACHE_HOME)

.PHONY: help demo test test-cluster lint bench soak cluster cluster-down setup-cluster toolchain setup-build setup-demo

help:
	@sed -n '2,10s/^# \{0,1\}//p' Makefile

demo: setup-demo
	@echo "== building the coordinator, the agent, the command line and the demo (release)"
	cargo build --release --locked -p somersault-coordinator -p somersault-agent -p kubectl-somersault -p somersault-demo
	@target/release/somersault-demo

test: setup-demo
	cargo test --workspace --locked --exclude somersault-test-cluster

# Builds Kubernetes from source the first time (5 to 15 minutes), so it is not part of `make test` yet.
test-cluster: setup-cluster
	cargo test --locked -p somersault-test-cluster

# Stays up until `make cluster-down`. NODES=5 for more nodes.
cluster: setup-cluster
	@cargo build --locked -p somersault-test-cluster
	@$(AS_ROOT) target/debug/somersault-cluster up --nodes $(NODES)

cluster-down:
	@cargo build --quiet --locked -p somersault-test-cluster
	@$(AS_ROOT) target/debug/somersault-cluster down

lint: setup-build
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	@if command -v cargo-deny > /dev/null; then \
	  cargo deny --workspace check licenses bans; \
	elif [ -n "$(CI)" ]; then \
	  echo "== installing cargo-deny $(CARGO_DENY_VERSION) into $(TOOLS), once"; \
	  cargo install --quiet --locked --root "$(TOOLS)" cargo-deny@$(CARGO_DENY_VERSION) && cargo deny --workspace check licenses bans; \
	else \
	  echo "== licences not checked: cargo-deny is missing. Get it with: cargo install --locked --root $(TOOLS) cargo-deny@$(CARGO_DENY_VERSION)"; \
	fi

bench: setup-demo
	@echo "== building the coordinator, the agent and the bench (release)"
	cargo build --release --locked -p somersault-coordinator -p somersault-agent -p somersault-bench
	@target/release/somersault-bench detection

soak: setup-demo
	cargo build --release --locked -p somersault-coordinator -p somersault-agent -p kubectl-somersault -p somersault-demo
	@echo "== a migration whose pulling agent and coordinator are killed halfway, $(CRASHES) times"
	@for round in $$(seq $(CRASHES)); do target/release/somersault-demo crash || exit 1; done
	@echo "== $(SEEDS) seeded worlds; a seed that fails is printed with the command that repeats it"
	cargo run --release --locked -p somersault-sim -- --seeds $(SEEDS)

# The pinned toolchain, with the parts that rust-toolchain.toml names.
toolchain:
	@command -v cargo > /dev/null || { \
	  echo "cargo is missing. Install Rust with rustup: https://rustup.rs (or: apt-get install rustup)"; exit 1; }
	@if command -v rustup > /dev/null; then rustup show active-toolchain > /dev/null 2>&1 || { \
	  echo "== installing the toolchain of rust-toolchain.toml"; rustup toolchain install; }; fi

setup-build: toolchain
	@$(call apt_missing,$(NEED_BUILD))

setup-demo: toolchain
	@$(call apt_missing,$(NEED_DEMO))

setup-cluster: toolchain
	@command -v go > /dev/null || { echo "Go is missing, from which Kubernetes is built: https://go.dev/dl (1.26 or later)"; exit 1; }
	@$(call apt_missing,$(NEED_CLUSTER))
	@for folder in /usr/lib/cni /opt/cni/bin /usr/libexec/cni; do [ -e $$folder/ptp ] && exit 0; done; \
	  $(call apt_missing,ptp:containernetworking-plugins)

# Installs the packages whose commands are missing, and nothing when none is.
define apt_missing
	PATH=$$PATH:/usr/sbin:/sbin; missing=; \
	for need in $(1); do command -v $${need%%:*} > /dev/null || missing="$$missing $${need##*:}"; done; \
	[ -z "$$missing" ] && exit 0; \
	as_root=; [ "$$(id -u)" = 0 ] || as_root=sudo; \
	command -v apt-get > /dev/null && { [ -z "$$as_root" ] || command -v sudo > /dev/null; } || { \
	  echo "missing:$$missing. Install these packages and run make again."; exit 1; }; \
	echo "== installing$$missing"; \
	$$as_root apt-get update -q && DEBIAN_FRONTEND=noninteractive $$as_root apt-get install -y -q --no-install-recommends $$missing
endef
