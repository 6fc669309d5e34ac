//! What steps get on this machine, by name: for `--require-tier`, metadata and doctor.

use std::path::Path;

use executor::NoNodes;
use executor::rootless::Tier;

/// The least that a build accepts.
#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[value(rename_all = "kebab-case")]
pub enum Required {
    /// Another root directory at least
    Confined,
    /// Namespaces, and one id for all files
    SingleId,
    /// Namespaces, and the ids of an image's users
    Rootless,
    /// As the machine's root
    Root,
}

/// The name of what there is.
#[must_use]
pub fn name(tier: &Tier) -> &'static str {
    match tier {
        Tier::Root => "root",
        Tier::SubordinateIds { .. } => "rootless",
        Tier::SingleId { .. } => "single-id",
        Tier::Confined { .. } => "confined",
    }
}

/// Whether there is enough, and if not, what there is and why.
///
/// # Errors
/// There is less than is required.
pub fn check(required: Required, tier: &Tier) -> Result<(), String> {
    let (found, why) = match tier {
        Tier::Root => (Required::Root, None),
        Tier::SubordinateIds { .. } => (Required::Rootless, None),
        Tier::SingleId { reason } => (Required::SingleId, Some(reason)),
        Tier::Confined { reason } => (Required::Confined, Some(reason)),
    };
    if found >= required {
        return Ok(());
    }
    let name = name(tier);
    Err(match why {
        Some(why) => format!("this machine gives steps the tier {name}, which is less than was required: {why}"),
        None => format!("this machine gives steps the tier {name}, which is less than was required"),
    })
}

/// What steps lack that have no device nodes, and the way out. Nothing stands in for them: of a pipe that is fed programs would
/// read less than they ask for, and not all would notice.
#[must_use]
pub fn without_nodes(tier: &Tier, scratch: &Path) -> Option<(String, &'static str)> {
    let Tier::Confined { .. } = tier else { return None };
    let (why, fix) = match executor::nodes_in(scratch).ok()?? {
        NoNodes::Made => (
            "device nodes cannot be made here",
            "give the container CAP_MKNOD (docker run --cap-add MKNOD; in Kubernetes \
             securityContext.capabilities.add: [MKNOD]); in a user namespace that is not enough",
        ),
        NoNodes::Opened => (
            "the store's file system is mounted with nodev",
            "put the store on one that is not: --root DIR, in the container's own root file system or a volume",
        ),
    };
    let found = format!(
        "steps have no /dev/zero, full, random, urandom and tty, since {why}; /dev/null is a file of theirs, which keeps what is \
         written"
    );
    Some((found, fix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_is_required_is_enough() {
        let single = Tier::SingleId { reason: "no table".into() };
        assert_eq!(check(Required::SingleId, &single), Ok(()));
        assert_eq!(check(Required::Confined, &Tier::Root), Ok(()));
        assert_eq!(check(Required::Rootless, &Tier::SubordinateIds { count: 1 }), Ok(()));
        let error = check(Required::Rootless, &single).expect_err("one id is less");
        assert!(error.contains("single-id") && error.ends_with("no table"), "{error}");
    }
}
