//! How failures become [`Error`]s: the HTTP library's, and what servers say in the bodies of error answers.

use std::error::Error as StdError;
use std::io;
use std::time::Duration;

use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use serde_json::Value;

use crate::Error;
use crate::error::{Asked, Detail, Unreachable};

/// Turns the HTTP library's failure into ours. URLs are left out: those of blobs are often signed.
pub(crate) fn classify(error: &reqwest::Error, asked: Box<Asked>, after: Duration) -> Error {
    let cause = innermost(error);
    if rustls_error(error).is_some() {
        return Error::Tls { asked, cause };
    }
    if error.is_dns() {
        let (kind, cause) = match chain(error).find_map(|e| e.downcast_ref::<NetError>()) {
            Some(error) if is_no_name(error) => (Unreachable::NoSuchName, "there is no host of this name".into()),
            _ => (Unreachable::Other, format!("name resolution failed: {cause}")),
        };
        return Error::Connect { asked, kind, cause };
    }
    if error.is_timeout() && !error.is_connect() {
        return Error::Timeout { asked, after };
    }
    if error.is_connect() {
        let refused = io_kind(error) == Some(io::ErrorKind::ConnectionRefused);
        let kind = if refused { Unreachable::Refused } else { Unreachable::Other };
        return Error::Connect { asked, kind, cause };
    }
    if error.is_builder() {
        return Error::InvalidResponse { asked, why: cause };
    }
    Error::Interrupted { asked, cause }
}

/// Whether the name servers know that there is no such name, or that it has no address. One that fails may know later.
fn is_no_name(error: &NetError) -> bool {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => {
            matches!(none.response_code, ResponseCode::NXDomain | ResponseCode::NoError)
        }
        _ => false,
    }
}

/// The text of the cause at the end of the chain.
pub(crate) fn innermost(error: &reqwest::Error) -> String {
    let mut last: &dyn StdError = error;
    while let Some(source) = last.source() {
        last = source;
    }
    if std::ptr::eq(std::ptr::from_ref(last).cast::<()>(), std::ptr::from_ref(error).cast::<()>()) {
        // The outermost text would contain the URL.
        return if error.is_timeout() { "timed out".into() } else { "the request failed".into() };
    }
    clean(&last.to_string(), &[])
}

fn chain(error: &reqwest::Error) -> impl Iterator<Item = &(dyn StdError + 'static)> {
    let mut next = error.source();
    std::iter::from_fn(move || {
        let this = next?;
        // An io::Error that wraps another error is transparent to `source`.
        let inner = this.downcast_ref::<io::Error>().and_then(|e| e.get_ref()).map(|e| e as &(dyn StdError + 'static));
        next = inner.or_else(|| this.source());
        Some(this)
    })
}

pub(crate) fn rustls_error(error: &reqwest::Error) -> Option<&rustls::Error> {
    chain(error).find_map(|e| e.downcast_ref::<rustls::Error>())
}

pub(crate) fn io_kind(error: &reqwest::Error) -> Option<io::ErrorKind> {
    chain(error).filter_map(|e| e.downcast_ref::<io::Error>()).last().map(io::Error::kind)
}

/// Finds the code and message in an error body: the distribution API's JSON, a token server's, or a line of text.
pub(crate) fn detail_of(body: &[u8], secrets: &[String]) -> Detail {
    let text = |value: Option<&Value>| clean(value.and_then(Value::as_str).unwrap_or_default(), secrets);
    if let Ok(json) = serde_json::from_slice::<Value>(body) {
        let first = json.get("errors").and_then(|errors| errors.get(0)).unwrap_or(&json);
        let code = first.get("code").or(first.get("error")).filter(|code| code.is_string());
        let message = ["message", "error_description", "details", "detail"].iter().find_map(|key| first.get(*key));
        return Detail { code: text(code), message: text(message.filter(|m| m.is_string())) };
    }
    let line = String::from_utf8_lossy(body);
    let line = line.trim();
    let plain = !line.starts_with('<') && !line.contains('\n');
    Detail { code: String::new(), message: if plain { clean(line, secrets) } else { String::new() } }
}

/// Makes a server's text fit to be shown: without secrets it may have echoed, without control characters, not endless.
pub(crate) fn clean(text: &str, secrets: &[String]) -> String {
    let mut text: String = text.chars().filter(|c| !c.is_control()).collect();
    for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
        text = text.replace(secret.as_str(), "***");
    }
    text.chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_bodies_are_read_and_cleaned() {
        for (body, want) in [
            (r#"{"errors":[{"code":"DENIED","message":"no\u001b[31m red"}]}"#, " (DENIED: no[31m red)"),
            (r#"{"errors":[{"code":"UNKNOWN"}]}"#, " (UNKNOWN)"),
            (r#"{"errors":[]}"#, ""),
            (r#"{"details":"incorrect username or password"}"#, " (incorrect username or password)"),
            (r#"{"error":"invalid_grant","error_description":"expired"}"#, " (invalid_grant: expired)"),
            (r#"{"error":{"a":1},"message":["x"]}"#, ""),
            ("plain words about hunter2\n", " (plain words about ***)"),
            ("<html>no</html>", ""),
            ("null", ""),
            ("", ""),
        ] {
            assert_eq!(detail_of(body.as_bytes(), &["hunter2".into(), String::new()]).to_string(), want, "{body}");
        }
    }
}
