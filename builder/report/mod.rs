//! The only place where errors are printed.
//!
//! Libraries return exact errors; a command turns the one it ends with into a [`Report`], here, where kind, hint and exit code
//! are decided. Nothing is printed before `main` has the report in its hands.

mod excerpt;

use std::error::Error;
use std::io::{self, IsTerminal as _, Write};

use frontend::{Diagnostics, SourceFile};
use registry::CredentialsError;
use snapshotter::StoreError;

use crate::progress::{self, FailedVertex, Mode, Summary, neutralise_lines};

pub use excerpt::Excerpt;

/// A build or command failed.
pub const EXIT_FAILURE: u8 = 1;
/// A step would have to run, and must not.
pub const EXIT_MISS: u8 = 3;
/// A registry failed, refused or does not have it.
pub const EXIT_REGISTRY: u8 = 4;
/// A person gave it up.
pub const EXIT_CANCELLED: u8 = 130;

/// Problems of one Dockerfile that are shown; of more, the number is.
const SHOWN_PROBLEMS: usize = 20;

/// Why a command failed, as it will be shown.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// What failed, without a full stop.
    pub message: String,
    /// Why, from the nearest cause to the deepest.
    pub causes: Vec<String>,
    /// Lines of the Dockerfile that are to blame.
    pub excerpts: Vec<Excerpt>,
    /// What the failing step printed last.
    pub log: Option<StepLog>,
    /// What to do about it.
    pub hint: Option<String>,
    /// For the process.
    pub exit_code: u8,
}

/// The last lines of a step's output.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StepLog {
    /// The step, as progress names it.
    pub name: String,
    /// Its last lines.
    pub lines: Vec<String>,
    /// How many lines came before these.
    pub omitted: u64,
}

impl Report {
    /// A failure with no deeper cause.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            causes: Vec::new(),
            excerpts: Vec::new(),
            log: None,
            hint: None,
            exit_code: EXIT_FAILURE,
        }
    }

    /// An error and its causes. A registry's error among them decides the exit code and the hint.
    #[must_use]
    pub fn of(error: &(dyn Error + 'static)) -> Self {
        let mut report = Self::new(error.to_string());
        report.classify(error);
        let mut next = error.source();
        while let Some(cause) = next {
            report.caused_by(cause.to_string());
            report.classify(cause);
            next = cause.source();
        }
        report
    }

    /// The problems that the frontend found in `source`.
    #[must_use]
    pub fn of_dockerfile(source: &SourceFile, problems: &Diagnostics) -> Self {
        let excerpt = |problem: &frontend::Diagnostic| Excerpt::of_problem(source, problem);
        let excerpts = problems.0.iter().take(SHOWN_PROBLEMS).map(excerpt).collect();
        let mut report = match problems.0.as_slice() {
            [] => Self::new(format!("failed to solve: {} cannot be used", source.name())),
            [problem] => {
                let at = source.line_column(problem.span.start());
                let place = format!("{}:{}:{}", source.name(), at.line, at.column);
                let mut report = Self::new(format!("failed to solve: {place}: {}", problem.message));
                report.hint.clone_from(&problem.hint);
                report
            }
            many => Self::new(format!("failed to solve: {} problems in {}", many.len(), source.name())),
        };
        report.excerpts = excerpts;
        if let [only] = report.excerpts.as_mut_slice() {
            // Said already.
            only.message = None;
            only.hint = None;
        }
        report
    }

    /// Adds a cause, unless what stands before it says so already.
    pub fn caused_by(&mut self, cause: String) {
        let said = self.causes.last().unwrap_or(&self.message);
        if !cause.is_empty() && !said.ends_with(&cause) {
            self.causes.push(cause);
        }
    }

    /// The same with advice; advice that is there already stays.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint.get_or_insert_with(|| hint.into());
        self
    }

    /// The same with another exit code.
    #[must_use]
    pub fn with_exit_code(mut self, exit_code: u8) -> Self {
        self.exit_code = exit_code;
        self
    }

    /// The same with lines of a Dockerfile.
    #[must_use]
    pub fn with_excerpt(mut self, excerpt: Excerpt) -> Self {
        self.excerpts.push(excerpt);
        self
    }

    /// The same with the output of the step that failed, as far as `mode` has not just shown it.
    #[must_use]
    pub fn with_summary(mut self, summary: &Summary, mode: Mode) -> Self {
        if let Some(failed) = &summary.failed {
            self.log = StepLog::of(failed, mode);
        }
        self
    }

    /// Prints it on stderr; gives the exit code back.
    #[must_use]
    pub fn emit(&self) -> u8 {
        let stderr = io::stderr();
        let colour = stderr.is_terminal() && progress::colour_allowed();
        // Where errors cannot be printed there is nobody to tell.
        let _ = self.print(&mut stderr.lock(), colour);
        self.exit_code
    }

    /// Prints it on `out`, in one piece.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn print(&self, out: &mut impl Write, colour: bool) -> io::Result<()> {
        let mut text = String::new();
        if let Some(log) = &self.log {
            log.render(&mut text);
        }
        for excerpt in &self.excerpts {
            excerpt.render(&mut text, colour);
        }
        let mut message = neutralise_lines(&self.message);
        for cause in &self.causes {
            message.push_str(": ");
            message.push_str(&neutralise_lines(cause));
        }
        text.push_str(&painted("ERROR:", "\x1b[1;31m", colour));
        text.push_str(&format!(" {message}\n"));
        if let Some(hint) = &self.hint {
            render_hint(&mut text, hint, colour);
        }
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    fn classify(&mut self, error: &(dyn Error + 'static)) {
        let registry_error = error
            .downcast_ref::<registry::Error>()
            .or_else(|| error.downcast_ref::<Box<registry::Error>>().map(Box::as_ref));
        if let Some(error) = registry_error {
            self.exit_code = registry_exit_code(error);
            self.hint = self.hint.take().or_else(|| registry_hint(error));
        }
        if is_full(error) {
            let hint = "the disk is full: rbuild prune takes space back, rbuild du says what needs it";
            self.hint.get_or_insert_with(|| hint.to_owned());
        }
    }
}

