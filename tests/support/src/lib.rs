//! What the tests, the demo and the bench share.

pub mod certs;
pub mod ending;
pub mod world;
