//! `RUN --mount`.
//!
//! The value is a line of comma-separated fields. Variables are expanded in the fields' values, so what a mount is can
//! only be said in its stage: until then a [`MountFlag`] keeps the fields as written. The exception is `from`, which
//! decides what the stage depends on and therefore takes no variables.

use std::fmt;

use ecow::EcoString;
use graph::CacheSharing;

use super::ast::Word;
use super::csv;
use crate::diagnostic::Diagnostic;
use crate::expand::ExpandError;

/// `--mount=…`, not yet expanded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MountFlag {
    /// The value of the flag.
    pub value: Word,
    /// Its fields in order.
    pub fields: Vec<MountField>,
    /// The stage, image or context that `from` names. Empty counts as absent.
    pub from: Option<String>,
}

/// `key` or `key=value`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MountField {
    /// In lower case.
    pub key: EcoString,
    /// What stands behind the equals sign, if there is one.
    pub value: Option<EcoString>,
    /// The field as written.
    pub text: EcoString,
}

/// What is mounted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs)] // The variants are the words of the Dockerfile.
pub enum MountType {
    #[default]
    Bind,
    Cache,
    Tmpfs,
    Secret,
    Ssh,
}

/// A mount after expansion.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Mount {
    /// `type`.
    pub kind: MountType,
    /// `from`.
    pub from: Option<String>,
    /// `source`; empty if not given.
    pub source: String,
    /// `target`; empty if not given.
    pub target: String,
    /// `ro`, or what holds for the type by default.
    pub read_only: bool,
    /// `size` of a tmpfs, in bytes; 0 if not given.
    pub size_limit: i64,
    /// `id`; empty if not given.
    pub id: String,
    /// `sharing` of a cache.
    pub sharing: Option<CacheSharing>,
    /// `required`: a missing secret or agent is an error.
    pub required: bool,
    /// `env` of a secret. Empty means the default name.
    pub env: Option<String>,
    /// `mode`.
    pub mode: Option<u32>,
    /// `uid`.
    pub uid: Option<u32>,
    /// `gid`.
    pub gid: Option<u32>,
}

const TYPES: [(&str, MountType); 5] = [
    ("bind", MountType::Bind),
    ("cache", MountType::Cache),
    ("tmpfs", MountType::Tmpfs),
    ("secret", MountType::Secret),
    ("ssh", MountType::Ssh),
];

const SHARING: [(&str, CacheSharing); 3] =
    [("shared", CacheSharing::Shared), ("private", CacheSharing::Private), ("locked", CacheSharing::Locked)];

const KEYS: [&str; 19] = [
    "type",
    "from",
    "source",
    "target",
    "readonly",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "src",
    "dst",
    "destination",
    "ro",
    "rw",
    "readwrite",
    "env",
];

impl fmt::Display for MountType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(TYPES.iter().find(|(_, kind)| kind == self).map_or("", |(name, _)| name))
    }
}

impl MountFlag {
    /// Splits the value of a flag. What is in the fields is checked by [`resolve`](Self::resolve), but for `from`.
    pub(super) fn parse(value: Word) -> Result<Self, Diagnostic> {
        let problem = |message: String| Diagnostic::new(value.span, message);
        let texts = csv::fields(&value.text).map_err(|error| problem(format!("--mount cannot be read: {error}")))?;
        let mut fields = Vec::with_capacity(texts.len());
        let mut from = None;
        for text in texts {
            let (key, field_value) = match text.split_once('=') {
                Some((key, field_value)) => (EcoString::from(key).to_lowercase(), Some(EcoString::from(field_value))),
                None => (text.to_lowercase(), None),
            };
            if let ("from", Some(name)) = (key.as_str(), &field_value) {
                if name.find('$').is_some_and(|at| at + 1 != name.len()) {
                    return Err(problem("'from' of a mount cannot contain variables".to_owned()).with_hint(
                        "name the stage with FROM … AS name, which can use an ARG, and mount from that name",
                    ));
                }
                from = Some(name.to_string()).filter(|name| !name.is_empty());
            }
            fields.push(MountField { key, value: field_value, text });
        }
        Ok(Self { value, fields, from })
    }

    /// The mount, its values expanded with `expand`: a stage's [`Expander::process_word`](crate::expand::Expander::process_word).
    pub fn resolve(&self, mut expand: impl FnMut(&str) -> Result<String, ExpandError>) -> Result<Mount, Diagnostic> {
        let problem = |message: String| Diagnostic::new(self.value.span, message);
        let mut mount = Mount::default();
        let mut read_only = None;
        for field in &self.fields {
            match &field.value {
                None => apply_bare(&mut mount, &mut read_only, field).map_err(&problem)?,
                Some(value) => {
                    let value = expand(value).map_err(|error| problem(error.to_string()))?;
                    apply(&mut mount, &mut read_only, field, value).map_err(|error| error.at(&self.value))?;
                }
            }
        }
        mount.read_only = read_only.unwrap_or(!matches!(mount.kind, MountType::Cache | MountType::Tmpfs));
        check(&mount).map_err(problem)?;
        Ok(mount)
    }
}

