//! Compiles the wire contract with a pure-Rust compiler: no protoc on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "somersault/v1/fleet.proto",
        "somersault/v1/transfer.proto",
        "somersault/v1/enroll.proto",
        "somersault/v1/fence.proto",
    ];
    let descriptors = protox::compile(files, ["."])?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    Ok(())
}
