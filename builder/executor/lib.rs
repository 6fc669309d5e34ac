//! rbuild-executor
