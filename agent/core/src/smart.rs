//! Reads a report of `smartctl --json`, whatever shape it comes in.
//!
//! Nothing here is an error: what cannot be read is a state of its own, so that it can never be mistaken for a
//! healthy disk, nor for a broken one. Keys and exit bits are those of smartctl(8); bit 0 = command line or
//! internal, 1 = open failed, 2 = a command failed, 3 = disk failing, 4 = pre-fail attribute below threshold.

use serde::Deserialize;
use serde_json::Value;

/// What one run of smartctl told.
#[derive(Clone, Debug, PartialEq)]
pub struct SmartReport {
    /// Which disk answered.
    pub identity: Identity,
    /// What to give smartctl as `-d TYPE` next time, so that a sleeping disk is not woken by detection.
    pub device_type: Option<String>,
    /// What it said.
    pub state: SmartState,
}

/// Which disk answered; empty strings where it did not say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Model name.
    pub model: String,
    /// Serial number.
    pub serial: String,
}

/// What a run of smartctl means.
#[derive(Clone, Debug, PartialEq)]
pub enum SmartState {
    /// The disk answered.
    Values(Box<SmartValues>),
    /// The disk sleeps and was left asleep.
    Asleep,
    /// The disk has SMART, switched off.
    Disabled,
    /// No SMART here: a virtual disk, a controller in between, or no smartctl on this host.
    Unsupported,
    /// It should have worked and did not; the reason is for people.
    Unreadable(String),
}

/// The values that the rules look at. `None` where the disk does not report it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SmartValues {
    /// ATA and SCSI: the disk predicts its failure. Always false for `NVMe`, whose bits say more.
    pub failing_now: bool,
    /// `NVMe` critical warning bits, 0 for others.
    pub nvme_critical_warning: u8,
    /// ATA 5.
    pub reallocated: Option<u64>,
    /// ATA 187.
    pub reported_uncorrectable: Option<u64>,
    /// ATA 197.
    pub pending: Option<u64>,
    /// ATA 198.
    pub offline_uncorrectable: Option<u64>,
    /// ATA 199.
    pub link_errors: Option<u64>,
    /// SCSI grown defect list.
    pub grown_defects: Option<u64>,
    /// SCSI uncorrected errors, read, write and verify together.
    pub uncorrected: Option<u64>,
    /// `NVMe` media and data integrity errors.
    pub media_errors: Option<u64>,
    /// Part of the rated endurance that is used, in percent; may exceed 100.
    pub wear_percent: Option<u64>,
    /// Part of the spare blocks that is left, in percent.
    pub spare_percent: Option<u64>,
    /// Temperature in degrees Celsius.
    pub temperature_celsius: Option<i64>,
}

const BIT_USAGE: u64 = 1;
const BIT_OPEN: u64 = 1 << 1;
const BIT_COMMAND: u64 = 1 << 2;
const BIT_FAILING: u64 = 1 << 3;
const BIT_PREFAIL: u64 = 1 << 4;
/// `-n standby,3`: the exit status that we ask for when the disk sleeps.
const EXIT_ASLEEP: u64 = 3;

/// Places where the document may begin, before the output counts as no JSON at all. smartctl before 7.3 prints
/// stray lines first; a handful is normal.
const STARTS_MAX: usize = 64;
/// Longest model, serial or type that is kept; ATA strings have 40 characters, `NVMe` ones too.
const STRING_MAX: usize = 64;

impl SmartReport {
    /// Reads the output of a run that ended by itself with this exit status.
    pub fn parse(output: &[u8], exit_status: i32) -> Self {
        match document(output) {
            Ok(document) => read(&document, exit_status),
            Err(why) => Self::without_identity(SmartState::Unreadable(why.to_owned())),
        }
    }

    /// A run that gave nothing to read.
    pub fn without_identity(state: SmartState) -> Self {
        Self { identity: Identity::default(), device_type: None, state }
    }
}

impl Identity {
    /// Both name a serial number, and not the same.
    pub fn contradicts(&self, other: &Self) -> bool {
        !self.serial.is_empty() && !other.serial.is_empty() && self.serial != other.serial
    }

    /// Takes over what the other one knows.
    pub fn complete(&mut self, other: Self) {
        if !other.model.is_empty() {
            self.model = other.model;
        }
        if !other.serial.is_empty() {
            self.serial = other.serial;
        }
    }
}

/// The first JSON object that is a report. Garbage before and after it is ignored; a report that breaks off is
/// none, since its beginning alone could look healthy.
fn document(output: &[u8]) -> Result<Value, &'static str> {
    let starts = output.iter().enumerate().filter(|(_, byte)| **byte == b'{').map(|(at, _)| at);
    for start in starts.take(STARTS_MAX) {
        let mut values = serde_json::Deserializer::from_slice(&output[start..]);
        match Value::deserialize(&mut values) {
            Ok(value) if value.get("smartctl").is_some() || value.get("json_format_version").is_some() => {
                return Ok(value);
            }
            Err(error) if error.is_eof() => return Err("smartctl's report breaks off"),
            Ok(_) | Err(_) => {}
        }
    }
    Err("smartctl printed no report")
}

fn read(document: &Value, exit_status: i32) -> SmartReport {
    let said = number(document, "/smartctl/exit_status").unwrap_or(0);
    // A wrapper may swallow the exit status, so the report's own copy counts as well.
    let bits = (said | u64::try_from(exit_status).unwrap_or(0)) & 0xff;
    let identity = Identity {
        model: first_string(document, &["/model_name", "/scsi_model_name", "/device_model"]),
        serial: first_string(document, &["/serial_number"]),
    };
    let device_type = Some(first_string(document, &["/device/type"])).filter(|name| !name.is_empty());
    SmartReport { identity, device_type, state: state(document, bits) }
}

