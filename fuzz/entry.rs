//! What the fuzz targets do with their input. Included by `frontend/tests/fuzz.rs`, too, which runs the same functions over
//! mutations of the corpus wherever the tests run.

use std::collections::BTreeMap;

use frontend::dockerignore::Patterns;
use frontend::expand::Expander;
use frontend::instruction::Dockerfile;
use frontend::{Images, Options, SourceFile, lint, lower, parse, parse_trigger, plan, targets};

/// Larger inputs only take longer.
const LARGEST: usize = 1 << 16;

/// A Dockerfile goes all the way: parsed, printed, planned, lowered, checked, mended. Nothing may panic, what was parsed must
/// be parsed again when it is printed, and what was mended must still be a Dockerfile.
pub(crate) fn dockerfile(data: &[u8]) {
    if data.len() > LARGEST {
        return;
    }
    let source = SourceFile::from_bytes("Dockerfile", data);
    let _ = parse_trigger(&source);
    let _ = targets(&source);
    if let Ok(file) = parse(&source) {
        let printed = file.to_string();
        let again = parse(&SourceFile::new("printed", printed.as_str()));
        let again = again.unwrap_or_else(|problems| panic!("{printed:?}: {problems}"));
        assert_eq!(described(&file), described(&again), "{printed:?}");
    }
    let options = Options { all_stages: true, ..Options::default() };
    let Ok(plan) = plan(&source, &options) else { return };
    let mut images = Images::new();
    // Bases that are not known have no triggers, so one round is enough.
    let Ok(missing) = plan.missing_images(&images) else { return };
    for request in missing {
        images.insert_unknown(request.reference, request.platform);
    }
    let Ok(lowered) = lower(&plan, &images) else { return };
    let (mended, count) = lint::apply(&source, &lowered.findings);
    if count > 0 {
        let again = parse(&SourceFile::new("mended", mended.as_str()));
        assert!(again.is_ok(), "{mended:?}: {again:?}");
    }
}

/// The instructions without places, which are all that printing changes.
pub(crate) fn described(file: &Dockerfile) -> String {
    let mut out = format!("{:?}\n", file.escape);
    for instruction in &file.instructions {
        let comments: Vec<_> = instruction.comments.iter().map(|comment| &comment.text).collect();
        let flags: Vec<_> = instruction.flags.iter().map(|flag| (&flag.name, &flag.value)).collect();
        out.push_str(&format!("{} {:?} {flags:?} {comments:?}\n", instruction.keyword.text, instruction.kind));
        for doc in &instruction.heredocs {
            out.push_str(&format!("{:?} {} {} {} {:?}\n", doc.name.text, doc.fd, doc.expand, doc.chomp, doc.content));
        }
    }
    // Places are written `@1..2` behind words, and `span: 1..2`.
    let mut rest = out.as_str();
    let mut clean = String::new();
    while let Some(at) = rest.find("..") {
        clean.push_str(rest[..at].trim_end_matches(|c: char| c.is_ascii_digit()));
        rest = rest[at + 2..].trim_start_matches(|c: char| c.is_ascii_digit());
    }
    clean + rest
}

/// The first line is a variable's value, the rest a word.
pub(crate) fn expand(data: &[u8]) {
    if data.len() > LARGEST {
        return;
    }
    let text = String::from_utf8_lossy(data);
    let (value, word) = text.split_once('\n').unwrap_or(("", &text));
    let env = BTreeMap::from([("a".to_owned(), value.to_owned())]);
    for expander in [Expander::new('\\'), Expander::new('`'), Expander::for_heredoc()] {
        for keep in [false, true] {
            let expander = expander.keep_unset(keep).raw_quotes(keep);
            let (one, many) = (expander.process_word(word, &env), expander.process_words(word, &env));
            assert_eq!(one.is_ok(), many.is_ok(), "{word:?}");
        }
    }
}

/// The first line is a path, the rest ignore rules.
pub(crate) fn dockerignore(data: &[u8]) {
    if data.len() > LARGEST {
        return;
    }
    let text = String::from_utf8_lossy(data);
    let (path, rules) = text.split_once('\n').unwrap_or(("", &text));
    if let Ok(patterns) = Patterns::parse(rules) {
        let _ = patterns.test(path.trim_matches('/'));
    }
}

/// What a FROM makes of a name: the image in full, if it is one.
pub(crate) fn image(name: &str) -> Option<String> {
    let source = SourceFile::new("Dockerfile", format!("FROM {name}\n"));
    let plan = plan(&source, &Options::default()).ok()?;
    let missing = plan.missing_images(&Images::new()).ok()?;
    missing.first().map(|request| request.reference.clone())
}

/// A name of an image, as FROM and `# syntax=` take it.
pub(crate) fn reference(data: &[u8]) {
    let Ok(name) = std::str::from_utf8(data) else { return };
    if name.contains(['\n', '\r']) || data.len() > LARGEST {
        return;
    }
    for text in [format!("FROM {name}\n"), format!("# syntax={name}\nFROM scratch\n")] {
        let source = SourceFile::new("Dockerfile", text);
        let Ok(plan) = plan(&source, &Options::default()) else { continue };
        for request in plan.missing_images(&Images::new()).unwrap_or_default() {
            // In full it still means the same.
            let full = SourceFile::new("Dockerfile", format!("FROM {}\n", request.reference));
            let again = frontend::plan(&full, &Options::default()).map(|plan| plan.missing_images(&Images::new()));
            let same = matches!(&again, Ok(Ok(found)) if found.iter().all(|one| one.reference == request.reference));
            assert!(same, "{name:?} is {:?}", request.reference);
        }
    }
}
