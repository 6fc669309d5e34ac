//! The real binary, end to end: containers, images, registries. One test binary, so that it is linked once.

#[path = "e2e/support.rs"]
mod self_test;
mod support;
