//! What is built.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::engines::{Place, quietly};

/// What the store holds when a run begins.
#[derive(Clone, Copy)]
pub(crate) enum State {
    /// Nothing.
    Empty,
    /// What the runs before left.
    Warm,
}

/// What a build is to give.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    /// The engine keeps it.
    Kept,
    /// An OCI archive, compressed with gzip.
    Archive,
    /// An image in the registry.
    Pushed,
    /// An image of the registry as an OCI layout, without a build.
    Fetched,
    /// An OCI layout in the registry, without a build.
    Sent,
}

/// One thing that people wait for.
pub(crate) struct Scene {
    pub(crate) name: &'static str,
    /// For people.
    pub(crate) about: &'static str,
    pub(crate) state: State,
    pub(crate) result: Output,
    pub(crate) needs_registry: bool,
    /// Makes the context, once.
    pub(crate) prepare: fn(&Place) -> Result<(), String>,
    /// Before each run, with its number.
    pub(crate) before: fn(&Place, usize) -> Result<(), String>,
}

pub(crate) fn all() -> Vec<Scene> {
    let scene = Scene {
        name: "noop",
        about: "nothing changed: 10 RUN and COPY of 100 files",
        state: State::Warm,
        result: Output::Kept,
        needs_registry: false,
        prepare: |place| {
            files(&place.context.join("files"), 100, 10)?;
            dockerfile(place, &(steps(9) + "COPY files /files\n"))
        },
        before: |_, _| Ok(()),
    };
    vec![
        Scene { ..scene },
        Scene {
            name: "steps",
            about: "20 tiny RUN steps",
            prepare: |place| busybox(&place.context),
            before: |place, turn| dockerfile(place, &steps(19).replace("RUN echo", &format!("RUN echo {turn}"))),
            ..scene
        },
        Scene {
            name: "ctx-cold",
            about: "COPY of 20,000 files of 4 KiB, empty store",
            state: State::Empty,
            prepare: many_files,
            ..scene
        },
        Scene { name: "ctx-noop", about: "the same again, nothing changed", prepare: many_files, ..scene },
        Scene {
            name: "ctx-one",
            about: "the same again, one file changed",
            prepare: many_files,
            before: |place, turn| write(&place.context.join("files/7/777"), format!("turn {turn}").as_bytes()),
            ..scene
        },
        Scene {
            name: "export",
            about: "a changed file of 400 MiB, half of it random: COPY, OCI archive with gzip",
            result: Output::Archive,
            prepare: large_file,
            before: touch_large_file,
            ..scene
        },
        Scene {
            name: "push",
            about: "the same, pushed to a registry on loopback",
            result: Output::Pushed,
            needs_registry: true,
            prepare: large_file,
            before: touch_large_file,
            ..scene
        },
        Scene {
            name: "pull",
            about: "a base of 10 layers of 2,500 files and 50 MiB, empty store",
            state: State::Empty,
            needs_registry: true,
            prepare: |place| {
                base_of_ten_layers(place)?;
                let text = format!("FROM {}/ten-layers\nRUN [\"/bin/busybox\", \"true\"]\n", place.registry);
                write(&place.context.join("Dockerfile"), text.as_bytes())
            },
            ..scene
        },
        Scene {
            name: "fetch",
            about: "an image of 10 layers, 500 MiB unpacked, from the registry as it is",
            result: Output::Fetched,
            state: State::Empty,
            needs_registry: true,
            prepare: base_of_ten_layers,
            ..scene
        },
        Scene {
            name: "send",
            about: "the same image from an OCI layout to a repository that has nothing of it",
            result: Output::Sent,
            needs_registry: true,
            prepare: |place| {
                base_of_ten_layers(place)?;
                let mut copy = Command::new(env!("CARGO_BIN_EXE_rbuild"));
                copy.arg("--root").arg(place.store.with_extension("layout-store")).args(["copy", "-q"]);
                copy.arg(format!("{}/ten-layers", place.registry));
                quietly(copy.arg(format!("oci:{}", place.context.join("image").display())))
            },
            ..scene
        },
        Scene {
            name: "parallel",
            about: "4 independent stages of `sleep 1`, joined",
            prepare: |place| busybox(&place.context),
            before: |place, turn| {
                let mut text = base("AS base");
                for stage in 0..4 {
                    text += &format!("FROM base AS s{stage}\nRUN sleep 1; echo {turn} > /s{stage}\n");
                }
                text += "FROM base\n";
                for stage in 0..4 {
                    text += &format!("COPY --from=s{stage} /s{stage} /s{stage}\n");
                }
                write(&place.context.join("Dockerfile"), text.as_bytes())
            },
            ..scene
        },
        Scene {
            name: "apt",
            about: "Debian with apt-get update and apt-get install vim",
            needs_registry: true,
            prepare: debian,
            before: |place, turn| {
                let text = format!(
                    "FROM {}/debian\nRUN : {turn}; apt-get update && apt-get install -y --no-install-recommends vim\n",
                    place.registry
                );
                write(&place.context.join("Dockerfile"), text.as_bytes())
            },
            ..scene
        },
    ]
}

