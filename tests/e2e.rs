//! The real binary, end to end: containers, images, registries. One test binary, so that it is linked once.

#[path = "e2e/apt.rs"]
mod apt;
#[path = "e2e/attacks.rs"]
mod attacks;
#[path = "e2e/attestations.rs"]
mod attestations;
#[path = "e2e/bases.rs"]
mod bases;
#[path = "e2e/build.rs"]
mod build;
#[path = "e2e/cache.rs"]
mod cache;
#[path = "e2e/cache_mounts.rs"]
mod cache_mounts;
#[path = "e2e/checks.rs"]
mod checks;
#[path = "e2e/concurrency.rs"]
mod concurrency;
#[path = "e2e/containers.rs"]
mod containers;
#[path = "e2e/damage.rs"]
mod damage;
#[path = "e2e/disk.rs"]
mod disk;
#[path = "e2e/doctor.rs"]
mod doctor;
#[path = "e2e/engines.rs"]
mod engines;
#[path = "e2e/explain.rs"]
mod explain;
#[path = "e2e/failures.rs"]
mod failures;
#[path = "e2e/formats.rs"]
mod formats;
#[path = "e2e/hostile.rs"]
mod hostile;
#[path = "e2e/images.rs"]
mod images;
#[path = "e2e/keys.rs"]
mod keys;
#[path = "e2e/kills.rs"]
mod kills;
#[path = "e2e/layers.rs"]
mod layers;
#[path = "e2e/limits.rs"]
mod limits;
#[path = "e2e/network.rs"]
mod network;
#[path = "e2e/odd_images.rs"]
mod odd_images;
#[path = "e2e/outputs.rs"]
mod outputs;
#[path = "e2e/platforms.rs"]
mod platforms;
#[path = "e2e/registry.rs"]
mod registry;
#[path = "e2e/rootless.rs"]
mod rootless;
#[path = "e2e/sandbox.rs"]
mod sandbox;
#[path = "e2e/security.rs"]
mod security;
#[path = "e2e/support.rs"]
mod self_test;
#[path = "e2e/shared_cache.rs"]
mod shared_cache;
#[path = "e2e/shell.rs"]
mod shell;
#[path = "e2e/sources.rs"]
mod sources;
#[path = "e2e/ssh.rs"]
mod ssh;
#[path = "e2e/storage.rs"]
mod storage;
mod support;
#[path = "e2e/tiers.rs"]
mod tiers;
#[path = "e2e/transfer.rs"]
mod transfer;
