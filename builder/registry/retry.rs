//! The one retry policy: what is tried again, how often, and how long we wait between.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use crate::Error;

/// When and how often a request is made again. Only [transient](Error::is_transient) failures are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// How often one request is made again; a blob that made progress starts counting anew.
    pub per_request: u32,
    /// How often all requests of a client together are made again, so that a dead registry is given up soon.
    pub overall: u32,
    /// The first wait; each further one is twice as long, with jitter.
    pub base: Duration,
    /// The longest wait we choose ourselves.
    pub max_wait: Duration,
    /// The longest wait we let a registry ask for by `Retry-After`; beyond it the request fails at once.
    pub max_retry_after: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            per_request: 5,
            overall: 100,
            base: Duration::from_millis(250),
            max_wait: Duration::from_secs(15),
            max_retry_after: Duration::from_secs(120),
        }
    }
}

/// The policy with what is left of [`RetryPolicy::overall`], shared by all requests of a client.
#[derive(Debug)]
pub(crate) struct Retrier {
    policy: RetryPolicy,
    left: AtomicU32,
}

impl Retrier {
    pub(crate) fn new(policy: &RetryPolicy) -> Self {
        Self { policy: policy.clone(), left: AtomicU32::new(policy.overall) }
    }

    fn take(&self) -> bool {
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }
}

/// The retries of one request.
#[derive(Debug)]
pub(crate) struct Attempts {
    limit: u32,
    used: u32,
}

impl Attempts {
    /// At most `limit` retries, and at most as many as the policy allows.
    pub(crate) fn new(limit: u32) -> Self {
        Self { limit, used: 0 }
    }

    /// At most as many retries as a host deserves that nobody has heard of yet and where nobody listens.
    pub(crate) fn lower(&mut self, limit: u32) {
        self.limit = self.limit.min(limit);
    }

    /// Begins counting anew, after progress.
    pub(crate) fn reset(&mut self) {
        self.used = 0;
    }

    /// How long to wait before the next attempt, or `None` when `error` should be given to the caller.
    pub(crate) fn next(&mut self, retrier: &Retrier, error: &Error) -> Option<Duration> {
        let policy = &retrier.policy;
        if !error.is_transient() || self.used >= self.limit.min(policy.per_request) {
            return None;
        }
        let asked = error.retry_after();
        if asked.is_some_and(|wait| wait > policy.max_retry_after) || !retrier.take() {
            return None;
        }
        let backoff = policy.base.saturating_mul(1 << self.used.min(16)).min(policy.max_wait);
        self.used += 1;
        Some(asked.unwrap_or_else(|| backoff.mul_f64(jitter())))
    }
}

/// A number from 0.5 to 1, so that clients that failed together do not come back together.
pub(crate) fn jitter() -> f64 {
    let random = RandomState::new().hash_one(Instant::now());
    0.5 + (random >> 11) as f64 / (1u64 << 53) as f64 / 2.0
}

/// Reads a `Retry-After` header: seconds, or a date.
pub(crate) fn parse_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Asked, Detail};

    fn status(status: u16, retry_after: Option<u64>) -> Error {
        let retry_after = retry_after.map(Duration::from_secs);
        Error::Status { asked: Asked::boxed("h", "w"), status, retry_after, detail: Detail::default() }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        for (text, want) in [
            ("7", Some(7)),
            (" 0 ", Some(0)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Sun, 06 Nov 1994 08:40:37 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
        ] {
            assert_eq!(parse_retry_after(text, now), want.map(Duration::from_secs), "{text}");
        }
    }

    #[test]
    fn only_transient_failures_are_tried_again() {
        for (code, want) in
            [(408, true), (500, true), (502, true), (503, true), (501, false), (400, false), (416, false)]
        {
            assert_eq!(status(code, None).is_transient(), want, "{code}");
        }
    }

    #[test]
    fn waits_grow_and_budgets_end() {
        let policy = RetryPolicy { per_request: 3, overall: 4, ..RetryPolicy::default() };
        let retrier = Retrier::new(&policy);
        let mut attempts = Attempts::new(u32::MAX);
        let waits: Vec<_> = std::iter::from_fn(|| attempts.next(&retrier, &status(503, None))).collect();
        assert_eq!(waits.len(), 3);
        for (wait, most) in waits.iter().zip([250, 500, 1000]) {
            assert!(*wait <= Duration::from_millis(most) && *wait >= Duration::from_millis(most / 2), "{wait:?}");
        }
        attempts.reset();
        assert_eq!(attempts.next(&retrier, &status(503, Some(9))), Some(Duration::from_secs(9)));
        assert_eq!(attempts.next(&retrier, &status(503, None)), None, "the overall budget is spent");
        let policy = RetryPolicy::default();
        let retrier = Retrier::new(&policy);
        let mut attempts = Attempts::new(u32::MAX);
        assert_eq!(attempts.next(&retrier, &status(429, Some(3600))), None, "too long to wait");
        assert_eq!(attempts.next(&retrier, &status(400, None)), None);
    }
}
