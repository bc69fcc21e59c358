//! Who is where: names, and which node runs which VM.

/// Namespaces that the VMs are in.
pub const TENANTS: u32 = 10;

/// How large everything is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Nodes; at least two.
    pub nodes: u32,
    /// VMs.
    pub vms: u32,
    /// So many of them are on the node that dies, the others are spread evenly.
    pub doomed: u32,
}

/// A VM, by its number from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vm(pub u32);

impl Plan {
    /// Every node, by its number from 0.
    pub fn nodes(self) -> impl Iterator<Item = u32> {
        0..self.nodes
    }

    /// Every VM.
    pub fn vms(self) -> impl Iterator<Item = Vm> {
        (0..self.vms).map(Vm)
    }

    /// The node that a VM runs on: 0, the one that dies, or another one.
    pub fn node_of(self, Vm(number): Vm) -> u32 {
        if number < self.doomed { 0 } else { self.elsewhere(Vm(number)) }
    }

    /// Another node than the one that dies.
    pub fn elsewhere(self, Vm(number): Vm) -> u32 {
        1 + number % (self.nodes - 1)
    }
}

/// The node that dies.
pub fn doomed_node() -> String {
    node_name(0)
}

/// A node's name.
pub fn node_name(number: u32) -> String {
    format!("node-{number:05}")
}

/// A node's boot.
pub fn boot_id(node: u32) -> String {
    format!("5d3c1f60-0b6e-4c55-9a3e-{node:012x}")
}

/// A tenant's namespace.
pub fn tenant(number: u32) -> String {
    format!("tenant-{number:02}")
}

impl Vm {
    /// Its namespace.
    pub fn namespace(self) -> String {
        tenant(self.0 % TENANTS)
    }

    /// Its name, and its instance's.
    pub fn name(self) -> String {
        format!("vm-{:05}", self.0)
    }

    /// Its system disk's claim.
    pub fn claim(self) -> String {
        format!("{}-root", self.name())
    }

    /// Its system disk's volume.
    pub fn volume(self) -> String {
        format!("pvc-7e0d62a4-5a0c-4f0b-8d3e-{:012x}", self.0)
    }

    /// The volume's attachment, in the `life`-th life of the VM.
    pub fn attachment(self, life: u32) -> String {
        format!("csi-{:056x}{life:08x}", self.0)
    }

    /// Its launcher, in the `life`-th life.
    pub fn launcher(self, life: u32) -> String {
        format!("virt-launcher-{}-{life:05}", self.name())
    }

    /// The VM of this launcher.
    pub fn of_launcher(name: &str) -> Option<Self> {
        name.strip_prefix("virt-launcher-vm-")?.split('-').next()?.parse().ok().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_doomed_node_has_its_vms_and_no_other() {
        let plan = Plan { nodes: 7, vms: 100, doomed: 20 };
        let on = |node| plan.vms().filter(|vm| plan.node_of(*vm) == node).count();
        assert_eq!(on(0), 20);
        assert!((1..7).all(|node| (13..=14).contains(&on(node))), "{:?}", (1..7).map(on).collect::<Vec<_>>());
        assert!(plan.vms().all(|vm| plan.elsewhere(vm) != 0));
    }

    #[test]
    fn a_launcher_tells_its_vm() {
        assert_eq!(Vm::of_launcher(&Vm(123).launcher(0)), Some(Vm(123)));
        assert_eq!(Vm::of_launcher("virt-launcher-else-1"), None);
    }
}
