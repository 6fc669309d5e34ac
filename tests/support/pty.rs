//! A person at a terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// A program that has a terminal, on which something is typed. Dropped, it is killed.
pub struct Pty {
    master: OwnedFd,
    printed: Arc<Mutex<Vec<u8>>>,
    child: Child,
    /// How much of what was printed has been waited for.
    seen: usize,
}

const PATIENCE: Duration = Duration::from_secs(60);

impl Pty {
    /// Starts `command` on a terminal of 24 lines and 80 columns, as the leader of its session.
    pub fn start(command: Command) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudo-terminal");
        grantpt(&master).expect("ours");
        unlockpt(&master).expect("ours");
        let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("the other side");
        let mut wrapped = Command::new("setsid");
        wrapped.args(["--ctty", "--wait"]).arg(command.get_program()).args(command.get_args()).env_clear();
        for (name, value) in command.get_envs() {
            if let Some(value) = value {
                wrapped.env(name, value);
            }
        }
        if let Some(directory) = command.get_current_dir() {
            wrapped.current_dir(directory);
        }
        let end = || Stdio::from(slave.try_clone().expect("a descriptor is free"));
        let child = wrapped.stdin(end()).stdout(end()).stderr(end()).spawn().expect("util-linux has setsid");
        drop((wrapped, slave));
        let printed = Arc::new(Mutex::new(Vec::new()));
        let pty = Self { master, printed: Arc::clone(&printed), child, seen: 0 };
        pty.resize(24, 80);
        let mut reader = File::from(pty.master.try_clone().expect("a descriptor is free"));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = reader.read(&mut buffer) {
                printed.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..length]);
            }
        });
        pty
    }

    pub fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.master, size).expect("our terminal");
    }

    /// Types some keys.
    pub fn types(&self, keys: &str) {
        let mut master = File::from(self.master.try_clone().expect("a descriptor is free"));
        master.write_all(keys.as_bytes()).expect("our terminal");
    }

    /// All that was printed so far.
    pub fn printed(&self) -> String {
        String::from_utf8_lossy(&self.printed.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// Waits until something new contains `text`.
    #[track_caller]
    pub fn sees(&mut self, text: &str) {
        let started = Instant::now();
        loop {
            let printed = self.printed();
            if let Some(at) = printed.get(self.seen..).and_then(|new| new.find(text)) {
                self.seen += at + text.len();
                return;
            }
            assert!(started.elapsed() < PATIENCE, "no {text:?} in time; so far:\n{printed}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for the end, and answers the exit code.
    #[track_caller]
    pub fn ends(&mut self) -> Option<i32> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("our child") {
                return status.code();
            }
            assert!(started.elapsed() < PATIENCE, "it does not end; so far:\n{}", self.printed());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
