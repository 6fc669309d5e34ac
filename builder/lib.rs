//! rbuild: an image builder for Dockerfiles, without a daemon.
//!
//! A Dockerfile's text becomes a plan, the plan a graph, the graph's operations outputs, and the result an image somewhere:
//! [`build::build`] is that story in two steps, [`outputs::deliver`] its end.

mod brought_shell;
pub mod build;
pub mod builds;
pub mod bundle;
pub mod cache;
pub mod check;
pub mod cli;
pub mod config;
pub mod context;
pub mod doctor;
pub mod emulation;
pub mod engines;
pub mod export;
mod failure;
pub mod image;
pub mod images;
pub mod import;
pub mod network;
pub mod notices;
pub mod outputs;
pub mod progress;
pub mod provenance;
mod proxies;
pub mod referrers;
pub mod report;
pub mod request;
pub mod resources;
pub mod session;
mod shell;
pub mod size;
mod ssh;
pub mod stored;
pub mod terminal;
pub mod tier;
pub mod variant;
pub mod worker;
