//! rbuild-snapshotter
pub mod layer;
