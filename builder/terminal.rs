//! The person's own terminal in raw mode, and given back whatever happens.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Mutex, Once, PoisonError};

use executor::WindowSize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// As the terminal was before.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Raw mode, until this is dropped or the program panics.
#[derive(Debug)]
pub struct Raw(());

impl Raw {
    /// Puts the terminal on standard input into raw mode: what is typed goes to the program inside, Ctrl-C too.
    ///
    /// # Errors
    /// Standard input is no terminal.
    pub fn enter() -> io::Result<Self> {
        static HOOK: Once = Once::new();
        let stdin = io::stdin();
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        HOOK.call_once(|| {
            // A release build aborts on panic, and drops nothing.
            let next = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                give_back();
                next(panic);
            }));
        });
        let guard = Self(());
        tcsetattr(&stdin, OptionalActions::Drain, &raw)?;
        Ok(guard)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        give_back();
    }
}

fn give_back() {
    if let Some(before) = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // A terminal that is gone needs nothing.
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &before);
    }
}

/// The size of the person's terminal, or the usual one where there is none.
#[must_use]
pub fn window_size() -> WindowSize {
    let size = [tcgetwinsize(io::stdout()), tcgetwinsize(io::stdin()), tcgetwinsize(io::stderr())];
    match size.into_iter().flatten().find(|size| size.ws_row > 0 && size.ws_col > 0) {
        Some(size) => WindowSize { rows: size.ws_row, columns: size.ws_col },
        None => WindowSize { rows: 24, columns: 80 },
    }
}

/// Whether somebody types on standard input.
#[must_use]
pub fn on_stdin() -> bool {
    io::stdin().is_terminal()
}

/// Whether somebody reads standard output.
#[must_use]
pub fn on_stdout() -> bool {
    io::stdout().is_terminal()
}

/// Passes on what is typed, on a thread that ends with the program.
///
/// # Errors
/// Standard input is closed.
pub fn pass_input(to: OwnedFd) -> io::Result<()> {
    let mut from = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut to = File::from(to);
    std::thread::Builder::new().name("typed".into()).spawn(move || io::copy(&mut from, &mut to))?;
    Ok(())
}

/// Passes on what the program inside prints, until it has ended, for which its terminal answers with an error. The thread
/// says when.
///
/// # Errors
/// No thread can be started.
pub fn pass_output(from: OwnedFd) -> io::Result<tokio::sync::oneshot::Receiver<()>> {
    let (done, ended) = tokio::sync::oneshot::channel();
    let mut from = File::from(from);
    std::thread::Builder::new().name("printed".into()).spawn(move || {
        let mut buffer = [0; 16 << 10];
        let mut out = io::stdout();
        loop {
            match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => {
                    // Nobody reads any more: the program may go on, its terminal must not fill up.
                    let _ = out.write_all(&buffer[..length]).and_then(|()| out.flush());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        let _ = done.send(());
    })?;
    Ok(ended)
}
