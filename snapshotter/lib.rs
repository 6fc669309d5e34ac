//! rbuild-snapshotter