pub(crate) fn write(path: &Path, content: &[u8]) -> Result<(), String> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(|error| format!("{}: {error}", parent.display()))?;
    }
    fs::write(path, content).map_err(|error| format!("{}: {error}", path.display()))
}

/// Debian's busybox-static is all that small images need.
pub(crate) fn busybox(context: &Path) -> Result<(), String> {
    fs::create_dir_all(context)
        .and_then(|()| fs::copy("/bin/busybox", context.join("busybox")))
        .map(drop)
        .map_err(|error| format!("/bin/busybox (Debian's busybox-static): {error}"))
}

fn base(name: &str) -> String {
    format!("FROM scratch {name}\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n")
}

fn steps(count: usize) -> String {
    (0..count).fold(base(""), |text, n| text + &format!("RUN echo {n} > /r{n}\n"))
}

fn dockerfile(place: &Place, text: &str) -> Result<(), String> {
    busybox(&place.context)?;
    write(&place.context.join("Dockerfile"), text.as_bytes())
}

/// `count` files of `size` bytes in directories of 100.
pub(crate) fn files(directory: &Path, count: usize, size: usize) -> Result<(), String> {
    for number in 0..count {
        let mut content = format!("file {number}\n").into_bytes();
        content.resize(size, b'.');
        write(&directory.join(format!("{}/{}", number / 100, number)), &content)?;
    }
    Ok(())
}

fn many_files(place: &Place) -> Result<(), String> {
    files(&place.context.join("files"), 20_000, 4096)?;
    write(&place.context.join("Dockerfile"), b"FROM scratch\nCOPY files /files\n")
}

/// A generator of numbers (xorshift64*): its bytes do not compress.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Written piece by piece: what this process takes, the kernel counts as a peak of the processes that it starts.
fn large_file(place: &Place) -> Result<(), String> {
    use std::io::Write;
    const PIECE: usize = 1 << 20;
    let text = b"The other half reads like what images are full of: words, which come again and again.\n";
    let text: Vec<u8> = text.iter().copied().cycle().take(PIECE).collect();
    let path = place.context.join("large");
    let written = fs::File::create(&path).and_then(|mut file| {
        (0..200).try_for_each(|piece| file.write_all(&noise(2 * piece + 1, PIECE)))?;
        (0..200).try_for_each(|_| file.write_all(&text))
    });
    written.map_err(|error| format!("{}: {error}", path.display()))?;
    write(&place.context.join("Dockerfile"), b"FROM scratch\nCOPY large /large\n")
}

fn touch_large_file(place: &Place, turn: usize) -> Result<(), String> {
    use std::os::unix::fs::FileExt;
    let file = fs::OpenOptions::new().write(true).open(place.context.join("large"));
    let written = file.and_then(|file| file.write_all_at(format!("turn {turn} {:?}", place.store).as_bytes(), 0));
    written.map_err(|error| format!("change the large file: {error}"))
}

/// Made by rbuild, once for all engines.
fn base_of_ten_layers(place: &Place) -> Result<(), String> {
    if !first(place, "ten-layers") {
        return Ok(());
    }
    let image = format!("{}/ten-layers", place.registry);
    let context = place.context.with_file_name("ten-layers");
    let mut text = String::from("FROM scratch\nCOPY busybox /bin/busybox\n");
    for layer in 0..10 {
        for file in 0..2500 {
            // Half of it noise: some 20 KiB each.
            let mut content = noise(layer * 10_000 + file, 10 << 10);
            content.resize(21_000, b'.');
            write(&context.join(format!("l{layer}/{}/{file}", file / 100)), &content)?;
        }
        text += &format!("COPY l{layer} /l{layer}\n");
    }
    busybox(&context)?;
    write(&context.join("Dockerfile"), text.as_bytes())?;
    let store = context.with_file_name("ten-layers-store");
    let mut build = Command::new(env!("CARGO_BIN_EXE_rbuild"));
    build.arg("--root").arg(&store).args(["build", "-q", "--push", "-t", &image]).arg(&context);
    let result = quietly(&mut build);
    let _ = fs::remove_dir_all(&context);
    let _ = fs::remove_dir_all(&store);
    result
}

/// Whether this is the first engine to ask for a base of this name.
fn first(place: &Place, base: &str) -> bool {
    let all = place.context.ancestors().nth(3).unwrap_or(&place.context);
    fs::create_dir(all.join(format!("{base}-made"))).is_ok()
}

/// From Debian's packages, as the tests make it.
fn debian(place: &Place) -> Result<(), String> {
    if !first(place, "debian") {
        return Ok(());
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/make-base.sh");
    let bases = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../bases");
    let made = Command::new(script).arg(&bases).output().map_err(|error| error.to_string())?;
    if !made.status.success() {
        return Err(String::from_utf8_lossy(&made.stderr).into_owned());
    }
    let tar = String::from_utf8_lossy(&made.stdout).trim().to_owned();
    let store = place.context.with_file_name("debian-store");
    let image = format!("{}/debian", place.registry);
    for words in [vec!["import", &tar, &image], vec!["push", "-q", &image]] {
        quietly(Command::new(env!("CARGO_BIN_EXE_rbuild")).arg("--root").arg(&store).args(words))?;
    }
    let _ = fs::remove_dir_all(&store);
    Ok(())
}
