# Everything that a newcomer needs. Each target does the set-up that it needs, and says so.
#   make demo    three nodes on this machine: detection, fencing, recovery, migration, evacuation, shown in a minute
#   make test    all tests: unit, simulation, wire, contract; with root and Go also those on a Kubernetes cluster (WITHOUT_CLUSTER=1: not those)
#   make demo-cluster  the main job on a real Kubernetes cluster: installed, a plug pulled, each VM handled (root, Go)
#   make try           the same cluster with VMs, left to you until Ctrl-C
#   make cluster       a real Kubernetes cluster on this machine; prints its KUBECONFIG (root, Go)
#   make cluster-down  ends it; nothing is left behind
#   make test-cluster  every test on such clusters, slow ones included; half an hour after the builds
#   make image         the image of agent, coordinator and command line: target/image/somersault.tar
#   make image-fence   the image of the fence runner, with the fence agents: target/image/fence-runner.tar
#   make image-smart   the image of the agent with smartctl: target/image/agent-smart.tar
#   make lint    formatting, clippy, licences of the dependencies
#   make bench   detection time over 50 failures, false verdicts under load; a large cluster's cost (root, Go); copies of
#                volumes beside rsync, nbdcopy, qemu-img, tar and socat (root)
#   make soak    kill -9 halfway through migrations; the simulation for as many seeds as you like (SEEDS=100000); each
#                failure at each phase of a migration on a cluster (root, Go)
SHELL := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

SEEDS ?= 20000
CRASHES ?= 3
NODES ?= 3
# Where cargo-deny is installed by CI: outside target/, so that `cargo clean` does not throw it away.
TOOLS ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/somersault-tools
# Tests that need a cluster, in the order in which they run.
CLUSTER_TESTS := life crds behaviour api cli scenarios
CARGO_DENY_VERSION := 0.20.2
PATH := $(TOOLS)/bin:$(HOME)/.cargo/bin:$(PATH)
export PATH

# What `apt-get` is asked for, by the command that tells whether it is there already.
NEED_BUILD := cc:gcc cc:libc6-dev
NEED_DEMO := $(NEED_BUILD) ip:iproute2 ss:iproute2 unshare:util-linux nsenter:util-linux mkfs.ext4:e2fsprogs debugfs:e2fsprogs

NEED_BENCH := $(NEED_DEMO) mkfs.xfs:xfsprogs losetup:mount fincore:util-linux-extra
# Whom copies of volumes are compared with. Who cannot be installed is left out.
NEED_PEERS := rsync:rsync nbdcopy:libnbd-bin nbdkit:nbdkit qemu-img:qemu-utils socat:socat tar:tar
NEED_CLUSTER := $(NEED_DEMO) mkfs.xfs:xfsprogs nft:nftables containerd:containerd runc:runc
# The fence agents that the tests run as they are (`life`); the fence runner's image brings its own.
NEED_TEST_CLUSTER := $(NEED_CLUSTER) fence_redfish:fence-agents
NEED_IMAGE := $(NEED_BUILD)
NEED_IMAGE_FENCE := $(NEED_IMAGE) unshare:util-linux tar:tar
VERSION := $(shell sed -n '/^\[workspace.package\]/,/^$$/s/^version = "\(.*\)"/\1/p' Cargo.toml)
IMAGE := docker.io/somersault/somersault:$(VERSION)
IMAGE_SMART := docker.io/somersault/agent-smart:$(VERSION)
IMAGE_FENCE := docker.io/somersault/fence-runner:$(VERSION)
FENCE_PACKAGES := fence-agents ca-certificates coreutils dash gnutls-bin ipmitool openssh-client python3-minimal sed snmp
# This machine's own: nothing is compiled for another one, so no other target of Rust is needed.
HOST = $(shell rustc -vV | sed -n 's/^host: //p')
# Kept across sudo: where Go is, where the cluster's programs are kept, and which cluster is meant.
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo --preserve-env=PATH,HOME,XDG_CACHE_HOME,SOMERSAULT_TEST_CLUSTER)

