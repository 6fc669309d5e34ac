//! How two operations differ, for a person.

use graph::{ChmodSpec, ChownSpec, FileAction, FileOp, UserSpec};
use serde_json::Value;

/// Differences of an operation that are named.
const SHOWN_DIFFERENCES: usize = 5;
/// Characters of a value that are shown.
const SHOWN_VALUE: usize = 200;

/// How two operations differ, in words where there are words for it.
pub(super) fn definition(old: Option<&Value>, new: Option<&Value>) -> Vec<String> {
    let (Some(old), Some(new)) = (old, new) else { return vec!["its definition changed".into()] };
    if let (Some(old), Some(new)) = (old.get("Exec"), new.get("Exec")) {
        return exec(old, new);
    }
    if let (Some(old), Some(new)) = (file_op(old), file_op(new)) {
        return file(&old, &new);
    }
    let mut found = Vec::new();
    compare("", old, new, &mut found);
    found
}

fn exec(old: &Value, new: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let field = |value: &Value, name: &str| value.get(name).cloned().unwrap_or_default();
    let command = |value: &Value| {
        let words = field(value, "args");
        let words: Vec<&str> = words.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        words.join(" ")
    };
    let (was, is) = (command(old), command(new));
    if was != is {
        found.push(format!("its command changed: {} then, {} now", limited(&was), limited(&is)));
    }
    let variables =
        |value: &Value| -> Vec<(String, String)> { serde_json::from_value(field(value, "env")).unwrap_or_default() };
    let (was, is) = (variables(old), variables(new));
    let value = |list: &[(String, String)], name: &str| {
        list.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.clone())
    };
    for (name, now) in &is {
        match value(&was, name) {
            None => found.push(format!("variable {name} was set: {}", limited(now))),
            Some(then) if then != *now => {
                found.push(format!("variable {name} changed: {} then, {} now", limited(&then), limited(now)));
            }
            Some(_) => {}
        }
    }
    for (name, _) in &was {
        if value(&is, name).is_none() {
            found.push(format!("variable {name} is no longer set"));
        }
    }
    if old.get("secret_macs") != new.get("secret_macs") {
        found.push("the value of a secret changed (cache-key=true)".into());
    }
    let rest = |value: &Value| {
        let mut value = value.clone();
        if let Some(fields) = value.as_object_mut() {
            for name in ["args", "env", "proxy", "secret_macs"] {
                fields.remove(name);
            }
        }
        value
    };
    compare("", &rest(old), &rest(new), &mut found);
    found.truncate(SHOWN_DIFFERENCES);
    found
}

/// Names what differs by its place in the definition.
fn compare(place: &str, old: &Value, new: &Value, found: &mut Vec<String>) {
    if old == new || found.len() >= SHOWN_DIFFERENCES {
        return;
    }
    match (old, new) {
        (Value::Object(a), Value::Object(b)) if a.keys().eq(b.keys()) => {
            for (name, old) in a {
                let below = if place.is_empty() { name.clone() } else { format!("{place}.{name}") };
                compare(&below, old, b.get(name).unwrap_or(&Value::Null), found);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (position, (old, new)) in a.iter().zip(b).enumerate() {
                compare(&format!("{place}[{position}]"), old, new, found);
            }
        }
        _ => {
            let place = if place.is_empty() { "its definition" } else { place };
            found.push(format!(
                "{place} changed: {} then, {} now",
                limited(&old.to_string()),
                limited(&new.to_string())
            ));
        }
    }
}

fn limited(text: &str) -> String {
    let text = crate::progress::neutralise_lines(text).replace('\n', "↵");
    if text.chars().count() <= SHOWN_VALUE {
        return text;
    }
    let cut: String = text.chars().take(SHOWN_VALUE).collect();
    format!("{cut}…")
}

fn file_op(op: &Value) -> Option<FileOp> {
    serde_json::from_value(op.get("File")?.clone()).ok()
}

/// COPY, ADD and WORKDIR.
fn file(old: &FileOp, new: &FileOp) -> Vec<String> {
    let (was, is) = (sources(old), sources(new));
    if was != is {
        return vec![format!("its sources changed: {} then, {} now", limited(&was), limited(&is))];
    }
    let mut found = Vec::new();
    for (old, new) in old.actions.iter().zip(&new.actions) {
        let before = found.len();
        action(old, new, &mut found);
        if before == found.len() {
            // What has no word of its own.
            let json = |action: &FileAction| serde_json::to_value(action).unwrap_or_default();
            compare("", &json(old), &json(new), &mut found);
        }
    }
    if found.is_empty() {
        found.push("its inputs are others".into());
    }
    // Several sources of one COPY have its options in common.
    found.dedup();
    found.truncate(SHOWN_DIFFERENCES);
    found
}

/// What a COPY names, heredocs by what they become.
fn sources(op: &FileOp) -> String {
    let name = |action: &FileAction| match action {
        FileAction::Copy(copy) => copy.src.clone(),
        FileAction::Mkfile(file) => format!("<<{}", file.path),
        FileAction::Mkdir(dir) => dir.path.clone(),
    };
    op.actions.iter().map(name).collect::<Vec<_>>().join(" ")
}

fn action(old: &FileAction, new: &FileAction, found: &mut Vec<String>) {
    let mut note = |what: &str, was: String, is: String| {
        if was != is {
            found.push(format!("{what} changed: {} then, {} now", limited(&was), limited(&is)));
        }
    };
    match (old, new) {
        (FileAction::Copy(old), FileAction::Copy(new)) => {
            note("its destination", old.dest.clone(), new.dest.clone());
            note("--chmod", chmod(old.chmod.as_ref()), chmod(new.chmod.as_ref()));
            note("--chown", chown(old.chown.as_ref()), chown(new.chown.as_ref()));
            note("--exclude", old.exclude.join(" "), new.exclude.join(" "));
        }
        (FileAction::Mkfile(old), FileAction::Mkfile(new)) => {
            note("--chmod", chmod(old.chmod.as_ref()), chmod(new.chmod.as_ref()));
            note("--chown", chown(old.chown.as_ref()), chown(new.chown.as_ref()));
            if let Some((line, was, is)) = first_line(&old.data, &new.data) {
                note(&format!("line {line} of its heredoc {}", new.path), was, is);
            }
        }
        (FileAction::Mkdir(old), FileAction::Mkdir(new)) => {
            note("the owner of the directory", chown(old.chown.as_ref()), chown(new.chown.as_ref()));
        }
        _ => {}
    }
}

fn chmod(spec: Option<&ChmodSpec>) -> String {
    match spec {
        None => "none".into(),
        Some(ChmodSpec::Octal(mode)) => format!("{mode:04o}"),
        Some(ChmodSpec::Symbolic(text)) => text.clone(),
    }
}

fn chown(spec: Option<&ChownSpec>) -> String {
    let name = |id: &UserSpec| match id {
        UserSpec::Name(name) => name.clone(),
        UserSpec::Id(id) => id.to_string(),
    };
    match spec {
        None => "none".into(),
        Some(ChownSpec { user, group: None }) => name(user),
        Some(ChownSpec { user, group: Some(group) }) => format!("{}:{}", name(user), name(group)),
    }
}

/// The first line in which two texts differ.
fn first_line(old: &[u8], new: &[u8]) -> Option<(usize, String, String)> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (old, new) = (text(old), text(new));
    let (mut was, mut is) = (old.split('\n'), new.split('\n'));
    for line in 1.. {
        match (was.next(), is.next()) {
            (None, None) => break,
            (a, b) if a == b => {}
            (a, b) => return Some((line, shown(a), shown(b))),
        }
    }
    None
}

