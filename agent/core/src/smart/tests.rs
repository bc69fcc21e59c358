//! Reports of each kind of disk, of disks without SMART, and of smartctl at its worst.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn report(document: &Value, exit_status: i32) -> SmartReport {
    SmartReport::parse(document.to_string().as_bytes(), exit_status)
}

fn values_of(document: &Value, exit_status: i32) -> SmartValues {
    match report(document, exit_status).state {
        SmartState::Values(values) => *values,
        other => panic!("expected values, got {other:?}"),
    }
}

fn ata(attributes: &Value) -> Value {
    json!({
        "json_format_version": [1, 0],
        "smartctl": {"exit_status": 0},
        "device": {"name": "/dev/sda", "type": "sat", "protocol": "ATA"},
        "model_name": "DISK 9000", "serial_number": "S1",
        "smart_support": {"available": true, "enabled": true},
        "smart_status": {"passed": true},
        "ata_smart_attributes": {"table": attributes},
        "temperature": {"current": 31}
    })
}

fn attribute(id: u64, raw: &Value) -> Value {
    json!({"id": id, "when_failed": "", "flags": {"prefailure": true}, "raw": raw})
}

#[test]
fn an_ata_disk_is_read() {
    let document = ata(&json!([
        attribute(5, &json!({"value": 3})),
        attribute(197, &json!({"value": 2, "string": "2"}))
    ]));
    let report = report(&document, 0);
    assert_eq!(report.identity, Identity { model: "DISK 9000".into(), serial: "S1".into() });
    assert_eq!(report.device_type.as_deref(), Some("sat"));
    let values = values_of(&document, 0);
    assert_eq!((values.reallocated, values.pending, values.link_errors), (Some(3), Some(2), None));
    assert_eq!(values.temperature_celsius, Some(31));
    assert!(!values.failing_now);
}

#[test]
fn packed_raw_values_are_read_as_smartctl_decodes_them() {
    let packed = json!({"value": 51_540_393_996_u64, "string": "12 (0 12)"});
    assert_eq!(values_of(&ata(&json!([attribute(5, &packed)])), 0).reallocated, Some(12));
    let dump = json!({"value": 4, "string": "0x000000000004"});
    assert_eq!(values_of(&ata(&json!([attribute(5, &dump)])), 0).reallocated, Some(4));
}

#[test]
fn every_way_of_predicting_failure_counts_for_ata() {
    let healthy = ata(&json!([]));
    for exit_status in [8, 16, 216] {
        assert!(values_of(&healthy, exit_status).failing_now, "exit {exit_status}");
    }
    let mut failed = healthy.clone();
    failed["smart_status"]["passed"] = json!(false);
    assert!(values_of(&failed, 0).failing_now);
    let mut below = attribute(5, &json!({"value": 1975}));
    below["when_failed"] = json!("now");
    assert!(values_of(&ata(&json!([below.clone()])), 0).failing_now);
    below["flags"]["prefailure"] = json!(false);
    assert!(!values_of(&ata(&json!([below])), 0).failing_now, "an old-age attribute predicts nothing");
    let mut swallowed = healthy;
    swallowed["smartctl"]["exit_status"] = json!(24);
    assert!(values_of(&swallowed, 0).failing_now, "the report's own exit status");
}

#[test]
fn the_past_is_not_the_present() {
    for exit_status in [4, 32, 64, 128] {
        assert!(!values_of(&ata(&json!([])), exit_status).failing_now, "exit {exit_status}");
    }
}

#[test]
fn an_nvme_disk_is_judged_by_its_bits() {
    let document = json!({
        "smartctl": {"exit_status": 8},
        "device": {"type": "nvme", "protocol": "NVMe"},
        "smart_status": {"passed": false, "nvme": {"value": 16}},
        "nvme_smart_health_information_log": {
            "critical_warning": 16, "available_spare": 100, "percentage_used": 7, "media_errors": 0,
            "num_err_log_entries": 55
        }
    });
    let values = values_of(&document, 8);
    assert!(!values.failing_now, "passed is false for any bit");
    assert_eq!((values.nvme_critical_warning, values.media_errors), (16, Some(0)));
    assert_eq!((values.wear_percent, values.spare_percent), (Some(7), Some(100)));
}

