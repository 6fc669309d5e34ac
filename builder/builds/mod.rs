//! What is remembered of builds that are over, for people: their steps, what these printed, and why they were run.

mod definition;
mod explain;
mod record;
mod recorder;

pub use explain::{Explanation, explain};
pub use record::{BuildRecord, Builds, Keys, State, Step, Used};
pub use recorder::{About, Recorder};