fn shown(line: Option<&str>) -> String {
    line.map_or_else(|| "nothing".into(), |line| format!("{line:?}"))
}

#[cfg(test)]
mod tests {
    use graph::{CopyAction, MkfileAction};
    use serde_json::json;

    use super::*;

    fn copy(src: &str) -> CopyAction {
        serde_json::from_value(json!({
            "from": 1, "src": src, "dest": "/d/", "chown": null, "chmod": null, "follow_symlink": true,
            "dir_contents_only": true, "allow_wildcard": true, "allow_empty_wildcard": true, "attempt_unpack": false,
            "create_dest_path": true, "parents": null, "exclude": [], "always_replace_existing": false,
        }))
        .unwrap()
    }

    fn why(old: Vec<FileAction>, new: Vec<FileAction>) -> Vec<String> {
        let op = |actions| json!({ "File": serde_json::to_value(FileOp { base: None, actions }).unwrap() });
        definition(Some(&op(old)), Some(&op(new)))
    }

    fn of(copy: CopyAction) -> FileAction {
        FileAction::Copy(Box::new(copy))
    }

    #[test]
    fn what_differs_about_a_copy_has_words() {
        let plain = || of(copy("/f"));
        let changed = |change: fn(&mut CopyAction)| {
            let mut copy = copy("/f");
            change(&mut copy);
            why(vec![plain()], vec![of(copy)])
        };
        assert_eq!(why(vec![plain()], vec![plain(), of(copy("/g"))]), ["its sources changed: /f then, /f /g now"]);
        assert_eq!(
            changed(|copy| copy.chmod = Some(ChmodSpec::Octal(0o600))),
            ["--chmod changed: none then, 0600 now"]
        );
        let root = Some(ChownSpec { user: UserSpec::Id(0), group: Some(UserSpec::Name("adm".into())) });
        let mut owned = copy("/f");
        owned.chown = root;
        assert_eq!(why(vec![plain()], vec![of(owned)]), ["--chown changed: none then, 0:adm now"]);
        assert_eq!(changed(|copy| copy.dest = "/e".into()), ["its destination changed: /d/ then, /e now"]);
        assert_eq!(changed(|copy| copy.exclude = vec!["*.o".into()]), ["--exclude changed:  then, *.o now"]);
        assert_eq!(changed(|copy| copy.attempt_unpack = true), ["Copy.attempt_unpack changed: false then, true now"]);
    }

    #[test]
    fn of_a_heredoc_the_line_is_named() {
        let file = |text: &str| {
            let data = text.as_bytes().to_vec();
            FileAction::Mkfile(MkfileAction { path: "/f".into(), data, mode: 0o644, chmod: None, chown: None })
        };
        let reasons = why(vec![file("a\nb\nc\n")], vec![file("a\nB\nc\n")]);
        assert_eq!(reasons, ["line 2 of its heredoc /f changed: \"b\" then, \"B\" now"]);
        let reasons = why(vec![file("a")], vec![file("a\nb")]);
        assert_eq!(reasons, ["line 2 of its heredoc /f changed: nothing then, \"b\" now"]);
    }
}
