//! Why a step was found or not: what it was looked up by, against the nearest earlier run of the same step.

use graph::ContentDigest;
use snapshotter::layer::{Entry, EntryKind, LayerIndex};

use super::definition::definition;
use super::record::{BuildRecord, Step};

/// Differing files that are named; of more, the number is.
const SHOWN_FILES: usize = 5;

/// Why a step was found or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// It was found.
    pub hit: bool,
    /// One line each, the most telling first.
    pub reasons: Vec<String>,
    /// The build in which the earlier run was.
    pub against: Option<(String, jiff::Timestamp)>,
}

/// Explains one step of `record`. `earlier` are builds before it, the latest first; `list` knows the files behind a digest.
pub fn explain(
    record: &BuildRecord,
    position: usize,
    earlier: &[BuildRecord],
    list: impl Fn(&ContentDigest) -> Option<LayerIndex>,
) -> Option<Explanation> {
    let step = record.steps.get(position)?;
    let keys = step.keys.as_ref()?;
    if step.cached {
        let reason = match (&keys.content, &keys.definition) {
            (Some(content), Some(definition)) if content != definition => {
                "what it sees of its inputs is what it saw when its result was made, though the inputs differ elsewhere"
            }
            (Some(_), None) => "the files that it sees are those of the recorded run",
            _ => "the operation and all of its inputs are those of the recorded run",
        };
        return Some(Explanation { hit: true, reasons: vec![reason.into()], against: None });
    }
    if step.ignore_cache {
        let reasons = vec!["it was told not to look: --no-cache or --no-cache-filter".into()];
        return Some(Explanation { hit: false, reasons, against: None });
    }
    let Some((before, old)) = nearest(record, step, earlier) else {
        let reasons = vec!["no earlier run of this step is known here".into()];
        return Some(Explanation { hit: false, reasons, against: None });
    };
    let reasons = differences(record, step, before, old, &list);
    Some(Explanation { hit: false, reasons, against: Some((before.id.clone(), before.started)) })
}

/// The earlier step that is most like this one; of equals the latest.
fn nearest<'a>(record: &BuildRecord, step: &Step, earlier: &'a [BuildRecord]) -> Option<(&'a BuildRecord, &'a Step)> {
    let mut best: Option<(u32, &BuildRecord, &Step)> = None;
    for build in earlier {
        let same_project = build.context == record.context && build.file == record.file;
        for candidate in build.steps.iter().filter(|candidate| is_comparable(step, candidate)) {
            let alike = likeness(step, candidate);
            if alike == 0 {
                continue;
            }
            let score = alike * 2 + u32::from(same_project);
            if best.is_none_or(|(most, ..)| score > most) {
                best = Some((score, build, candidate));
            }
        }
    }
    best.map(|(_, build, step)| (build, step))
}

/// A step that failed left no result, and one whose inputs were never looked at closely cannot be compared.
fn is_comparable(step: &Step, candidate: &Step) -> bool {
    let looked = |step: &Step| step.keys.as_ref().is_some_and(|keys| keys.content.is_some());
    candidate.error.is_none() && candidate.finished.is_some() && looked(step) && looked(candidate)
}

/// How much two steps are the same step; 0 is not at all.
fn likeness(step: &Step, other: &Step) -> u32 {
    let op = |step: &Step| step.keys.as_ref().map(|keys| keys.op);
    let same_stage = step.stage == other.stage;
    if op(step) == op(other) {
        return if same_stage { 6 } else { 5 };
    }
    let (place, text) = split_name(&step.name);
    let (other_place, other_text) = split_name(&other.name);
    let word = |text: &str| text.split_whitespace().next().unwrap_or_default().to_owned();
    if word(text) != word(other_text) {
        return 0;
    }
    match (same_stage, text == other_text, place == other_place) {
        (true, true, _) => 4,
        (true, false, true) => 3,
        (false, true, _) => 2,
        _ => 0,
    }
}

/// `[stage 2/5] RUN make` as `stage 2/5` and `RUN make`.
fn split_name(name: &str) -> (&str, &str) {
    match name.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
        Some((place, text)) => (place, text),
        None => ("", name),
    }
}

