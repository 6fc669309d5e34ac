//! Real steps: what a process in the sandbox sees, may do, and leaves behind.

#[path = "support/harness.rs"]
mod harness;
#[path = "support/lab.rs"]
mod lab;

use executor::Launcher;
use lab::Lab;

mod basics {
    use super::lab::Lab;

    pub fn exit_codes_and_signals_are_told(lab: &Lab) {
        for (script, code, signal) in
            [("exit 0", Some(0), None), ("exit 7", Some(7), None), ("kill -0 1", Some(0), None)]
        {
            let done = lab.run(lab.script(script)).expect(script);
            assert_eq!((done.status.code, done.status.signal), (code, signal), "{script}: {done:?}");
        }
    }
}

fn main() {
    let launcher = Launcher::start();
    let tests: &[harness::Test<Lab>] = &[("exit_codes_and_signals_are_told", basics::exit_codes_and_signals_are_told)];
    harness::main(tests, || match launcher {
        Ok(launcher) => Lab::new(launcher),
        Err(error) => Err(error.to_string()),
    })
}