#[test]
fn a_scsi_disk_is_read() {
    let document = json!({
        "smartctl": {"exit_status": 0},
        "device": {"type": "scsi", "protocol": "SCSI"},
        "smart_status": {"passed": true},
        "scsi_grown_defect_list": 56,
        "scsi_error_counter_log": {
            "read": {"total_uncorrected_errors": 2}, "write": {"total_uncorrected_errors": 1}
        }
    });
    let values = values_of(&document, 0);
    assert_eq!((values.grown_defects, values.uncorrected), (Some(56), Some(3)));
}

#[test]
fn numbers_beyond_64_bits_saturate() {
    let text = r#"{"smartctl":{},"nvme_smart_health_information_log":{"media_errors":340282366920938463463374607431768211455,"critical_warning":-1,"percentage_used":2.5}}"#;
    let SmartState::Values(values) = SmartReport::parse(text.as_bytes(), 0).state else {
        panic!("no values")
    };
    assert_eq!(values.media_errors, Some(u64::MAX));
    assert_eq!((values.nvme_critical_warning, values.wear_percent), (0, None));
}

#[test]
fn unsupported_is_recognised_in_every_shape() {
    let virtio = json!({"smartctl": {"exit_status": 1, "messages":
        [{"string": "/dev/vda: Unable to detect device type", "severity": "error"}]}});
    let hyper_v = json!({"smartctl": {"exit_status": 2}, "device": {"type": "scsi", "protocol": "SCSI"}});
    let unavailable = json!({"smartctl": {"exit_status": 4}, "device": {"type": "scsi"},
        "smart_support": {"available": false}});
    let silent = json!({"smartctl": {"exit_status": 0}, "device": {"type": "scsi"}});
    for (document, exit_status) in [(virtio, 1), (hyper_v, 2), (unavailable, 4), (silent, 0)] {
        assert_eq!(report(&document, exit_status).state, SmartState::Unsupported, "{document}");
    }
    let disabled = json!({"smartctl": {}, "device": {"type": "sat"}, "smart_status": {"passed": true},
        "smart_support": {"available": true, "enabled": false}});
    assert_eq!(report(&disabled, 0).state, SmartState::Disabled);
}

#[test]
fn values_of_a_disk_that_did_not_open_are_not_believed() {
    let document = ata(&json!([]));
    for exit_status in [1, 2] {
        assert!(!matches!(report(&document, exit_status).state, SmartState::Values(_)), "exit {exit_status}");
    }
    assert_eq!(report(&document, 3).state, SmartState::Asleep);
}

#[test]
fn garbage_around_the_report_is_ignored() {
    let document = ata(&json!([])).to_string();
    let text = format!("  Pending defect count:0 Pending Defects\n{{oops}}\n{document}\ntrailing {{");
    assert!(matches!(SmartReport::parse(text.as_bytes(), 0).state, SmartState::Values(_)));
}

#[test]
fn a_report_that_breaks_off_is_unreadable_wherever_it_breaks() {
    let text = ata(&json!([attribute(5, &json!({"value": 0}))])).to_string();
    for end in 0..text.len() {
        let state = SmartReport::parse(&text.as_bytes()[..end], 0).state;
        assert!(matches!(state, SmartState::Unreadable(_)), "cut at {end}: {state:?}");
    }
}

#[test]
fn what_a_disk_says_of_itself_is_cut_and_cleaned() {
    let mut document = ata(&json!([]));
    document["model_name"] = json!(format!("\u{1b}[31m{}", "x".repeat(500)));
    let model = report(&document, 0).identity.model;
    assert_eq!(model.chars().count(), STRING_MAX);
    assert!(!model.contains('\u{1b}'));
}

proptest! {
    #[test]
    fn any_output_is_survived(output in proptest::collection::vec(any::<u8>(), 0..400), exit in any::<i32>()) {
        let report = SmartReport::parse(&output, exit);
        prop_assert!(!matches!(report.state, SmartState::Values(_)));
    }

    #[test]
    fn any_value_in_any_place_is_survived(
        value in prop_oneof![
            Just(json!(null)), Just(json!(-1)), Just(json!(1e300)), Just(json!("x")), Just(json!([])), Just(json!({}))
        ],
        place in 0..6_usize,
    ) {
        let mut document = ata(&json!([attribute(5, &json!({"value": 0}))]));
        let path = ["/smart_status", "/ata_smart_attributes/table", "/ata_smart_attributes/table/0/raw",
            "/ata_smart_attributes/table/0/id", "/device", "/smartctl"][place];
        *document.pointer_mut(path).expect("a path of the document") = value;
        let _survives = report(&document, 0);
    }
}
