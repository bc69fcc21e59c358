//! Real copies between real servers over mutual TLS: exact, sparse, resumed, and refused.

mod copy;
mod device;
mod disk;
mod dying;
mod hostile;
mod mounted;
mod resume;
mod tokens;
mod tree;
mod world;
