//! `RUN --mount=type=ssh`, with OpenSSH's own programs on both sides.

use std::fs;
use std::path::Path;

use crate::support::{Context, Run, TestEnv, require};

const PROGRAMS: &[&str] = &["ssh-keygen", "ssh-add", "ssh-agent"];

/// Puts a program of this machine's into a context, with the libraries it wants.
fn pack(context: &Context, program: &str) {
    let found = Run::new("sh").args(["-c", "command -v \"$0\"", program]).ok();
    let libraries = Run::new("ldd").arg(found.line()).ok();
    let paths = libraries.stdout.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned);
    for path in paths.chain([found.line().to_owned()]) {
        let to = context.path(&format!("root{path}"));
        fs::create_dir_all(to.parent().expect("a file has a parent")).expect("ours");
        fs::copy(&path, to).expect("readable");
    }
}

fn generate(env: &TestEnv, name: &str, args: &[&str]) -> String {
    let path = env.path(name);
    Run::new("ssh-keygen").args(["-q", "-N", "", "-C", name, "-f"]).arg(&path).args(args).ok();
    path.display().to_string()
}

/// A context with OpenSSH's client programs, and a base that has them.
fn with_programs(env: &TestEnv, steps: &str) -> Context {
    let text = format!("FROM busybox\nCOPY root /\nRUN echo 'root:x:0:0::/root:/bin/sh' > /etc/passwd\n{steps}");
    let context = env.dockerfile("c", &text);
    pack(&context, "ssh-add");
    pack(&context, "ssh-keygen");
    context
}

/// No file in a directory holds the text.
fn nowhere(directory: &Path, text: &str) {
    Run::new("grep").args(["-rlF", "-e", text]).arg(directory).run().exits(1);
}

#[test]
fn keys_of_files_sign_and_are_never_there() {
    if !require(PROGRAMS) || !require(&["openssl"]) {
        return;
    }
    let env = TestEnv::busybox();
    let keys = [
        generate(&env, "ed25519", &["-t", "ed25519"]),
        generate(&env, "p256", &["-t", "ecdsa", "-b", "256"]),
        generate(&env, "p384", &["-t", "ecdsa", "-b", "384", "-m", "PEM"]),
        generate(&env, "rsa", &["-t", "rsa", "-b", "2048"]),
        generate(&env, "pem", &["-t", "rsa", "-b", "2048", "-m", "PEM"]),
        generate(&env, "pkcs8", &["-t", "rsa", "-b", "3072", "-m", "PKCS8"]),
    ];
    let steps = "COPY *.pub /keys/\nRUN --mount=type=ssh,id=mine ssh-add -l && cd /keys && for key in *.pub; do \\\n\
                 echo data > data && ssh-keygen -Y sign -f $key -n test data && \\\n\
                 ssh-keygen -Y check-novalidate -n test -s data.sig < data && rm data.sig || exit 1; done\n\
                 RUN --mount=type=ssh,id=mine ! ssh-add -D && ! ssh-add -x </dev/null && ! ssh-add /etc/passwd && ssh-add -l | wc -l\n\
                 RUN [ -z \"$SSH_AUTH_SOCK\" ] && ! ls /run/buildkit 2>/dev/null\n";
    let context = with_programs(&env, steps);
    for key in &keys {
        let name = Path::new(key).file_name().expect("a name").to_string_lossy().into_owned();
        fs::copy(format!("{key}.pub"), context.path(&format!("{name}.pub"))).expect("made");
    }
    let spec = format!("mine={}", keys.join(","));
    let out = env.build(&context, &["--ssh", &spec]).ok();
    for wanted in ["(ED25519)", "256 SHA256", "384 SHA256", "2048 SHA256", "3072 SHA256", " 6\n"] {
        assert!(out.stderr.contains(wanted), "{wanted:?} is not in\n{}", out.stderr);
    }
    assert_eq!(out.stderr.matches("Good \"test\" signature").count(), keys.len(), "{}", out.stderr);
    for key in &keys {
        let text = fs::read_to_string(key).expect("made");
        let public = fs::read_to_string(format!("{key}.pub")).expect("made");
        let mut private = text.lines().filter(|line| line.len() >= 64 && !public.contains(line));
        nowhere(&env.store(), private.next_back().expect("a line that is in the private key only"));
    }
    // The step is not another one with another key.
    assert_eq!(env.build(&context, &["--ssh", &format!("mine={}", keys[0])]).ok().cached(), 6);
}

#[test]
fn the_callers_agent_is_asked_for_no_more_than_signatures() {
    if !require(PROGRAMS) {
        return;
    }
    let env = TestEnv::busybox();
    let key = generate(&env, "key", &["-t", "ed25519"]);
    let socket = env.path("agent").display().to_string();
    let agent = Run::new("ssh-agent").args(["-D", "-a", &socket]).spawn();
    while !Path::new(&socket).exists() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    Run::new("ssh-add").arg(&key).env("SSH_AUTH_SOCK", &socket).ok();
    let steps = "RUN --mount=type=ssh,mode=0660,uid=1000,gid=55,target=/agent [ \"$SSH_AUTH_SOCK\" = /agent ] && \\\n\
                 stat -c '%a %u %g' /agent && ssh-add -l && ! ssh-add -D && ! ssh-add -x < /dev/null; ssh-add -l\n\
                 USER web\nRUN --mount=type=ssh,uid=1000 ssh-add -l\nRUN --mount=type=ssh,uid=0 ! ssh-add -l\n\
                 RUN --mount=type=ssh,id=other ! ssh-add -l\n";
    let context = with_programs(&env, steps);
    let text = fs::read_to_string(context.path("Dockerfile"))
        .expect("ours")
        .replace("root:x:0:0::/root:/bin/sh'", "web:x:1000:1000::/:/bin/sh'");
    context.write("Dockerfile", text);
    let out = env.build(&context, &["--ssh", "default"]).env("SSH_AUTH_SOCK", &socket).ok();
    assert!(out.stderr.contains("660 1000 55"), "{}", out.stderr);
    assert_eq!(out.stderr.matches("(ED25519)").count(), 3, "{}", out.stderr);
    // It still has its key and no password.
    Run::new("ssh-add").arg("-l").env("SSH_AUTH_SOCK", &socket).ok().contains("ED25519");
    drop(agent);
    let required = env.dockerfile("r", "FROM busybox\nRUN --mount=type=ssh,required=true true\n");
    env.build(&required, &[]).run().exits(1).contains("no ssh agent \"default\"").contains("--ssh default");
    env.build(&required, &["--ssh", "default"]).run().exits(2).contains("SSH_AUTH_SOCK");
    let protected = env.path("protected").display().to_string();
    Run::new("ssh-keygen").args(["-q", "-N", "secret", "-f", &protected]).ok();
    env.build(&required, &["--ssh", &format!("default={protected}")]).run().exits(2).contains("passphrase");
}