fn state(document: &Value, bits: u64) -> SmartState {
    if bits == EXIT_ASLEEP {
        return SmartState::Asleep;
    }
    let flag = |path| document.pointer(path).and_then(Value::as_bool);
    if flag("/smart_support/available") == Some(false) {
        return SmartState::Unsupported;
    }
    if flag("/smart_support/enabled") == Some(false) {
        return SmartState::Disabled;
    }
    if has_values(document) && bits & (BIT_USAGE | BIT_OPEN) == 0 {
        return SmartState::Values(Box::new(values(document, bits)));
    }
    // Virtio disks end with bit 0 and no device, Hyper-V disks with bit 1, USB bridges with either. A disk that
    // has answered before is told apart by the grader.
    let recognised = document.get("device").is_some();
    if bits & BIT_COMMAND != 0 || (bits & BIT_USAGE != 0 && recognised) {
        return SmartState::Unreadable(first_message(document));
    }
    SmartState::Unsupported
}

fn has_values(document: &Value) -> bool {
    [
        "smart_status",
        "ata_smart_attributes",
        "nvme_smart_health_information_log",
        "scsi_grown_defect_list",
        "scsi_error_counter_log",
    ]
    .iter()
    .any(|key| document.get(key).is_some())
}

fn values(document: &Value, bits: u64) -> SmartValues {
    let nvme = document.get("nvme_smart_health_information_log").is_some()
        || document.pointer("/device/protocol").and_then(Value::as_str) == Some("NVMe");
    let table = document.pointer("/ata_smart_attributes/table").and_then(Value::as_array);
    let attributes: &[Value] = table.map_or(&[], Vec::as_slice);
    let raw =
        |id| attributes.iter().find(|attribute| number(attribute, "/id") == Some(id)).and_then(raw_count);
    let log = |key: &str| number(document, &format!("/nvme_smart_health_information_log/{key}"));
    let warning = log("critical_warning").or_else(|| number(document, "/smart_status/nvme/value"));
    SmartValues {
        failing_now: !nvme && predicts_failure(document, attributes, bits),
        nvme_critical_warning: u8::try_from(warning.unwrap_or(0) & 0xff).unwrap_or(u8::MAX),
        reallocated: raw(5),
        reported_uncorrectable: raw(187),
        pending: raw(197),
        offline_uncorrectable: raw(198),
        link_errors: raw(199),
        grown_defects: number(document, "/scsi_grown_defect_list"),
        uncorrected: scsi_uncorrected(document),
        media_errors: log("media_errors"),
        wear_percent: log("percentage_used").or_else(|| number(document, "/endurance_used/current_percent")),
        spare_percent: log("available_spare")
            .or_else(|| number(document, "/spare_available/current_percent")),
        temperature_celsius: document.pointer("/temperature/current").and_then(Value::as_i64),
    }
}

fn predicts_failure(document: &Value, attributes: &[Value], bits: u64) -> bool {
    let passed = document.pointer("/smart_status/passed").and_then(Value::as_bool);
    let below_threshold = |attribute: &Value| {
        attribute.pointer("/when_failed").and_then(Value::as_str) == Some("now")
            && attribute.pointer("/flags/prefailure").and_then(Value::as_bool) == Some(true)
    };
    bits & (BIT_FAILING | BIT_PREFAIL) != 0 || passed == Some(false) || attributes.iter().any(below_threshold)
}

/// The count in an attribute's raw value. Vendors pack more than one figure into the 48 bits (attribute 5
/// carries its history in the upper ones); smartctl's own decoding leads its `string`.
fn raw_count(attribute: &Value) -> Option<u64> {
    let decoded = attribute.pointer("/raw/string").and_then(Value::as_str).and_then(|text| {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        // `0x1234` is a dump, not a count.
        let plain = !text.as_bytes().get(digits).is_some_and(u8::is_ascii_alphabetic);
        text[..digits].parse().ok().filter(|_| plain)
    });
    decoded.or_else(|| number(attribute, "/raw/value"))
}

fn scsi_uncorrected(document: &Value) -> Option<u64> {
    ["read", "write", "verify"]
        .iter()
        .filter_map(|kind| {
            number(document, &format!("/scsi_error_counter_log/{kind}/total_uncorrected_errors"))
        })
        .reduce(u64::saturating_add)
}

/// A whole number. Those above 64 bits (`NVMe` counters have 128) saturate; negative ones and others are none.
fn number(document: &Value, path: &str) -> Option<u64> {
    let value = document.pointer(path)?;
    // Only numbers beyond u64 arrive here as floats that large.
    let beyond = || value.as_f64().filter(|float| *float >= 18_446_744_073_709_551_615.0).map(|_| u64::MAX);
    value.as_u64().or_else(beyond)
}

fn first_string(document: &Value, paths: &[&str]) -> String {
    let text =
        paths.iter().find_map(|path| document.pointer(path).and_then(Value::as_str)).unwrap_or_default();
    printable(text, STRING_MAX)
}

fn first_message(document: &Value) -> String {
    /// Long enough for any of smartctl's own messages.
    const MESSAGE_MAX: usize = 200;
    let text = document.pointer("/smartctl/messages/0/string").and_then(Value::as_str);
    printable(text.unwrap_or("smartctl could not read the disk"), MESSAGE_MAX)
}

/// What a disk says of itself is printed in tables and sent on: no control characters, no novels.
fn printable(text: &str, length_max: usize) -> String {
    text.trim().chars().filter(|c| !c.is_control()).take(length_max).collect()
}

#[cfg(test)]
mod tests;