.PHONY: help demo-cluster try image image-fence image-smart image-test image-binaries setup-image setup-image-fence demo test test-on-cluster test-cluster lint bench soak soak-on-cluster cluster cluster-down setup-cluster setup-test-cluster setup-promtool toolchain setup-build setup-demo setup-alertmanager setup-bench

help:
	@sed -n '2,16s/^# \{0,1\}//p' Makefile

demo: setup-demo
	@echo "== building the coordinator, the agent, the command line and the demo (release)"
	cargo build --release --locked -p somersault-coordinator -p somersault-agent -p kubectl-somersault -p somersault-demo
	@target/release/somersault-demo

test: setup-demo setup-promtool setup-alertmanager
	cargo test --workspace --locked
	@if [ -n "$(WITHOUT_CLUSTER)" ]; then \
	  echo "== left out, as WITHOUT_CLUSTER asks: the tests on a Kubernetes cluster (make test-on-cluster)"; \
	elif [ "$$(id -u)" = 0 ] && command -v go > /dev/null; then \
	  $(MAKE) --no-print-directory test-on-cluster; \
	elif [ -n "$$CI" ]; then \
	  echo "the tests on a cluster must run in CI; they need root and Go"; exit 1; \
	else \
	  echo "== SKIPPED: the tests on a Kubernetes cluster, which need root and Go (https://go.dev/dl)"; \
	fi

# Each on a cluster of its own, one after the other. The scenarios that take minutes are left to `make test-cluster`.
test-on-cluster: setup-test-cluster image-test
	cargo test --workspace --locked --no-fail-fast $(foreach test,$(filter-out behaviour,$(CLUSTER_TESTS)),--test $(test)) -- --test-threads 1

test-cluster: setup-test-cluster image-test
	cargo test --workspace --locked --no-fail-fast $(foreach test,$(CLUSTER_TESTS),--test $(test)) -- \
	  --test-threads 1 --include-ignored

demo-cluster: setup-cluster image image-fence
	@echo "== building the cluster, the stand-in for KubeVirt, the command line and the story"
	cargo build --locked --workspace
	@$(AS_ROOT) target/debug/somersault-demo-cluster

try: setup-cluster image image-fence
	@echo "== building the cluster, the stand-in for KubeVirt and the command line"
	cargo build --locked --workspace
	@$(AS_ROOT) target/debug/somersault-demo-cluster --stay

# Stays up until `make cluster-down`. NODES=5 for more nodes.
cluster: setup-cluster
	@cargo build --locked -p somersault-test-cluster
	@$(AS_ROOT) target/debug/somersault-cluster up --nodes $(NODES)

cluster-down:
	@cargo build --quiet --locked -p somersault-test-cluster
	@$(AS_ROOT) target/debug/somersault-cluster down

image: setup-image image-binaries
	@rm -rf target/image/somersault && mkdir -p target/image/somersault/usr/local/bin
	@install -m 0555 target/image/build/$(HOST)/release/{somersault-coordinator,somersault-agent,kubectl-somersault} target/image/somersault/usr/local/bin/
	@cp -r deploy/image/etc target/image/somersault/etc && chmod -R u=rwX,go=rX target/image/somersault
	@deploy/image/build.sh $(IMAGE) deploy/image/Dockerfile target/image/somersault target/image/somersault.tar

image-fence: setup-image-fence image-smart image-binaries
	@echo "== putting the fence agents together from Debian's packages"
	@$(call fence_image,target/image,target/image/build/$(HOST)/release/somersault-coordinator)

