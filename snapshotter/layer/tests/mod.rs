//! Tests that need more than one part of this module.

mod attacks;
mod compression;
mod native;
mod roundtrip;
mod stacks;
mod support;
mod views;