/// A message, and the words that may have been meant instead of the one it complains about.
struct Invalid {
    message: String,
    given: String,
    known: Vec<&'static str>,
}

impl Invalid {
    fn at(self, value: &Word) -> Diagnostic {
        Diagnostic::new(value.span, self.message).with_suggestion(&self.given, self.known)
    }
}

impl From<String> for Invalid {
    fn from(message: String) -> Self {
        Self { message, given: String::new(), known: Vec::new() }
    }
}

fn apply_bare(mount: &mut Mount, read_only: &mut Option<bool>, field: &MountField) -> Result<(), String> {
    match field.key.as_str() {
        "readonly" | "ro" => *read_only = Some(true),
        "readwrite" | "rw" => *read_only = Some(false),
        "required" => {
            only_for(mount, "required", &[MountType::Secret, MountType::Ssh])?;
            mount.required = true;
        }
        _ => return Err(format!("'{}' in --mount needs a value: key=value", field.text)),
    }
    Ok(())
}

fn apply(mount: &mut Mount, read_only: &mut Option<bool>, field: &MountField, value: String) -> Result<(), Invalid> {
    let key = field.key.as_str();
    let invalid = || format!("invalid value for {key} in --mount: '{value}'");
    match key {
        "type" => mount.kind = pick(&TYPES, &value, "mount type")?,
        "from" => mount.from = Some(value).filter(|name| !name.is_empty()),
        "source" | "src" => mount.source = value,
        "target" | "dst" | "destination" => mount.target = value,
        "readonly" | "ro" => *read_only = Some(parse_bool(&value).ok_or_else(invalid)?),
        "readwrite" | "rw" => *read_only = Some(!parse_bool(&value).ok_or_else(invalid)?),
        "required" => {
            only_for(mount, key, &[MountType::Secret, MountType::Ssh])?;
            mount.required = parse_bool(&value).ok_or_else(invalid)?;
        }
        "size" => {
            only_for(mount, key, &[MountType::Tmpfs])?;
            mount.size_limit = parse_size(&value).ok_or_else(invalid)?;
        }
        "id" => mount.id = value,
        "sharing" => mount.sharing = Some(pick(&SHARING, &value, "sharing mode")?),
        "mode" => mount.mode = Some(parse_uint(&value, 8).ok_or_else(invalid)?),
        "uid" => mount.uid = Some(parse_uint(&value, 10).ok_or_else(invalid)?),
        "gid" => mount.gid = Some(parse_uint(&value, 10).ok_or_else(invalid)?),
        "env" => mount.env = Some(value),
        _ => {
            return Err(Invalid {
                message: format!("unknown key '{key}' in --mount field '{}'", field.text),
                given: key.to_owned(),
                known: KEYS.to_vec(),
            });
        }
    }
    Ok(())
}

