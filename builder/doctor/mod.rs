//! What this machine offers for building, what is missing, and how to mend it: everything is tried, nothing is guessed.

mod machine;
mod probes;

use std::path::PathBuf;

use executor::Launcher;
use executor::rootless::Tier;
use serde::Serialize;

use crate::session::Start;
pub use machine::Machine;

/// What was found out about one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Of what.
    pub name: &'static str,
    /// How well it is.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

/// How well something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Good,
    /// Builds work, with less than there could be.
    Limited,
    /// Steps cannot run.
    Missing,
}

/// Everything, and what follows from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnosis {
    /// What steps get here, in one line.
    pub tier: String,
    /// Whether steps can run.
    pub usable: bool,
    /// One by one.
    pub checks: Vec<Check>,
}

impl Check {
    fn good(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, state: State::Good, found: found.into(), fix: None }
    }

    fn limited(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, state: State::Limited, found: found.into(), fix: Some(fix.into()) }
    }

    fn missing(name: &'static str, found: impl Into<String>, fix: Option<String>) -> Self {
        Self { name, state: State::Missing, found: found.into(), fix }
    }
}

/// Tries everything.
pub async fn examine(start: &Start, root: Option<PathBuf>) -> Diagnosis {
    let machine = Machine::look();
    let mut checks = vec![Check::good("machine", machine.describe())];
    let (checked, store) = probes::store(root, &start.tier);
    let launcher = start.launcher.clone().unwrap_or_else(|| Launcher::none(executor::Error::LauncherGone));
    match launcher.check() {
        Ok(()) => {
            checks.extend(identity(&start.tier, &machine));
            let step = probes::step(&launcher).await;
            let runs = step.state != State::Missing;
            checks.push(step);
            checks.push(probes::fence(executor::landlock(), &start.tier));
            checks.push(probes::network(&launcher).await);
            if runs {
                checks.push(probes::limits(&launcher, &start.tier).await);
                checks.push(probes::platforms(&launcher).await);
            }
        }
        Err(error) => {
            checks.push(Check::missing("steps", error.to_string(), machine.fix_for_user_namespaces()));
        }
    }
    checks.push(checked);
    let mut way = "none";
    if let Some(store) = &store {
        let (check, found) = probes::snapshots(store, &launcher, &start.tier).await;
        checks.push(check);
        way = found;
        let without = crate::tier::without_nodes(&start.tier, &store.scratch_directory());
        checks.extend(without.map(|(found, fix)| Check::limited("devices", found, fix)));
    }
    checks.push(probes::names(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default()));
    let usable = checks.iter().all(|check| check.state != State::Missing);
    Diagnosis { tier: tier(&start.tier, way, &checks, usable), usable, checks }
}

/// Who we are, and which ids there are.
fn identity(tier: &Tier, machine: &Machine) -> Vec<Check> {
    match tier {
        Tier::Root if machine.in_user_namespace => vec![
            Check::good("user", "root of a user namespace that somebody else made"),
            match machine.ids {
                0..65536 => Check::limited(
                    "ids",
                    format!("{} ids are mapped here: files of other owners in an image cannot be kept", machine.ids),
                    "map at least 65536 ids where the namespace is made (a pod's hostUsers, --uidmap of an engine)",
                ),
                many => Check::good("ids", format!("{many} ids are mapped")),
            },
        ],
        Tier::Root => vec![Check::good("user", "root of the machine")],
        Tier::SubordinateIds { count } => vec![
            Check::good("user", format!("{}, as root of an own user namespace", machine.user)),
            Check::good("ids", format!("{count} subordinate ids")),
        ],
        Tier::SingleId { reason } => vec![
            Check::good("user", format!("{}, as root of an own user namespace", machine.user)),
            Check::limited("ids", format!("one id for all files: {reason}"), machine.fix_for_ids()),
        ],
        Tier::Confined { reason } => vec![Check::limited(
            "isolation",
            format!("none but another root directory, as the container permits no more: {reason}"),
            machine.fix_for_user_namespaces().unwrap_or_default(),
        )],
    }
}

/// The result in one line.
fn tier(tier: &Tier, snapshots: &str, checks: &[Check], usable: bool) -> String {
    if !usable {
        return "none: RUN steps cannot run here".to_owned();
    }
    let who = match tier {
        Tier::Root => "root",
        Tier::SubordinateIds { .. } => "rootless with subordinate ids",
        Tier::SingleId { .. } => "rootless with one id",
        Tier::Confined { .. } => "confined: steps are not isolated from one another and the container",
    };
    let limited = |name: &str| checks.iter().any(|check| check.name == name && check.state != State::Good);
    let network = if limited("network") { "the host's" } else { "private" };
    format!("{who}; snapshots: {snapshots}; network: {network}")
}

impl Diagnosis {
    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let width = self.checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
        let mut text = String::new();
        for check in &self.checks {
            let mark = match check.state {
                State::Good => "ok  ",
                State::Limited => "less",
                State::Missing => "NO  ",
            };
            text.push_str(&format!("{mark}  {:width$}  {}\n", check.name, check.found));
            for line in check.fix.iter().flat_map(|fix| fix.lines()) {
                text.push_str(&format!("      {:width$}  > {line}\n", ""));
            }
        }
        text.push_str(&format!("\ntier: {}\n", self.tier));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diagnosis_reads_well() {
        let checks = vec![
            Check::good("user", "ann, as root of an own user namespace"),
            Check::limited("snapshots", "no overlays: the store is on an overlay itself", "use --root"),
            Check::limited("network", "none", "a\nb"),
        ];
        let tier = tier(&Tier::SubordinateIds { count: 65536 }, "copies", &checks, true);
        let diagnosis = Diagnosis { tier, usable: true, checks };
        insta::assert_snapshot!(diagnosis.text(), @r"
        ok    user       ann, as root of an own user namespace
        less  snapshots  no overlays: the store is on an overlay itself
                         > use --root
        less  network    none
                         > a
                         > b

        tier: rootless with subordinate ids; snapshots: copies; network: the host's
        ");
        let json = serde_json::to_value(&diagnosis).expect("JSON");
        assert_eq!(json["checks"][1]["state"], "limited");
        assert!(json["checks"][0].get("fix").is_none());
    }

    #[test]
    fn what_forbids_user_namespaces_decides_the_fix() {
        let machine = Machine { apparmor_restricts: true, program: "/opt/rbuild".into(), ..Machine::default() };
        let fix = machine.fix_for_user_namespaces().expect("a profile");
        assert!(fix.contains("profile rbuild /opt/rbuild flags=(unconfined)") && fix.contains("userns,"), "{fix}");
        let machine = Machine { max_user_namespaces: Some(0), ..Machine::default() };
        let fix = machine.fix_for_user_namespaces().expect("a setting");
        assert_eq!(fix, "sysctl -w user.max_user_namespaces=15000");
    }

    #[test]
    fn few_ids_in_somebody_elses_namespace_are_said() {
        let machine = Machine { in_user_namespace: true, ids: 1, ..Machine::default() };
        assert_eq!(identity(&Tier::Root, &machine)[1].state, State::Limited);
        let machine = Machine { ids: 65536, ..machine };
        assert_eq!(identity(&Tier::Root, &machine)[1].state, State::Good);
    }
}