fn differences(
    record: &BuildRecord,
    step: &Step,
    before: &BuildRecord,
    old: &Step,
    list: &impl Fn(&ContentDigest) -> Option<LayerIndex>,
) -> Vec<String> {
    let (Some(keys), Some(old_keys)) = (&step.keys, &old.keys) else { return Vec::new() };
    let mut reasons = Vec::new();
    if keys.op != old_keys.op {
        reasons.extend(definition(old.op.as_ref(), step.op.as_ref()));
    }
    for (position, (identity, selected)) in keys.inputs.iter().enumerate() {
        let Some((old_identity, old_selected)) = old_keys.inputs.get(position) else {
            reasons.push(format!("it has another input: {}", input_name(record, step, position)));
            continue;
        };
        match (selected, old_selected) {
            (Some(new), Some(old)) if new == old => {}
            (Some(new), Some(old)) => match (list(old), list(new)) {
                (Some(old), Some(new)) => {
                    let differing = files(&old, &new);
                    if differing.is_empty() && keys.op == old_keys.op {
                        reasons.push("which names are one file (hard links) changed, or their order".into());
                    }
                    reasons.extend(differing);
                }
                _ => reasons.push(format!(
                    "the files of {} changed ({} then, {} now; which ones is no longer known)",
                    input_name(record, step, position),
                    short(old),
                    short(new)
                )),
            },
            _ if identity == old_identity => {}
            _ => {
                let same = |step: &Step, record: &BuildRecord| {
                    step.inputs.get(position).and_then(|input| record.steps.get(*input)).cloned()
                };
                reasons.push(input(same(step, record).as_ref(), same(old, before).as_ref(), *identity, *old_identity));
            }
        }
    }
    if old_keys.inputs.len() > keys.inputs.len() {
        reasons.push(format!("it had {} inputs and has {}", old_keys.inputs.len(), keys.inputs.len()));
    }
    if reasons.is_empty() {
        reasons.push(if keys.content == old_keys.content {
            "nothing differs: the result of the earlier run is no longer in the store".into()
        } else {
            "its definition differs".into()
        });
    }
    reasons
}

fn input_name(record: &BuildRecord, step: &Step, position: usize) -> String {
    let input = step.inputs.get(position).and_then(|input| record.steps.get(*input));
    input.map_or_else(|| format!("input {}", position + 1), |input| input.name.clone())
}

/// Two inputs that are something else as wholes.
fn input(
    new: Option<&Step>,
    old: Option<&Step>,
    identity: Option<ContentDigest>,
    old_identity: Option<ContentDigest>,
) -> String {
    let image = |step: Option<&Step>| {
        let source = step?.op.as_ref()?.get("Source")?.get("Image")?;
        Some((source.get("reference")?.as_str()?.to_owned(), source.get("config")?.as_str()?.to_owned()))
    };
    let digest = |digest: Option<ContentDigest>| digest.as_ref().map_or("unknown".into(), short);
    match (image(new), image(old)) {
        (Some((name, config)), Some((old_name, old_config))) if name == old_name => {
            format!("its base {name} is another image: {} then, {} now", cut(&old_config), cut(&config))
        }
        (Some((name, _)), Some((old_name, _))) => format!("its base is {name}, it was {old_name}"),
        _ => {
            let name = new.map_or("an input", |step| step.name.as_str());
            format!("the result of {name} changed: {} then, {} now", digest(old_identity), digest(identity))
        }
    }
}

fn cut(digest: &str) -> String {
    digest.chars().take("sha256:".len() + 12).collect()
}

fn short(digest: &ContentDigest) -> String {
    digest.hex()[..12].to_owned()
}

/// The first files that differ.
fn files(old: &LayerIndex, new: &LayerIndex) -> Vec<String> {
    let mut differing = Vec::new();
    let mut count = 0;
    let mut note = |line: String| {
        count += 1;
        if differing.len() < SHOWN_FILES {
            differing.push(line);
        }
    };
    let (mut left, mut right) = (old.entries().iter().peekable(), new.entries().iter().peekable());
    loop {
        let order = match (left.peek(), right.peek()) {
            (None, None) => break,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some(a), Some(b)) => snapshotter::layer::cmp_paths(&a.path, &b.path),
        };
        match order {
            std::cmp::Ordering::Less => {
                if let Some(entry) = left.next() {
                    note(format!("{} was removed", shown(entry)));
                }
            }
            std::cmp::Ordering::Greater => {
                if let Some(entry) = right.next() {
                    note(format!("{} was added", shown(entry)));
                }
            }
            std::cmp::Ordering::Equal => {
                if let (Some(a), Some(b)) = (left.next(), right.next())
                    && let Some(change) = change(a, b)
                {
                    note(format!("{} {change}", shown(b)));
                }
            }
        }
    }
    if count > differing.len() {
        differing.push(format!("and {} more files", count - differing.len()));
    }
    differing
}

