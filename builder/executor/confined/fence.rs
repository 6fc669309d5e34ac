//! Landlock (landlock(7)): what lies outside of the root stays out of reach even for who escapes a chroot.

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr, RulesetCreatedAttr,
    Scope,
};
use rustix::fs::{Mode, OFlags};
use sys::Named;

/// Restricts this process and its children to the root it has now. A kernel without Landlock gives what it has.
pub(super) fn build() -> sys::Result<()> {
    let root = rustix::fs::open(c"/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .call(|| "open(\"/\", O_PATH)".to_owned())?;
    let everything = AccessFs::from_all(ABI::V5);
    let scopes: BitFlags<Scope> = Scope::from_all(ABI::V6);
    let restrict = || {
        Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(everything)?
            .scope(scopes)?
            .create()?
            .add_rule(PathBeneath::new(root, everything))?
            .restrict_self()
    };
    match restrict() {
        Ok(_) => Ok(()),
        Err(error) => Err(sys::Error::new(format!("landlock: {error}"), rustix::io::Errno::INVAL)),
    }
}
