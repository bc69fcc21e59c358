//! The wire contract: every service, message and field with its number, as one line each. A field that changes its
//! number or type breaks agents of another version, so the change must be visible in a committed file.

use std::fmt::Write as _;

use anyhow::Result;
use somersault_contract_tests::{assert_committed, repository_file};

#[test]
fn committed_wire_contract_equals_the_proto_files() -> Result<()> {
    let files = [
        "somersault/v1/fleet.proto",
        "somersault/v1/transfer.proto",
        "somersault/v1/enroll.proto",
        "somersault/v1/fence.proto",
    ];
    let set = protox::compile(files, [repository_file("proto")])?;
    let mut text = String::from("# The wire contract, one line for each rpc, field and enum value.\n");
    for file in set.file.iter().filter(|file| files.contains(&file.name())) {
        let package = file.package();
        for service in &file.service {
            for method in &service.method {
                let stream = |streaming| if streaming { "stream " } else { "" };
                writeln!(
                    text,
                    "rpc {package}.{}/{} {}{} -> {}{}",
                    service.name(),
                    method.name(),
                    stream(method.client_streaming()),
                    method.input_type(),
                    stream(method.server_streaming()),
                    method.output_type(),
                )?;
            }
        }
        file.message_type.iter().try_for_each(|message| describe(&mut text, package, message))?;
        file.enum_type.iter().try_for_each(|enumeration| describe_enum(&mut text, package, enumeration))?;
    }
    assert_committed("tests/contract/wire.txt", &text)?;
    Ok(())
}

fn describe(text: &mut String, parent: &str, message: &prost_types::DescriptorProto) -> std::fmt::Result {
    let name = format!("{parent}.{}", message.name());
    for field in &message.field {
        let oneof = field
            .oneof_index
            .and_then(|index| message.oneof_decl.get(usize::try_from(index).ok()?))
            .map_or(String::new(), |oneof| format!(" oneof {}", oneof.name()));
        writeln!(
            text,
            "field {name}.{} = {} {:?} {:?}{}{oneof}",
            field.name(),
            field.number(),
            field.label(),
            field.r#type(),
            field.type_name.as_deref().map_or(String::new(), |type_name| format!(" {type_name}")),
        )?;
    }
    message.nested_type.iter().try_for_each(|nested| describe(text, &name, nested))?;
    message.enum_type.iter().try_for_each(|enumeration| describe_enum(text, &name, enumeration))
}

fn describe_enum(
    text: &mut String,
    parent: &str,
    enumeration: &prost_types::EnumDescriptorProto,
) -> std::fmt::Result {
    enumeration.value.iter().try_for_each(|value| {
        writeln!(text, "value {parent}.{}.{} = {}", enumeration.name(), value.name(), value.number())
    })
}
