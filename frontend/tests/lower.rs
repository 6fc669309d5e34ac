//! Dockerfiles and what they are lowered to, as data: one file of `lower/` per subject, with the sections `options`,
//! `Dockerfile` and `lowered`. With `UPDATE_GOLDEN=1` the last one is written anew.

#![allow(clippy::unwrap_used)] // A broken case is a failed test.

mod lower_support;

use std::path::{Path, PathBuf};

use frontend::{Images, NoCache, Options, SourceFile, lower, plan};
use lower_support::{Case, image, lower_case, print};
use proptest::prelude::*;

fn cases() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lower");
    let mut paths: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() > 10, "the cases are missing from {}", dir.display());
    paths
}

#[test]
fn golden() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut wrong = Vec::new();
    for path in cases() {
        let text = std::fs::read_to_string(&path).unwrap();
        let case = Case::read(&text);
        let got = lower_case(&case);
        if got.trim_end() == case.expected.trim_end() {
            continue;
        }
        if update {
            let head = text.split("=== lowered\n").next().unwrap();
            std::fs::write(&path, format!("{head}=== lowered\n{got}")).unwrap();
        } else {
            wrong.push(format!("{}:\n{}", path.display(), lower_support::difference(case.expected, &got)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn lowering_is_deterministic() {
    for path in cases() {
        let text = std::fs::read_to_string(&path).unwrap();
        let case = Case::read(&text);
        assert_eq!(lower_case(&case), lower_case(&case), "{}", path.display());
    }
}

/// Images that only a trigger of another image names are asked for in a second round.
#[test]
fn triggers_ask_for_further_images() {
    let source = SourceFile::new("Dockerfile", "FROM app-base\n");
    let plan = plan(&source, &Options::default()).unwrap();
    let mut images = Images::new();
    let first = plan.missing_images(&images).unwrap();
    assert_eq!(first.iter().map(|r| r.reference.as_str()).collect::<Vec<_>>(), ["docker.io/library/app-base:latest"]);
    let request = &first[0];
    let base = image(r#"{"config":{"OnBuild":["COPY --from=tools /x /x"]}}"#, &request.platform);
    images.insert(request.reference.clone(), request.platform.clone(), base);
    assert!(lower(&plan, &images).is_err(), "tools is not known yet");
    let second = plan.missing_images(&images).unwrap();
    assert_eq!(second.iter().map(|r| r.written.as_str()).collect::<Vec<_>>(), ["tools"]);
    let request = &second[0];
    images.insert(request.reference.clone(), request.platform.clone(), image("{}", &request.platform));
    assert_eq!(plan.missing_images(&images).unwrap(), []);
    lower(&plan, &images).unwrap();
}

#[test]
fn a_chain_of_ten_thousand_stages_is_lowered() {
    let mut text = "FROM scratch AS s0\n".to_owned();
    for n in 1..10_000 {
        let before = n - 1;
        text.push_str(&format!("FROM s{before} AS s{n}\nLABEL a=b\nCOPY --from=s{before} /a /b\n"));
    }
    let source = SourceFile::new("Dockerfile", text);
    let plan = plan(&source, &Options::default()).unwrap();
    assert_eq!(plan.missing_images(&Images::new()).unwrap(), []);
    let lowered = lower(&plan, &Images::new()).unwrap();
    assert_eq!(lowered.config.history.len(), 2 * 9_999);
    assert!(lowered.graph.len() >= 9_999);
}

#[test]
fn only_the_named_stages_are_made_anew() {
    let source = SourceFile::new("Dockerfile", "FROM scratch AS a\nCOPY x /\nFROM a\nCOPY y /\n");
    for (no_cache, want) in [
        (NoCache::None, vec![]),
        (NoCache::All, vec!["[a 1/1] COPY x /", "[stage-1 1/1] COPY y /"]),
        (NoCache::Stages(vec!["A".into()]), vec!["[a 1/1] COPY x /"]),
    ] {
        let options = Options { no_cache, ..Options::default() };
        let lowered = lower(&plan(&source, &options).unwrap(), &Images::new()).unwrap();
        let nodes = lowered.graph.nodes().filter(|(_, node)| node.meta.ignore_cache);
        assert_eq!(nodes.map(|(_, node)| node.meta.name.as_str()).collect::<Vec<_>>(), want);
    }
}

/// `target:` contexts: the result of one build is a stage of another.
#[test]
fn another_builds_result_is_a_context() {
    let base = SourceFile::new("Dockerfile", "FROM debian\nENV A=1\nRUN make\n");
    let options = Options::default();
    let base = plan(&base, &options).unwrap();
    let mut images = Images::new();
    for request in base.missing_images(&images).unwrap() {
        let found = image("{}", &request.platform);
        images.insert(request.reference, request.platform, found);
    }
    let base = lower(&base, &images).unwrap();
    let mut options = Options::default();
    options.named_contexts.insert("base".into(), frontend::ContextSource::Target(base.into()));
    let app = SourceFile::new("Dockerfile", "FROM base\nRUN echo $A\nCOPY --from=base /x /y\n");
    let plan = plan(&app, &options).unwrap();
    assert_eq!(plan.missing_images(&Images::new()).unwrap(), []);
    let lowered = lower(&plan, &Images::new()).unwrap();
    let text = print(&lowered);
    assert!(text.contains("RUN make"), "{text}");
    assert!(text.contains("RUN echo 1"), "{text}");
    assert_eq!(lowered.graph.len(), 4, "{text}");
    assert_eq!(lowered.config.history.iter().filter(|entry| !entry.empty_layer).count(), 3, "{text}");
}

/// What is refused, and in which words: cases of `lower_errors.txt`, separated by `======`.
#[test]
fn refusals() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lower_errors.txt");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut new = String::new();
    let mut wrong = Vec::new();
    for block in text.split("======\n").filter(|block| !block.trim().is_empty()) {
        let case = Case::read(block);
        let got = lower_case(&case);
        let head = block.split("=== lowered\n").next().unwrap();
        new.push_str(&format!("======\n{head}=== lowered\n{}\n", got.trim_end()));
        if got.trim_end() != case.expected.trim_end() {
            wrong.push(format!("{}\n- {}\n+ {got}", case.dockerfile, case.expected));
        }
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, new).unwrap();
    } else {
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

/// Instructions whose gaps are filled with words that mean something somewhere.
fn instruction() -> impl Strategy<Value = String> {
    const LINES: [&str; 26] = [
        "FROM {} AS {}",
        "FROM --platform={} {}",
        "ARG {}={}",
        "ENV {}={}",
        "RUN --mount=from={},target={} {}",
        "RUN --mount=type={},target={},id={} x",
        "RUN <<{}\n#!{}\n{}",
        "COPY --from={} {} {}",
        "COPY --chown={} --chmod={} {} {}",
        "COPY --parents --link {} {}",
        "COPY <<{} {}\n{}\n{}",
        "ADD {} {}",
        "ADD --checksum={} {} {}",
        "WORKDIR {}",
        "USER {}",
        "EXPOSE {}",
        "VOLUME {}",
        "STOPSIGNAL {}",
        "SHELL [\"{}\"]",
        "CMD {}",
        "ENTRYPOINT {}",
        "ONBUILD COPY --from={} {} {}",
        "ONBUILD RUN {}",
        "HEALTHCHECK CMD {}",
        "LABEL {}={}",
        "MAINTAINER {}",
    ];
    let words = prop_oneof![
        5 => proptest::sample::select(vec![
            "a", "b", "scratch", "0", "1", "$A", "${A:-b}", "/", "../..", "/./x", "cache", "secret", "ssh", "EOF", "1:2", "80-90/udp",
            "https://h/x.git#a:b", "http://h/%2e%2e", "git@h:x", "u+x", "0777", "SIGTERM", "linux/arm64", "*", "é", "\"", "{}",
        ]).prop_map(str::to_owned),
        1 => "\\PC{0,6}",
    ];
    (proptest::sample::select(LINES.to_vec()), proptest::collection::vec(words, 4))
        .prop_map(|(line, words)| words.into_iter().fold(line.to_owned(), |line, word| line.replacen("{}", &word, 1)))
}

proptest! {
    /// Whatever stands in a Dockerfile, the answer is a graph or a list of problems.
    #[test]
    fn nothing_panics(lines in proptest::collection::vec(instruction(), 0..12), trigger in instruction()) {
        let text = format!("FROM a AS b\n{}\n", lines.join("\n"));
        let source = SourceFile::new("Dockerfile", text);
        let Ok(plan) = plan(&source, &Options::default()) else { return Ok(()) };
        let mut images = Images::new();
        let config = serde_json::json!({"config": {"OnBuild": [trigger], "WorkingDir": "w"}}).to_string();
        for _ in 0..20 {
            let Ok(missing) = plan.missing_images(&images) else { return Ok(()) };
            if missing.is_empty() {
                if let Ok(lowered) = lower(&plan, &images) {
                    print(&lowered);
                }
                return Ok(());
            }
            for request in missing {
                let found = image(&config, &request.platform);
                images.insert(request.reference, request.platform, found);
            }
        }
        prop_assert!(false, "there are always further images: {:?}", plan.missing_images(&images));
    }
}

/// A few lines whose variables, ports and environments multiply end with one message, soon and in little memory.
#[test]
fn what_multiplies_is_bounded() {
    let doubled = |count: usize| -> String {
        (1..count).fold("ENV A0=aaaaaaaaaaaaaaaa\n".to_owned(), |text, n| {
            let before = n - 1;
            text + &format!("ENV A{n}=$A{before}$A{before}$A{before}$A{before}\n")
        })
    };
    let numbered =
        |line: &str, count: usize| (0..count).map(|n| line.replace("{n}", &n.to_string())).collect::<String>();
    for text in [
        numbered("LABEL l{n}=$A9\n", 100),
        numbered("RUN {n}\n", 100),
        numbered("EXPOSE 1-65535\n", 50),
        format!("LABEL {}\n", numbered("l{n}=$A9 ", 100)),
    ] {
        let source = SourceFile::new("Dockerfile", format!("FROM scratch\n{}{text}", doubled(10)));
        let plan = plan(&source, &Options::default()).unwrap();
        let problems = lower(&plan, &Images::new()).unwrap_err();
        let messages = problems.render(&source);
        assert_eq!(messages.matches("more than 128 MiB of text").count(), 1, "{messages}");
    }
    let globals = doubled(10).replace("ENV", "ARG") + &numbered("ARG B{n}=$A9\n", 100) + "FROM scratch\n";
    let problems = plan(&SourceFile::new("Dockerfile", globals), &Options::default()).unwrap_err();
    assert!(problems.to_string().contains("more than 128 MiB of text"), "{problems}");
}
