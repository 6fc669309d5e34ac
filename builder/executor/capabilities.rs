//! What root may do inside a step.

use rustix::thread::CapabilitySet;

/// Docker's default set.
pub(crate) const DEFAULT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::AUDIT_WRITE);

/// The capabilities that the kernel knows, as far as we can name them, lowest first.
pub(crate) fn known() -> impl Iterator<Item = CapabilitySet> {
    // One past the last that this kernel knows, the question itself is an error.
    (0..64)
        .map(|number| CapabilitySet::from_bits_retain(1 << number))
        .take_while(|&capability| rustix::thread::capability_is_in_bounding_set(capability).is_ok())
}