image-smart: setup-image-fence image-binaries
	@echo "== putting smartctl together from Debian's packages"
	@deploy/image/debian-rootfs.sh target/image/agent-smart smartmontools
	@install -D -m 0555 -t target/image/agent-smart/usr/local/bin target/image/build/$(HOST)/release/somersault-agent
	@install -m 0644 deploy/image/etc/* target/image/agent-smart/etc/
	@deploy/image/build.sh $(IMAGE_SMART) deploy/image/agent-smart.Dockerfile target/image/agent-smart target/image/agent-smart.tar

# The same images out of the debug build, for tests: what `cargo test` has built is not built a second time.
image-test: setup-image-fence
	@echo "== building what runs on the cluster, and images of it"
	cargo build --workspace --locked
	@tests/e2e/debug-rootfs.sh target/image-test/somersault target/debug/{somersault-coordinator,somersault-agent,kubectl-somersault}
	@deploy/image/build.sh $(IMAGE) deploy/image/Dockerfile target/image-test/somersault target/image-test/somersault.tar
	@$(call fence_image,target/image-test,target/image-test/somersault/usr/local/bin/somersault-coordinator)

# Static: they need no file of an image, and the resolver of glibc (2.34 or later) has files and DNS built in.
# The same bytes whoever builds them where: no paths of this machine, no build ids. (--target keeps these flags from
# what runs during the build.)
image-binaries: export RUSTFLAGS := -C target-feature=+crt-static -C link-arg=-Wl,--build-id=none \
  --remap-path-prefix=$(CURDIR)=/somersault --remap-path-prefix=$(or $(CARGO_HOME),$(HOME)/.cargo)=/cargo
image-binaries: export CFLAGS := -ffile-prefix-map=$(CURDIR)=/somersault -ffile-prefix-map=$(or $(CARGO_HOME),$(HOME)/.cargo)=/cargo
image-binaries: export CARGO_PROFILE_RELEASE_STRIP := symbols
image-binaries: toolchain
	@echo "== building agent, coordinator and command line (release, static; six minutes on two idle cores the first time)"
	cargo build --release --locked --target $(HOST) --target-dir target/image/build -p somersault-coordinator -p somersault-agent -p kubectl-somersault

lint: setup-build
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	@# Tests that need a cluster are none of all targets.
	cargo clippy --workspace --locked $(foreach test,$(CLUSTER_TESTS),--test $(test)) -- -D warnings
	@if command -v cargo-deny > /dev/null; then \
	  cargo deny --workspace check licenses bans; \
	elif [ -n "$(CI)" ]; then \
	  echo "== installing cargo-deny $(CARGO_DENY_VERSION) into $(TOOLS), once"; \
	  cargo install --quiet --locked --root "$(TOOLS)" cargo-deny@$(CARGO_DENY_VERSION) && cargo deny --workspace check licenses bans; \
	else \
	  echo "== licences not checked: cargo-deny is missing. Get it with: cargo install --locked --root $(TOOLS) cargo-deny@$(CARGO_DENY_VERSION)"; \
	fi

bench: setup-bench
	@echo "== building the coordinator, the agent, the test cluster and the bench (release)"
	cargo build --release --locked -p somersault-coordinator -p somersault-agent -p somersault-test-cluster
	@# By itself: only the bench has an engine without encryption, to measure what that costs.
	cargo build --release --locked -p somersault-bench --features plaintext
	@target/release/somersault-bench detection
	@echo "== a thousand nodes and ten thousand VMs as objects of a real API server (ten minutes; the first time builds it)"
	@if [ -z "$(AS_ROOT)" ] || command -v sudo > /dev/null; then $(AS_ROOT) target/release/somersault-bench scale; \
	  else echo "SKIPPED the fleet at scale: it needs root, and there is no sudo"; fi
	@echo "== copies of volumes, ours and other programs', on the same bytes (half an hour)"
	@if [ -z "$(AS_ROOT)" ] || command -v sudo > /dev/null; then $(AS_ROOT) target/release/somersault-bench transfer; \
	  else echo "SKIPPED the copies of volumes: they need root, and there is no sudo"; fi
	@echo "== what a VM is down for: 4 GiB copied cold, and the last copy after a first one and 1 % of change (a minute)"
	cargo run --release --locked -p somersault-agent --example copy -- --size-mib 4096 --alone

soak: setup-demo
	cargo build --release --locked -p somersault-coordinator -p somersault-agent -p kubectl-somersault -p somersault-demo
	@echo "== a migration whose pulling agent and coordinator are killed halfway, $(CRASHES) times"
	@for round in $$(seq $(CRASHES)); do target/release/somersault-demo crash || exit 1; done
	@echo "== $(SEEDS) seeded worlds; a seed that fails is printed with the command that repeats it"
	cargo run --release --locked -p somersault-sim -- --seeds $(SEEDS)
	@if [ "$$(id -u)" = 0 ] && command -v go > /dev/null; then $(MAKE) --no-print-directory soak-on-cluster; \
	  else echo "SKIPPED each failure at each phase of a migration on a Kubernetes cluster: it needs root and Go"; fi

# Forty minutes where nothing else runs.
soak-on-cluster: setup-cluster image-test
	SOMERSAULT_SOAK=1 cargo test --workspace --locked --test scenarios -- --include-ignored migration_interrupted_everywhere

# The pinned toolchain, with the parts that rust-toolchain.toml names.
toolchain:
	@command -v cargo > /dev/null || { \
	  echo "cargo is missing. Install Rust with rustup: https://rustup.rs (or: apt-get install rustup)"; exit 1; }
	@if command -v rustup > /dev/null; then rustup show active-toolchain > /dev/null 2>&1 || { \
	  echo "== installing the toolchain of rust-toolchain.toml"; rustup toolchain install; }; fi

setup-build: toolchain
	@$(call apt_missing,$(NEED_BUILD))

# buildah, unless one of the three is there; of docker, the daemon counts.
setup-image: setup-build
	@command -v buildah > /dev/null || command -v podman > /dev/null || docker info > /dev/null 2>&1 || { \
	  $(call apt_missing,$(NEED_IMAGE) buildah:buildah); }

setup-image-fence: setup-image
	@$(call apt_missing,$(NEED_IMAGE_FENCE))

setup-demo: toolchain
	@$(call apt_missing,$(NEED_DEMO))

# What alert rules are read by, and what our alerts are sent to. Debian's packages would start a service on this machine: only the
# programs are taken out of them. One that cannot be had is told of, and its tests are skipped.
setup-promtool:
	@$(call from_debian,promtool,prometheus,alert rules are not read by Prometheus)

setup-alertmanager:
	@$(call from_debian,prometheus-alertmanager,prometheus-alertmanager,alerts are sent to no real Alertmanager)

setup-bench: toolchain
	@$(call apt_missing,$(NEED_BENCH))
	@$(foreach peer,$(NEED_PEERS),( $(call apt_missing,$(peer)) ) || echo "== left out of the bench: $(peer)";) true

setup-cluster: toolchain
	@command -v go > /dev/null || { echo "Go is missing, from which Kubernetes is built: https://go.dev/dl (1.26 or later)"; exit 1; }
	@$(call apt_missing,$(NEED_CLUSTER))
	@for folder in /usr/lib/cni /opt/cni/bin /usr/libexec/cni; do [ -e $$folder/ptp ] && exit 0; done; \
	  $(call apt_missing,ptp:containernetworking-plugins)

setup-test-cluster: setup-cluster
	@$(call apt_missing,$(NEED_TEST_CLUSTER))

# The fence runner's image and archive below a folder, with this coordinator in it.
define fence_image
	deploy/image/debian-rootfs.sh $(1)/fence-runner $(FENCE_PACKAGES) && \
	install -D -m 0555 -t $(1)/fence-runner/usr/local/bin $(2) && \
	install -m 0644 deploy/image/etc/* $(1)/fence-runner/etc/ && \
	deploy/image/build.sh $(IMAGE_FENCE) deploy/image/fence-runner.Dockerfile $(1)/fence-runner $(1)/fence-runner.tar
endef

# Installs the packages whose commands are missing, and nothing when none is.
# A program out of a package of Debian's, once; what is not tested without it.
define from_debian
	command -v $(1) > /dev/null || { echo "== fetching $(1) into $(TOOLS)/bin, once"; folder=$$(mktemp -d) && cd $$folder && \
	  apt-get download -q $(2) > /dev/null && dpkg -x $(2)_*.deb . && install -D -m 0755 -t "$(TOOLS)/bin" usr/bin/$(1); \
	  rm -rf $$folder; command -v $(1) > /dev/null || echo "== not had: $(3) (Debian: $(2))"; }
endef

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