/// Whether an error says that there is no space left.
fn is_full(error: &(dyn Error + 'static)) -> bool {
    use io::ErrorKind::{QuotaExceeded, StorageFull};
    let of_disk =
        error.downcast_ref::<io::Error>().is_some_and(|error| matches!(error.kind(), StorageFull | QuotaExceeded));
    let of_store = matches!(error.downcast_ref::<snapshotter::StoreError>(), Some(error) if error.is_full());
    of_disk || of_store
}

impl StepLog {
    /// What is to be shown of a failed vertex. Plain logs have just shown all; some of it is repeated, so that the end of a
    /// log is enough to see why the build failed.
    fn of(failed: &FailedVertex, mode: Mode) -> Option<Self> {
        let most = match mode {
            Mode::Plain | Mode::RawJson | Mode::Auto => 10,
            Mode::Tty | Mode::Quiet => usize::MAX,
        };
        let skipped = failed.log_tail.len().saturating_sub(most);
        let lines = failed.log_tail[skipped..].to_vec();
        let omitted = failed.log_lines.saturating_sub(lines.len() as u64);
        (!lines.is_empty()).then(|| Self { name: failed.name.clone(), lines, omitted })
    }

    fn render(&self, text: &mut String) {
        text.push_str(&format!("------\n > {}:\n", neutralise_lines(&self.name)));
        if self.omitted > 0 {
            text.push_str(&format!("[{} lines before these]\n", self.omitted));
        }
        for line in &self.lines {
            text.push_str(&neutralise_lines(line));
            text.push('\n');
        }
        text.push_str("------\n");
    }
}

fn render_hint(text: &mut String, hint: &str, colour: bool) {
    text.push_str(&painted("hint:", "\x1b[1;36m", colour));
    text.push_str(&format!(" {}\n", neutralise_lines(hint)));
}

fn painted(text: &str, sequence: &str, colour: bool) -> String {
    if colour { format!("{sequence}{text}\x1b[0m") } else { text.to_owned() }
}

/// What is wrong on this side is an ordinary failure.
fn registry_exit_code(error: &registry::Error) -> u8 {
    use registry::Error as E;
    match error {
        E::Reference(_) | E::Credentials(_) | E::Settings { .. } | E::Source { .. } => EXIT_FAILURE,
        _ => EXIT_REGISTRY,
    }
}

fn registry_hint(error: &registry::Error) -> Option<String> {
    use registry::Error as E;
    match error {
        E::Unauthorized { asked, authenticated: false, .. } => Some(format!(
            "if it is private, log in: rbuild login {}; otherwise check the name",
            login_server(&asked.host)
        )),
        E::Unauthorized { asked, authenticated: true, .. } => {
            Some(format!("log in again: rbuild login {}", login_server(&asked.host)))
        }
        E::Denied { .. } => Some("check the name, and that your account may use this repository".into()),
        E::NotFound { .. } => Some("check the name and the tag".into()),
        E::TooManyRequests { asked, .. } => Some(format!(
            "registries allow more to those who are logged in (rbuild login {}), and a mirror in the configuration helps",
            login_server(&asked.host)
        )),
        // Said by the server, of ours.
        E::Tls { asked, cause } if cause.contains("received fatal alert") && cause.contains("Certificate") => {
            Some(format!(
                "the registry wants to see a certificate that it knows: client.cert and client.key in certs.d/{0}, as docker \
                 has them, or key and cert under [[registry.{0:?}.keypair]] in the configuration file",
                asked.host
            ))
        }
        E::Tls { asked, .. } => Some(format!(
            "for a private certificate authority set ca, for plain HTTP set http = true, under [registry.{:?}] in the \
             configuration file",
            asked.host
        )),
        _ => None,
    }
}

/// The name by which people log in.
fn login_server(host: &str) -> &str {
    if host == "registry-1.docker.io" { registry::DOCKER_HUB } else { host }
}

impl From<registry::Error> for Report {
    fn from(error: registry::Error) -> Self {
        Self::of(&error)
    }
}

impl From<registry::ReferenceError> for Report {
    fn from(error: registry::ReferenceError) -> Self {
        Self::of(&error)
    }
}

impl From<CredentialsError> for Report {
    fn from(error: CredentialsError) -> Self {
        Self::of(&error)
    }
}

impl From<StoreError> for Report {
    fn from(error: StoreError) -> Self {
        Self::of(&error)
    }
}

impl From<io::Error> for Report {
    fn from(error: io::Error) -> Self {
        Self::of(&error)
    }
}

#[cfg(test)]
mod tests;
