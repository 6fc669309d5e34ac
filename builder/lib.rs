//! rbuild

pub mod progress;
