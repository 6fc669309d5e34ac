//! Variables: the environment of a stage, the global ARGs before the first FROM, and those that exist by themselves.

use std::cell::Cell;
use std::collections::HashMap;

use graph::{Platform, ProxyEnv};

use crate::Options;
use crate::expand::{Env, ExpandError, ExpandReason, Expander};

/// What the steps, config and history of a build may hold of expanded text. Variables multiply: a few lines can ask for more than
/// any machine has.
#[derive(Debug, Default)]
pub(crate) struct Volume(Cell<usize>);

impl Volume {
    const MAX: usize = 128 << 20;

    /// Adds so many bytes.
    pub(crate) fn spend(&self, bytes: usize) -> Result<(), ExpandReason> {
        let total = self.0.get().saturating_add(bytes);
        self.0.set(total);
        if self.is_spent() { Err(ExpandReason::TooMuch) } else { Ok(()) }
    }

    /// Nothing more can be held, so that going on only finds the same again.
    pub(crate) fn is_spent(&self) -> bool {
        self.0.get() > Self::MAX
    }
}

/// Variables in the order of their last assignment. An ARG in scope is a variable like one of ENV: a RUN sees both.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scope {
    values: HashMap<String, (u64, String)>,
    next: u64,
}

impl Scope {
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(|(_, value)| value.as_str())
    }

    /// A variable that is set again moves to the end, as in BuildKit: its RUN environments list it there.
    pub(crate) fn set(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.values.insert(name.into(), (self.next, value.into()));
        self.next += 1;
    }

    /// All variables in order.
    pub(crate) fn to_vec(&self) -> Vec<(String, String)> {
        let mut all: Vec<_> = self.values.iter().collect();
        all.sort_unstable_by_key(|(_, (order, _))| *order);
        all.into_iter().map(|(name, (_, value))| (name.clone(), value.clone())).collect()
    }

    /// Expands a word of an instruction.
    pub(crate) fn expand(&self, expander: Expander, word: &str) -> Result<String, ExpandError> {
        expander.process_word(word, self).map(|expansion| expansion.text)
    }

    /// In order: which of several names is suggested depends on it.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        let mut all: Vec<_> = self.values.iter().collect();
        all.sort_unstable_by_key(|(_, (order, _))| *order);
        all.into_iter().map(|(name, _)| name.as_str())
    }

    pub(crate) fn len(&self) -> usize {
        self.values.len()
    }
}

impl Env for Scope {
    fn get(&self, name: &str) -> Option<&str> {
        self.value(name)
    }
}

/// The arguments that every Dockerfile has in its global scope. A stage sees them once it declares them.
pub(crate) fn automatic_args(options: &Options, target_stage: Option<&str>) -> Scope {
    let (build, target) = (&options.build_platform, &options.target_platform);
    let mut env = Scope::default();
    let facts: [(&str, String); 11] = [
        ("BUILDPLATFORM", build.to_string()),
        ("BUILDOS", build.os.clone()),
        ("BUILDOSVERSION", String::new()),
        ("BUILDARCH", build.architecture.clone()),
        ("BUILDVARIANT", build.variant.clone()),
        ("TARGETPLATFORM", target.to_string()),
        ("TARGETOS", target.os.clone()),
        ("TARGETOSVERSION", String::new()),
        ("TARGETARCH", target.architecture.clone()),
        ("TARGETVARIANT", target.variant.clone()),
        ("TARGETSTAGE", target_stage.unwrap_or("default").to_owned()),
    ];
    for (name, value) in facts {
        env.set(name, options.build_args.get(name).unwrap_or(&value).clone());
    }
    env
}

/// ARGs that configure the build and are never variables of a RUN.
pub(crate) fn is_build_setting(name: &str) -> bool {
    matches!(name, "BUILDKIT_SBOM_SCAN_CONTEXT" | "BUILDKIT_SBOM_SCAN_STAGE")
}

/// Build arguments that mean something without being declared.
pub(crate) fn is_predefined(name: &str) -> bool {
    const PROXIES: [&str; 5] = ["http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy"];
    PROXIES.iter().any(|proxy| name.eq_ignore_ascii_case(proxy))
        || name.starts_with("BUILDKIT_")
        || matches!(name, "SOURCE_DATE_EPOCH" | "TARGETSTAGE")
        || ["BUILD", "TARGET"].iter().any(|side| {
            name.strip_prefix(side)
                .is_some_and(|rest| matches!(rest, "PLATFORM" | "OS" | "OSVERSION" | "ARCH" | "VARIANT"))
        })
}

/// The proxy settings among the build arguments. They reach every RUN, in no key, no config and no history.
pub(crate) fn proxy_env(options: &Options) -> ProxyEnv {
    let mut proxy = ProxyEnv::default();
    for (name, value) in &options.build_args {
        let field = match name.to_ascii_lowercase().as_str() {
            "http_proxy" => &mut proxy.http,
            "https_proxy" => &mut proxy.https,
            "ftp_proxy" => &mut proxy.ftp,
            "no_proxy" => &mut proxy.no,
            "all_proxy" => &mut proxy.all,
            _ => continue,
        };
        field.clone_from(value);
    }
    proxy
}

/// Go's reading of a truth value, in which BuildKit's switches are written.
pub(crate) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// What a cross build prints between two platforms: `->arm64`.
pub(crate) fn cross_target(base: &Platform, env: &Scope) -> String {
    let target = env.value("TARGETPLATFORM").and_then(|text| text.parse::<Platform>().ok()).or_else(|| {
        let (os, architecture) = (env.value("TARGETOS"), env.value("TARGETARCH"));
        if os.is_none() && architecture.is_none() && env.value("TARGETVARIANT").is_none() {
            return None;
        }
        let os = os.filter(|os| !os.is_empty()).unwrap_or(&base.os);
        let architecture = architecture.filter(|arch| !arch.is_empty()).unwrap_or(&base.architecture);
        let variant = env.value("TARGETVARIANT").filter(|variant| !variant.is_empty());
        let variant = variant.map(|variant| format!("/{variant}")).unwrap_or_default();
        format!("{os}/{architecture}{variant}").parse().ok()
    });
    let Some(target) = target else { return String::new() };
    if target.os != base.os {
        return format!("->{target}");
    }
    if target.architecture == base.architecture {
        return String::new();
    }
    let variant = if target.variant.is_empty() { String::new() } else { format!("/{}", target.variant) };
    format!("->{}{variant}", target.architecture)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_set_again_moves_to_the_end() {
        let mut env = Scope::default();
        env.set("A", "1");
        env.set("B", "2");
        env.set("A", "3");
        assert_eq!(env.to_vec(), [("B".into(), "2".into()), ("A".into(), "3".into())]);
    }

    #[test]
    fn cross_targets_are_shown() {
        let base: Platform = "linux/amd64".parse().unwrap();
        let mut env = Scope::default();
        assert_eq!(cross_target(&base, &env), "");
        env.set("TARGETARCH", "arm");
        env.set("TARGETVARIANT", "v6");
        assert_eq!(cross_target(&base, &env), "->arm/v6");
        env.set("TARGETPLATFORM", "linux/amd64");
        assert_eq!(cross_target(&base, &env), "");
        env.set("TARGETPLATFORM", "windows/amd64");
        assert_eq!(cross_target(&base, &env), "->windows/amd64");
    }
}
