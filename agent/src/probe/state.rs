//! `/sys/block/<disk>/device`: what the kernel thinks of a disk; `/sys/block/<array>/md`: whether an array is whole.

use std::path::Path;

use somersault_agent_core::health::DeviceState;

use super::read_bounded;

/// Whether the kernel gives it requests. SCSI and `NVMe` say so, other drivers do not.
pub fn device(sys_root: &Path, disk: &str) -> DeviceState {
    let state = read_bounded(&sys_root.join("class/block").join(disk).join("device/state"));
    match state.unwrap_or_default().trim() {
        // SCSI: given up by its error handling, or by a person.
        "offline" | "transport-offline" => DeviceState::Offline,
        "dead" => DeviceState::Dead,
        _ => DeviceState::Usable,
    }
}

/// Failed requests that the SCSI layer has counted, which it writes as `0x…`.
pub fn io_errors(sys_root: &Path, disk: &str) -> Option<u64> {
    let count = read_bounded(&sys_root.join("class/block").join(disk).join("device/ioerr_cnt")).ok()?;
    u64::from_str_radix(count.trim().strip_prefix("0x")?, 16).ok()
}

/// Whether an array lacks at least one disk.
pub fn is_degraded(sys_root: &Path, array: &str) -> bool {
    let missing = read_bounded(&sys_root.join("class/block").join(array).join("md/degraded"));
    missing.is_ok_and(|missing| missing.trim().parse::<u64>().is_ok_and(|count| count > 0))
}
