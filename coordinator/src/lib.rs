//! The coordinator's shell: IO around `somersault-coordinator-core`.

pub mod cluster;
