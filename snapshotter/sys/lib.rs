//! rbuild-sys
