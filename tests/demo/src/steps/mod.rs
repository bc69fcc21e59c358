//! The demo's story, step by step. Each step asserts what it shows, by reading objects, disks and processes.

mod build;

use anyhow::Result;

/// Runs the demo.
pub fn run_all() -> Result<()> {
    let stage = build::run()?;
    std::thread::sleep(std::time::Duration::from_secs(2));
    for vm in build::VMS {
        for f in stage.journals(vm)? {
            println!("{vm} {f:?}");
        }
    }
    println!("{:?}", crate::world::nodes::press(&stage.layout, "status", "n1")?);
    crate::world::nodes::press(&stage.layout, "off", "n1")?;
    println!("{:?}", crate::world::nodes::press(&stage.layout, "status", "n1")?);
    Ok(())
}