fn pick<T: Copy>(known: &[(&'static str, T)], value: &str, what: &str) -> Result<T, Invalid> {
    let lower = value.to_lowercase();
    known.iter().find(|(name, _)| *name == lower).map(|(_, found)| *found).ok_or_else(|| {
        let names: Vec<_> = known.iter().map(|(name, _)| *name).collect();
        Invalid {
            message: format!("unknown {what} '{value}', expected one of {}", names.join(", ")),
            given: value.to_owned(),
            known: names,
        }
    })
}

/// The type is the one given so far, as in BuildKit: `type` has to come before the keys that depend on it.
fn only_for(mount: &Mount, key: &str, kinds: &[MountType]) -> Result<(), String> {
    if kinds.contains(&mount.kind) {
        return Ok(());
    }
    let names: Vec<_> = kinds.iter().map(ToString::to_string).collect();
    Err(format!(
        "'{key}' is not a key of {} mounts, only of {} (type has to be given before it)",
        mount.kind,
        names.join(" and ")
    ))
}

/// What can only be checked when all fields are known.
fn check(mount: &Mount) -> Result<(), String> {
    if !matches!(mount.kind, MountType::Secret | MountType::Ssh | MountType::Cache) {
        for (key, given) in [("mode", mount.mode), ("uid", mount.uid), ("gid", mount.gid)] {
            if given.is_some() {
                return Err(format!("'{key}' is not allowed for {} mounts", mount.kind));
            }
        }
    }
    if mount.kind == MountType::Secret {
        if mount.from.is_some() {
            return Err("a secret mount has no 'from'".to_owned());
        }
        if mount.sharing.is_some() {
            return Err("a secret mount has no 'sharing'".to_owned());
        }
        if mount.source.is_empty() && mount.target.is_empty() && mount.id.is_empty() {
            return Err("a secret mount needs 'id', 'source' or 'target'".to_owned());
        }
        if !mount.source.is_empty() && !mount.id.is_empty() {
            return Err("a secret mount takes 'source' or 'id', not both".to_owned());
        }
    }
    if mount.sharing.is_some() && mount.kind != MountType::Cache {
        return Err(format!("'sharing' is only for cache mounts, this is a {} mount", mount.kind));
    }
    Ok(())
}

/// The words that Go takes for a truth value.
pub(super) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

fn parse_uint(text: &str, radix: u32) -> Option<u32> {
    // The standard library would take a sign.
    if text.starts_with('+') { None } else { u32::from_str_radix(text, radix).ok() }
}

/// `64`, `64m`, `1.5 GiB`: a number of bytes with binary units, the largest whole number below.
fn parse_size(text: &str) -> Option<i64> {
    let last = text.rfind(|c: char| c.is_ascii_digit() || c == '.' || c == ' ')?;
    let number = if text.as_bytes()[last] == b' ' { &text[..last] } else { &text[..=last] };
    let unit = text[last + 1..].to_ascii_lowercase();
    let size: f64 = number.parse().ok()?;
    if size < 0.0 || size.is_nan() {
        return None;
    }
    let (prefix, rest) = match unit.chars().next() {
        None => return Some(size as i64),
        Some('b') => return (unit.len() == 1).then_some(size as i64),
        Some(prefix) => (prefix, &unit[prefix.len_utf8()..]),
    };
    let power = 1 + "kmgtp".find(prefix)?;
    matches!(rest, "" | "b" | "ib").then_some((size * 1024f64.powi(i32::try_from(power).ok()?)) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Span;

    fn resolve(text: &str) -> Result<Mount, String> {
        MountFlag::parse(Word::new(text, Span::default()))
            .and_then(|flag| flag.resolve(|value| Ok(value.replace("$X", "x"))))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn types_and_defaults() {
        let bind = Mount { target: "/x".into(), read_only: true, ..Mount::default() };
        assert_eq!(resolve("target=/$X"), Ok(bind.clone()));
        assert_eq!(resolve("dst=/x"), Ok(bind.clone()));
        assert_eq!(resolve("destination=/x,rw"), Ok(Mount { read_only: false, ..bind.clone() }));
        assert_eq!(resolve("target=/x,readwrite=true,RO=0"), Ok(Mount { read_only: false, ..bind.clone() }));
        let cache = Mount { kind: MountType::Cache, target: "/x".into(), ..Mount::default() };
        assert_eq!(
            resolve("type=Cache,target=/x,sharing=Locked,mode=0755,uid=1,gid=2,id=i$X"),
            Ok(Mount {
                sharing: Some(CacheSharing::Locked),
                mode: Some(0o755),
                uid: Some(1),
                gid: Some(2),
                id: "ix".into(),
                ..cache.clone()
            })
        );
        let tmpfs = Mount { kind: MountType::Tmpfs, target: "/x".into(), ..Mount::default() };
        assert_eq!(resolve("type=tmpfs,target=/x,size=1.5k"), Ok(Mount { size_limit: 1536, ..tmpfs.clone() }));
        let secret = Mount { kind: MountType::Secret, id: "k".into(), read_only: true, ..Mount::default() };
        assert_eq!(
            resolve("type=secret,id=k,required,env=K"),
            Ok(Mount { required: true, env: Some("K".into()), ..secret.clone() })
        );
        assert_eq!(resolve("\"type=bind\",\"target=/a,b\""), Ok(Mount { target: "/a,b".into(), ..bind.clone() }));
    }

    #[test]
    fn refusals() {
        for (text, expected) in [
            ("", "cannot be read"),
            ("target=/a\"b", "cannot be read"),
            ("from=$X,target=/a", "cannot contain variables"),
            ("type=bnid", "did you mean bind?"),
            ("targt=/x", "did you mean target?"),
            ("foo", "needs a value"),
            ("required", "not a key of bind mounts"),
            ("required=true", "not a key of bind mounts"),
            ("type=cache,size=1", "only of tmpfs"),
            ("type=tmpfs,size=1x", "invalid value for size"),
            ("type=tmpfs,size=-1", "invalid value for size"),
            ("mode=0755", "'mode' is not allowed for bind mounts"),
            ("type=cache,mode=+755", "invalid value for mode"),
            ("type=cache,uid=99999999999", "invalid value for uid"),
            ("type=cache,sharing=lock", "unknown sharing mode 'lock'"),
            ("sharing=locked,target=/x", "only for cache mounts"),
            ("type=secret", "needs 'id'"),
            ("type=secret,id=a,src=b", "not both"),
            ("type=secret,from=x,id=a", "has no 'from'"),
            ("ro=maybe", "invalid value for ro"),
        ] {
            let error = resolve(text).expect_err(text);
            assert!(error.contains(expected), "{text}: {error}");
        }
        // A dollar at the very end is not a variable.
        assert!(resolve("from=a$,target=/x").is_ok());
    }

    #[test]
    fn sizes() {
        for (text, expected) in [
            ("32", Some(32)),
            ("32b", Some(32)),
            ("32B", Some(32)),
            ("32k", Some(32 << 10)),
            ("32 KiB", Some(32 << 10)),
            ("32Kb", Some(32 << 10)),
            ("1.5m", Some(1_572_864)),
            ("1e3", Some(1000)),
            ("2P", Some(2 << 50)),
            ("32bb", None),
            ("k", None),
            ("", None),
            ("32kx", None),
            ("32é", None),
            ("nan", None),
            ("1 2", None),
        ] {
            assert_eq!(parse_size(text), expected, "{text}");
        }
    }
}
