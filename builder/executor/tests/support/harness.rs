//! A test runner for tests that need the launcher, which must be started by `main` before there are threads.
//!
//! It speaks as much of libtest's protocol as cargo and nextest use, one test per process under the latter.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// A test by name.
pub(crate) type Test<T> = (&'static str, fn(&T));

/// Runs what the arguments ask for, and ends the process.
#[allow(clippy::print_stdout, reason = "it is the protocol")]
pub(crate) fn main<T>(tests: &[Test<T>], start: impl FnOnce() -> Result<T, String>) -> ! {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    if has("--list") {
        if !has("--ignored") {
            for (name, _) in tests {
                println!("{name}: test");
            }
        }
        std::process::exit(0);
    }
    let filters: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with("--")).collect();
    let chosen = |name: &str| {
        filters.is_empty()
            || filters.iter().any(|filter| if has("--exact") { name == *filter } else { name.contains(*filter) })
    };
    let chosen: Vec<&Test<T>> = tests.iter().filter(|(name, _)| chosen(name)).collect();
    println!("running {} tests", chosen.len());
    let context = match start() {
        Ok(context) => context,
        Err(reason) => {
            println!("SKIPPED: {reason}");
            eprintln!("SKIPPED: none of {} tests can run here: {reason}", chosen.len());
            println!("test result: ok. 0 passed; 0 failed; {} ignored; 0 measured; 0 filtered out", chosen.len());
            std::process::exit(0);
        }
    };
    let mut failed = 0;
    for (name, test) in &chosen {
        let outcome = catch_unwind(AssertUnwindSafe(|| test(&context)));
        println!("test {name} ... {}", if outcome.is_ok() { "ok" } else { "FAILED" });
        failed += usize::from(outcome.is_err());
    }
    drop(context);
    let passed = chosen.len() - failed;
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    let filtered = tests.len() - chosen.len();
    println!(
        "test result: {verdict}. {passed} passed; {failed} failed; 0 ignored; 0 measured; {filtered} filtered out"
    );
    std::process::exit(if failed == 0 { 0 } else { 101 });
}
