//! What registries do beside their results, shown where a person looks: which mirror served what, what is tried again, which
//! credentials could not be read.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use registry::Event;
use solver::{Progress, VertexProgress};

/// Takes the events of the registry client to whatever display there is at the time.
#[derive(Default)]
pub struct Notices(Mutex<Shown>);

#[derive(Default)]
struct Shown {
    progress: Option<Progress>,
    /// Announced with the first line.
    vertex: Option<VertexProgress>,
    /// What a mirror failed to serve: the host that served it in its stead is worth a line.
    missed: BTreeSet<String>,
}

/// Lines go to a display while this lives.
pub struct Attached<'a>(&'a Notices);

impl Notices {
    /// Shows what comes on `progress`.
    #[must_use]
    pub fn attach(&self, progress: &Progress) -> Attached<'_> {
        *self.lock() = Shown { progress: Some(progress.clone()), ..Shown::default() };
        Attached(self)
    }

    /// For the client's settings.
    #[must_use]
    pub fn sink(self: &Arc<Self>) -> registry::EventSink {
        let notices = Arc::clone(self);
        Arc::new(move |event| notices.take(event))
    }

    fn take(&self, event: &Event) {
        let mut shown = self.lock();
        let line = match event {
            Event::Served { host, what, mirror: true } => format!("{what}: served by the mirror {host}"),
            Event::Served { host, what, mirror: false } if shown.missed.remove(what) => {
                format!("{what}: served by {host}")
            }
            Event::Served { .. } => return,
            Event::MirrorFailed { host, what, error } => {
                shown.missed.insert(what.clone());
                format!("the mirror {host} failed: {error}")
            }
            Event::Retrying { error, wait, .. } => format!("{error}; trying again in {}", seconds(*wait)),
            Event::CredentialsUnavailable { host, error } => {
                if let Some(progress) = &shown.progress {
                    progress.warn(format!("no credentials for {host}: {error}"));
                }
                return;
            }
            Event::SettingsIgnored { why } => {
                if let Some(progress) = &shown.progress {
                    progress.warn(format!("settings passed over: {why}"));
                }
                return;
            }
            _ => return,
        };
        shown.line(&line);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shown> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shown {
    fn line(&mut self, text: &str) {
        let Some(progress) = &self.progress else { return };
        let vertex = self.vertex.get_or_insert_with(|| {
            let vertex = progress.vertex("[internal] registries");
            vertex.started();
            vertex
        });
        vertex.say(text);
    }
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        let mut shown = self.0.lock();
        if let Some(vertex) = shown.vertex.take() {
            vertex.completed();
        }
        *shown = Shown::default();
    }
}

fn seconds(wait: Duration) -> String {
    format!("{:.1} s", wait.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(events: &[Event]) -> Vec<String> {
        let (progress, mut shown) = solver::channel();
        let notices = Arc::new(Notices::default());
        let sink = notices.sink();
        {
            let _attached = notices.attach(&progress);
            events.iter().for_each(|event| sink(event));
        }
        sink(&events[0]);
        let mut lines = Vec::new();
        while let Some(event) = shown.try_next() {
            match event {
                solver::Event::Log { data, .. } => lines.push(String::from_utf8_lossy(&data).trim_end().to_owned()),
                solver::Event::Warning { message, .. } => lines.push(message),
                _ => {}
            }
        }
        lines
    }

    #[test]
    fn who_served_what_is_told_where_it_is_news() {
        let served = |host: &str, mirror| Event::Served { host: host.into(), what: "manifest of a".into(), mirror };
        assert!(lines(&[served("registry", false)]).is_empty());
        assert_eq!(lines(&[served("m", true)]), ["manifest of a: served by the mirror m"]);
        let failed = Event::MirrorFailed { host: "m".into(), what: "manifest of a".into(), error: "m: gone".into() };
        assert_eq!(
            lines(&[failed, served("registry", false), served("registry", false)]),
            ["the mirror m failed: m: gone", "manifest of a: served by registry"]
        );
    }

    #[test]
    fn what_is_tried_again_is_told_each_time() {
        let again = Event::Retrying {
            host: "r".into(),
            what: "w".into(),
            error: "r: w: connection lost".into(),
            wait: Duration::from_millis(512),
        };
        assert_eq!(
            lines(&[again.clone(), again]),
            ["r: w: connection lost; trying again in 0.5 s", "r: w: connection lost; trying again in 0.5 s"]
        );
    }
}
