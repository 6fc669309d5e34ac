//! Landlock (landlock(7)): what lies outside of the root stays out of reach even for who escapes a chroot, or finds a descriptor
//! that leads out.

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr, RulesetCreatedAttr,
    Scope,
};
use rustix::fs::{Mode, OFlags};
use sys::Named;

use crate::spec::{Capabilities, Process, Seccomp};

/// How much of Landlock this kernel has, as far as steps use it; none where it has none or its first version, or has it switched off.
pub fn landlock() -> Option<LandlockLevel> {
    let has = |abi: ABI| {
        let ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
        let ruleset = ruleset.handle_access(AccessFs::from_all(abi));
        let scoped = ruleset.and_then(|ruleset| match Scope::from_all(abi) {
            none if none.is_empty() => Ok(ruleset),
            scopes => ruleset.scope(scopes),
        });
        scoped.and_then(Ruleset::create).is_ok()
    };
    if has(ABI::V6) {
        return Some(LandlockLevel::Whole);
    }
    has(ABI::V2).then_some(LandlockLevel::Part)
}

/// See [`landlock`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LandlockLevel {
    /// All that steps use.
    Whole,
    /// An earlier version, which does not see every change, nor signals.
    Part,
}

/// What is fenced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fence {
    /// Everything.
    Whole,
    /// All but reading and executing files whose path is known. The kernel opens interpreters that binfmt_misc holds for the
    /// step, and they lie outside of its root.
    Changes,
}

impl Fence {
    /// What fits a step that has a root of its own by its mounts. A step that may do more than by default may also mount, which
    /// Landlock forbids.
    pub(crate) fn beside_mounts(process: &Process) -> Option<Self> {
        let is_default = process.capabilities == Capabilities::Default && process.seccomp == Seccomp::Default;
        is_default.then_some(Self::Changes)
    }

    /// Restricts this process and its children to the root it has now. A kernel without Landlock gives what it has.
    ///
    /// Who has no CAP_SYS_ADMIN, as in a chroot, can do so only once nobody can gain privileges any more. Elsewhere setuid programs
    /// keep their effect.
    pub(crate) fn build(self) -> sys::Result<()> {
        let root = rustix::fs::open(c"/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .call(|| "open(\"/\", O_PATH)".to_owned())?;
        let everything = AccessFs::from_all(ABI::V5);
        let handled = match self {
            Self::Whole => everything,
            Self::Changes => everything & !(AccessFs::ReadFile | AccessFs::Execute),
        };
        let scopes: BitFlags<Scope> = Scope::from_all(ABI::V6);
        // The first version refuses all renames and links from one directory to another.
        let with_renames =
            Ruleset::default().set_compatibility(CompatLevel::HardRequirement).handle_access(AccessFs::Refer);
        let Ok(ruleset) = with_renames else { return Ok(()) };
        let restrict = || {
            ruleset
                .set_compatibility(CompatLevel::BestEffort)
                .handle_access(handled)?
                .scope(scopes)?
                .create()?
                .add_rule(PathBeneath::new(root, handled))?
                .no_new_privs(self == Self::Whole)
                .restrict_self()
        };
        match restrict() {
            Ok(_) => Ok(()),
            Err(error) => Err(sys::Error::new(format!("landlock: {error}"), rustix::io::Errno::INVAL)),
        }
    }
}
