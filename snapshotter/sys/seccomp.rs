//! Installing a system call filter. What the filter says is the executor's business.

use crate::error::{Error, Result, check};
use rustix::io::Errno;

/// One instruction of the classic packet filter machine that seccomp runs.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip when a comparison holds.
    pub jump_true: u8,
    /// Instructions to skip when it does not.
    pub jump_false: u8,
    /// Operand.
    pub operand: u32,
}

/// Puts this process, and all that it will execute, under the filter for good.
///
/// Needs CAP_SYS_ADMIN in the user namespace, or `no_new_privs`.
pub fn install(filter: &[Instruction]) -> Result<()> {
    let describe =
        |flags: libc::c_ulong| format!("seccomp(SECCOMP_SET_MODE_FILTER, {flags:#x}, {} instructions)", filter.len());
    let Ok(length) = u16::try_from(filter.len()) else {
        return Err(Error::new(describe(0), Errno::TOOBIG));
    };
    let program = libc::sock_fprog { len: length, filter: filter.as_ptr().cast_mut().cast() };
    // The mitigation of speculative store bypass, which seccomp switched on before Linux 5.16, costs every step dearly and
    // protects only programs that run untrusted code within themselves.
    let flags = libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    match load(&program, flags) {
        Err(Errno::INVAL) => load(&program, 0).map_err(|errno| Error::new(describe(0), errno)),
        other => other.map_err(|errno| Error::new(describe(flags), errno)),
    }
}

fn load(program: &libc::sock_fprog, flags: libc::c_ulong) -> std::result::Result<(), Errno> {
    // SAFETY: the program and its instructions outlive the call; Instruction has the layout of struct sock_filter and the
    // kernel only reads it.
    check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER as libc::c_ulong,
            flags,
            std::ptr::from_ref(program),
        )
    })
    .map(drop)
}
