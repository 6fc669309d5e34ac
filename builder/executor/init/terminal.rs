//! A terminal from the step's own pseudo-terminals, so that its name exists inside.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, Uid};
use rustix::pty::OpenptFlags;
use sys::Named;

use crate::error::{Doing, Error};
use crate::spec::WindowSize;
use crate::user::Identity;

/// Both sides.
pub(crate) struct Terminal {
    /// rbuild's.
    pub(crate) master: OwnedFd,
    /// The step's.
    pub(crate) slave: OwnedFd,
}

/// Opens a new one.
pub(crate) fn open(terminals: BorrowedFd<'_>, size: WindowSize, identity: &Identity) -> Result<Terminal, Error> {
    let make = || {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let master = rustix::fs::openat(terminals, c"ptmx", flags, Mode::empty())
            .call(|| "openat(/dev/pts, \"ptmx\", O_RDWR | O_NOCTTY)".to_owned())?;
        rustix::pty::unlockpt(&master).call(|| "ioctl(TIOCSPTLCK, 0)".to_owned())?;
        // By descriptor: a name could be somebody else's by the time it is opened.
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).call(|| "ioctl(TIOCGPTPEER, O_RDWR)".to_owned())?;
        let size = rustix::termios::Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&slave, size).call(|| format!("ioctl(TIOCSWINSZ, {size:?})"))?;
        if identity.uid != 0 {
            rustix::fs::fchown(&slave, Some(Uid::from_raw(identity.uid)), None)
                .call(|| format!("fchown(terminal, {})", identity.uid))?;
        }
        Ok(Terminal { master, slave })
    };
    make().doing("make a terminal")
}