fn shown(entry: &Entry) -> String {
    let path = String::from_utf8_lossy(&entry.path);
    crate::progress::neutralise_lines(&format!("/{path}")).replace('\n', "?")
}

/// What is different about one path.
fn change(old: &Entry, new: &Entry) -> Option<String> {
    let text = |bytes: &[u8]| crate::progress::neutralise_lines(&String::from_utf8_lossy(bytes)).replace('\n', "?");
    match (&old.kind, &new.kind) {
        (EntryKind::File { digest: a, size: x, .. }, EntryKind::File { digest: b, size: y, .. }) => {
            if a != b {
                return Some(format!("changed: {} ({x} bytes) then, {} ({y} bytes) now", short(a), short(b)));
            }
        }
        (EntryKind::Symlink { target: a }, EntryKind::Symlink { target: b }) => {
            if a != b {
                return Some(format!("changed: a link to {} then, to {} now", text(a), text(b)));
            }
        }
        (EntryKind::Dir { .. }, EntryKind::Dir { .. }) => {}
        (a, b) if a == b => {}
        _ => return Some("became something else".into()),
    }
    if old.mode != new.mode {
        return Some(format!("changed its mode: {:04o} then, {:04o} now", old.mode, new.mode));
    }
    if (old.uid, old.gid) != (new.uid, new.gid) {
        return Some(format!("changed its owner: {}:{} then, {}:{} now", old.uid, old.gid, new.uid, new.gid));
    }
    (old.xattrs != new.xattrs).then(|| "changed its extended attributes".into())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::record::Keys;
    use super::super::record::tests::record;
    use super::*;

    fn digest(text: &str) -> ContentDigest {
        ContentDigest::of(text.as_bytes())
    }

    fn step(name: &str, op: &Value, input: (Option<&str>, Option<&str>)) -> Step {
        let time = jiff::Timestamp::from_second(1_700_000_000).unwrap();
        let op_key = digest(&op.to_string());
        let (identity, selected) = (input.0.map(digest), input.1.map(digest));
        Step {
            name: name.into(),
            stage: Some("0".into()),
            inputs: vec![0],
            started: Some(time),
            finished: Some(time),
            op: Some(op.clone()),
            keys: Some(Keys {
                op: op_key,
                definition: identity,
                content: Some(digest(&format!("{op_key} {input:?}"))),
                inputs: vec![(identity, selected)],
            }),
            ..Step::default()
        }
    }

    fn base(config: &str) -> Step {
        let op = json!({ "Source": { "Image": { "reference": "debian:12", "config": config } } });
        Step { keys: None, ..step("[0 1/2] FROM debian:12", &op, (None, None)) }
    }

    fn why(old: Step, new: Step, bases: (&str, &str)) -> Vec<String> {
        let build = |id: &str, base: Step, step: Step| BuildRecord { steps: vec![base, step], ..record(id) };
        let list = |known: &ContentDigest| {
            let file = |path: &str, data: &str, mode| {
                let mut entry = Entry::file(path.as_bytes().to_vec(), data.len() as u64, mode);
                if let EntryKind::File { digest: is, .. } = &mut entry.kind {
                    *is = digest(data);
                }
                entry
            };
            let lists = [
                ("files 1", vec![file("a", "1", 0o644), file("b", "1", 0o644), file("c", "1", 0o644)]),
                ("files 2", vec![file("a", "1", 0o755), file("b", "22", 0o644), file("d", "1", 0o644)]),
            ];
            let found = lists.into_iter().find(|(name, _)| digest(name) == *known);
            found.map(|(_, entries)| LayerIndex::new(entries))
        };
        let now = build("2", base(bases.1), new);
        explain(&now, 1, &[build("1", base(bases.0), old)], list).unwrap().reasons
    }

    fn run(command: &str, env: &[(&str, &str)]) -> Value {
        json!({ "Exec": { "args": ["/bin/sh", "-c", command], "env": env, "cwd": "/" } })
    }

    #[test]
    fn the_reason_is_named() {
        let make = run("make", &[("A", "1")]);
        let on = |op: &Value, identity| step("[0 2/2] RUN make", op, (Some(identity), None));
        let config = "sha256:0000000000000000000000";
        let other = "sha256:1111111111111111111111";
        for (old, new, bases, expected) in [
            (
                on(&make, "x"),
                on(&run("make", &[("A", "2")]), "x"),
                (config, config),
                "variable A changed: 1 then, 2 now",
            ),
            (
                on(&make, "x"),
                on(&run("make", &[("A", "1"), ("B", "3")]), "x"),
                (config, config),
                "variable B was set: 3",
            ),
            (
                on(&make, "x"),
                on(&run("make -j", &[("A", "1")]), "x"),
                (config, config),
                "its command changed: /bin/sh -c make then, /bin/sh -c make -j now",
            ),
            (
                on(&make, "x"),
                on(&make, "y"),
                (config, other),
                "its base debian:12 is another image: sha256:000000000000 then, sha256:111111111111 now",
            ),
            (
                on(&make, "x"),
                on(&make, "x"),
                (config, config),
                "nothing differs: the result of the earlier run is no longer in the store",
            ),
        ] {
            assert_eq!(why(old, new, bases)[0], expected);
        }
        let copy = json!({ "File": { "actions": [{ "Copy": { "src": "/", "chmod": null } }] } });
        let chmod = json!({ "File": { "actions": [{ "Copy": { "src": "/", "chmod": { "Octal": 7 } } }] } });
        let of = |op: &Value, files| step("[0 2/2] COPY . .", op, (None, Some(files)));
        let reasons = why(of(&copy, "files 1"), of(&copy, "files 2"), (config, config));
        assert_eq!(reasons[0], "/a changed its mode: 0644 then, 0755 now");
        assert!(reasons[1].starts_with("/b changed: ") && reasons[1].ends_with("(2 bytes) now"), "{reasons:?}");
        assert_eq!(reasons[2..], ["/c was removed", "/d was added"]);
        let reasons = why(of(&copy, "files 1"), of(&chmod, "files 1"), (config, config));
        assert_eq!(reasons, ["File.actions[0].Copy.chmod changed: null then, {\"Octal\":7} now"]);
        let reasons = why(of(&copy, "files 1"), of(&copy, "files 9"), (config, config));
        assert!(reasons[0].contains("no longer known"), "{reasons:?}");
    }

    #[test]
    fn the_nearest_run_is_the_one_compared_with() {
        let make = run("make", &[]);
        let new = step("[0 2/2] RUN make", &make, (Some("x"), None));
        let build =
            |id: &str, context: &str, steps: Vec<Step>| BuildRecord { context: context.into(), steps, ..record(id) };
        let now = build("9", "/c", vec![base("sha256:0"), new.clone()]);
        let none = explain(&now, 1, &[], |_| None).unwrap();
        assert_eq!(none.reasons, ["no earlier run of this step is known here"]);
        let failed = Step { error: Some("exit code: 1".into()), ..new.clone() };
        let elsewhere = step("[0 2/2] RUN make", &run("make install", &[]), (Some("x"), None));
        let other = Step { name: "[0 2/2] WORKDIR /x".into(), ..elsewhere.clone() };
        let earlier = [
            build("8", "/c", vec![base("sha256:0"), failed]),
            build("7", "/c", vec![base("sha256:0"), other]),
            build("6", "/d", vec![base("sha256:0"), elsewhere.clone()]),
            build("5", "/c", vec![base("sha256:0"), elsewhere]),
        ];
        let found = explain(&now, 1, &earlier, |_| None).unwrap();
        assert_eq!(found.against.unwrap().0, "5", "the same project comes first");
        let told = BuildRecord { steps: vec![base("x"), Step { ignore_cache: true, ..new.clone() }], ..now.clone() };
        assert!(explain(&told, 1, &earlier, |_| None).unwrap().reasons[0].contains("--no-cache"));
        let hit = BuildRecord { steps: vec![base("x"), Step { cached: true, ..new }], ..now };
        assert!(explain(&hit, 1, &earlier, |_| None).unwrap().hit);
        assert_eq!(explain(&hit, 0, &earlier, |_| None), None, "a source is not looked up");
    }
}
