//! Becoming the user, with no more rights than the step shall have.

use rustix::process::{Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};
use sys::Named;

use crate::capabilities;
use crate::error::{Doing, Error};
use crate::machine::Machine;
use crate::spec::{Capabilities, Process};
use crate::user::Identity;

/// What this process needs itself until the filter is installed.
const SETUP: CapabilitySet = CapabilitySet::SYS_ADMIN;

/// Takes on ids, groups and capabilities, keeping only what installing the filter needs.
pub(crate) fn assume(
    identity: &Identity,
    machine: &Machine,
    capabilities: CapabilitySet,
    process: &Process,
) -> Result<(), Error> {
    let doing = "become the step's user";
    for capability in capabilities::known().filter(|capability| !capabilities.contains(*capability)) {
        rustix::thread::remove_capability_from_bounding_set(capability)
            .call(|| format!("prctl(PR_CAPBSET_DROP, {capability:?})"))
            .doing("drop capabilities")?;
    }
    // Changing ids would take all capabilities with it.
    rustix::thread::set_keep_capabilities(true).call(|| "prctl(PR_SET_KEEPCAPS, 1)".to_owned()).doing(doing)?;
    if !machine.groups_denied {
        let groups: Vec<Gid> = identity.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        rustix::thread::set_thread_groups(&groups).call(|| format!("setgroups({:?})", identity.groups)).doing(doing)?;
    }
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    rustix::thread::set_thread_res_gid(Some(gid), Some(gid), Some(gid))
        .call(|| format!("setresgid({0}, {0}, {0})", identity.gid))
        .doing(doing)?;
    rustix::thread::set_thread_res_uid(Some(uid), Some(uid), Some(uid))
        .call(|| format!("setresuid({0}, {0}, {0})", identity.uid))
        .doing(doing)?;
    set(capabilities | (SETUP & machine.permitted), inheritable(capabilities, process))?;
    if process.no_new_privileges {
        rustix::thread::set_no_new_privs(true)
            .call(|| "prctl(PR_SET_NO_NEW_PRIVS, 1)".to_owned())
            .doing("forbid new privileges")?;
    }
    Ok(())
}

/// Gives up what only the set-up needed.
pub(crate) fn drop_setup_capabilities(capabilities: CapabilitySet, process: &Process) -> Result<(), Error> {
    let inheritable = inheritable(capabilities, process);
    set(capabilities, inheritable)?;
    for capability in inheritable.iter() {
        rustix::thread::configure_capability_in_ambient_set(capability, true)
            .call(|| format!("prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, {capability:?})"))
            .doing("keep capabilities for the program")?;
    }
    Ok(())
}

/// Capabilities that programs get whoever runs them: none, unless the step is to have all there are.
fn inheritable(capabilities: CapabilitySet, process: &Process) -> CapabilitySet {
    match process.capabilities {
        Capabilities::Default => CapabilitySet::empty(),
        Capabilities::All => capabilities,
    }
}

fn set(capabilities: CapabilitySet, inheritable: CapabilitySet) -> Result<(), Error> {
    let sets = CapabilitySets { effective: capabilities, permitted: capabilities, inheritable };
    rustix::thread::set_capabilities(None, sets).call(|| format!("capset({sets:?})")).doing("set capabilities")
}
