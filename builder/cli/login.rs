//! `rbuild login` and `rbuild logout`

use std::io::{self, BufRead as _, IsTerminal as _, Read, Write as _};
use std::process::ExitCode;

use registry::{Credential, DOCKER_HUB, DockerCredentials, Stored, registry_name};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use crate::report::{EXIT_CANCELLED, EXIT_REGISTRY, Report};
use crate::session::Session;

/// Log in to a registry
#[derive(clap::Args, Debug, Clone)]
pub struct LoginArgs {
    /// Host of the registry [default: docker.io]
    #[arg(value_name = "SERVER")]
    pub server: Option<String>,
    /// User name
    #[arg(short, long)]
    pub username: Option<String>,
    /// Password; --password-stdin keeps it out of the process list
    #[arg(short, long, conflicts_with = "password_stdin")]
    pub password: Option<String>,
    /// Read the password from standard input
    #[arg(long)]
    pub password_stdin: bool,
}

/// Log out of a registry
#[derive(clap::Args, Debug, Clone)]
pub struct LogoutArgs {
    /// Host of the registry [default: docker.io]
    #[arg(value_name = "SERVER")]
    pub server: Option<String>,
}

/// Checks a credential with the registry and keeps it where docker keeps it.
///
/// # Errors
/// The registry refuses it, or there is no place for it.
pub async fn login(args: &LoginArgs, session: &Session) -> Result<ExitCode, Report> {
    let server = server(args.server.as_deref())?;
    if args.password.is_some() {
        eprintln!("WARNING: a password on the command line can be seen by others; use --password-stdin");
    }
    let failed = |error: io::Error| Report::of(&error);
    let username = match &args.username {
        Some(name) => name.clone(),
        None if args.password_stdin => return Err(Report::new("--password-stdin needs --username").with_exit_code(2)),
        None => ask("Username: ", true).map_err(failed)?,
    };
    let password = if let Some(password) = &args.password {
        password.clone()
    } else if args.password_stdin {
        let mut text = String::new();
        io::stdin().lock().read_to_string(&mut text).map_err(failed)?;
        text.trim_end_matches(['\r', '\n']).to_owned()
    } else {
        ask("Password: ", false).map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => failed(error).with_exit_code(EXIT_CANCELLED),
            _ => failed(error),
        })?
    };
    if username.is_empty() || password.is_empty() {
        return Err(Report::new("a user name and a password are needed").with_exit_code(2));
    }
    let credential = Credential::password(username, password);
    let checked = session.remote.client.login(&server, credential.clone()).await;
    checked.map_err(|error| Report::of(&error).with_exit_code(EXIT_REGISTRY))?;
    let stored = DockerCredentials::from_env().store(&server, &credential).await;
    if let Stored::PlainFile(path) = stored.map_err(|error| Report::of(&error))? {
        eprintln!(
            "WARNING: the password is stored unencrypted in {}; a credential helper (credsStore) avoids that",
            path.display()
        );
    }
    eprintln!("Login Succeeded");
    Ok(ExitCode::SUCCESS)
}

/// Forgets what `login` kept.
///
/// # Errors
/// The credentials file or helper.
pub async fn logout(args: &LogoutArgs) -> Result<ExitCode, Report> {
    let server = server(args.server.as_deref())?;
    let erased = DockerCredentials::from_env().erase(&server).await.map_err(|error| Report::of(&error))?;
    match erased {
        true => eprintln!("Removed login credentials for {server}"),
        false => eprintln!("Not logged in to {server}"),
    }
    Ok(ExitCode::SUCCESS)
}

fn server(text: Option<&str>) -> Result<String, Report> {
    registry_name(text.unwrap_or(DOCKER_HUB)).map_err(|error| Report::of(&error).with_exit_code(2))
}

/// Asks on the terminal, without showing what is typed unless `echo`.
fn ask(prompt: &str, echo: bool) -> io::Result<String> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return Err(io::Error::other("there is no terminal to ask on: use --username and --password-stdin"));
    }
    eprint!("{prompt}");
    io::stderr().flush()?;
    if echo {
        let mut line = String::new();
        stdin.lock().read_line(&mut line)?;
        return Ok(line.trim_end_matches(['\r', '\n']).to_owned());
    }
    let before = tcgetattr(&stdin)?;
    let mut silent = before.clone();
    // Ctrl-C is read as a key: a signal would end the program and leave the terminal silent.
    silent.local_modes.remove(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG);
    tcsetattr(&stdin, OptionalActions::Flush, &silent)?;
    let typed = typed(&mut stdin.lock());
    tcsetattr(&stdin, OptionalActions::Now, &before)?;
    eprintln!();
    typed
}

/// A line of keys as they come, edited as a terminal would.
fn typed(keys: &mut impl Read) -> io::Result<String> {
    const INTERRUPT: u8 = 0x03;
    const END: u8 = 0x04;
    const QUIT: u8 = 0x1c;
    let mut line = Vec::new();
    let mut key = [0];
    loop {
        match keys.read(&mut key) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        match key[0] {
            b'\r' | b'\n' => break,
            END if line.is_empty() => break,
            INTERRUPT | QUIT => return Err(io::Error::new(io::ErrorKind::Interrupted, "interrupted")),
            0x08 | 0x7f => {
                // All bytes of one character.
                while line.pop().is_some_and(|byte: u8| byte & 0xc0 == 0x80) {}
            }
            // Ctrl-U
            0x15 => line.clear(),
            byte => line.push(byte),
        }
    }
    String::from_utf8(line).map_err(|_| io::Error::other("what was typed is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typed_keys_are_edited() {
        for (keys, line) in [
            ("secret\r", "secret"),
            ("secres\x7ft\nrest", "secret"),
            ("gé\x7fo\n", "go"),
            ("wrong\x15right\n", "right"),
            ("\x7f\x7fa\n", "a"),
            ("a\x04b\n", "a\x04b"),
            ("\x04", ""),
        ] {
            assert_eq!(typed(&mut keys.as_bytes()).unwrap(), line, "{keys:?}");
        }
        assert_eq!(typed(&mut &b"sec\x03"[..]).unwrap_err().kind(), io::ErrorKind::Interrupted);
    }
}
