//! HTTP: one agent, bounded waiting, attempts that are spaced as the server asks.

use crate::error::HubError;
use crate::settings::Settings;
use std::io::Read;
use std::time::{Duration, SystemTime};
use ureq::config::RedirectAuthHeaders;
use ureq::http::Response;
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

/// How often something is tried before it counts as failed. What brings bytes does not count.
pub const ATTEMPTS: u32 = 5;
/// Largest answer in JSON.
const MAX_JSON: u64 = 64 << 20;
/// Longest wait for a connection, and for an answer to begin.
const CONNECT: Duration = Duration::from_secs(30);
const ANSWER: Duration = Duration::from_secs(60);
/// A body that takes longer is cut and asked for again from there: so a connection that has died is noticed.
const BODY: Duration = Duration::from_secs(120);

/// Asks the hub.
#[derive(Debug)]
pub struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
    longest_wait: u64,
}

/// How an attempt ended that may be repeated.
pub struct Failed {
    /// What happened, for the message.
    pub what: String,
    /// Seconds to wait, as the server asks.
    pub wait: Option<u64>,
}

/// An attempt's result: an answer, a failure that may pass, or one that will not.
pub enum Attempt<T> {
    /// It worked.
    Done(T),
    /// It may work later.
    Again(Failed),
}

impl Client {
    pub fn new(settings: &Settings) -> Result<Self, HubError> {
        let mut tls = TlsConfig::builder();
        if let Some(path) = &settings.certificates {
            let bytes = std::fs::read(path).map_err(HubError::io(path, "read the certificates in it"))?;
            let items = parse_pem(&bytes).filter_map(Result::ok);
            let certificates: Vec<_> =
                items.filter_map(|i| if let PemItem::Certificate(c) = i { Some(c) } else { None }).collect();
            if certificates.is_empty() {
                return Err(HubError::Certificates { path: path.clone() });
            }
            tls = tls.root_certs(RootCerts::new_with_certs(&certificates));
        }
        let mut config = Agent::config_builder()
            .tls_config(tls.build())
            .http_status_as_error(false)
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .max_redirects(8)
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(ANSWER))
            .timeout_recv_body(Some(BODY))
            .user_agent(concat!("ashlar/", env!("CARGO_PKG_VERSION")));
        if is_loopback(&settings.endpoint) {
            config = config.proxy(None);
        }
        Ok(Self {
            agent: config.build().into(),
            endpoint: settings.endpoint.clone(),
            token: settings.token.clone(),
            longest_wait: settings.longest_wait,
        })
    }

    /// The address of `path` at the hub.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.endpoint)
    }

    /// Whether a token goes along.
    fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// One request, from byte `from` on, up to and including `to`. Statuses 200 and 206 are answers.
    pub fn get(&self, url: &str, from: u64, to: Option<u64>) -> Result<Attempt<Response<Body>>, HubError> {
        let mut request = self.agent.get(url);
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        if from > 0 || to.is_some() {
            let to = to.map(|t| t.to_string()).unwrap_or_default();
            request = request.header("Range", format!("bytes={from}-{to}"));
        }
        let response = match request.call() {
            Ok(response) => response,
            Err(ureq::Error::BadUri(what)) => return Err(HubError::Answer { url: url.to_owned(), what }),
            Err(e) => return Ok(Attempt::Again(Failed { what: e.to_string(), wait: None })),
        };
        let status = response.status().as_u16();
        match status {
            200 | 206 => Ok(Attempt::Done(response)),
            408 | 429 | 500 | 502 | 503 | 504 => {
                let asked = header(&response, "retry-after").and_then(|v| seconds(&v, SystemTime::now()));
                Ok(Attempt::Again(Failed { what: format!("the hub answers {status}"), wait: asked }))
            }
            _ => Err(self.refusal(url, status, &response)),
        }
    }

    /// Tries until it works, is refused, or has failed [`ATTEMPTS`] times.
    pub fn retry<T>(
        &self,
        url: &str,
        mut attempt: impl FnMut() -> Result<Attempt<T>, HubError>,
    ) -> Result<T, HubError> {
        let mut attempts = 0;
        loop {
            match attempt()? {
                Attempt::Done(value) => return Ok(value),
                Attempt::Again(failed) => {
                    attempts += 1;
                    self.wait(url, attempts, failed)?;
                }
            }
        }
    }

    /// Waits before the next attempt, or gives up.
    pub fn wait(&self, url: &str, attempts: u32, failed: Failed) -> Result<(), HubError> {
        if attempts >= ATTEMPTS {
            return Err(HubError::Connection { url: url.to_owned(), what: failed.what, attempts });
        }
        // 1, 2, 4, 8 s, or what the server asks; a tenth of a second where no wait is allowed, in tests.
        let wait = failed.wait.unwrap_or(1 << (attempts - 1)).min(self.longest_wait);
        std::thread::sleep(Duration::from_secs(wait).max(Duration::from_millis(10)));
        Ok(())
    }

    /// An answer in JSON.
    pub fn json(&self, path: &str) -> Result<serde_json::Value, HubError> {
        let url = self.url(path);
        let text = self.retry(&url, || match self.get(&url, 0, None)? {
            Attempt::Again(failed) => Ok(Attempt::Again(failed)),
            Attempt::Done(mut response) => {
                let mut text = String::new();
                let body = response.body_mut().as_reader();
                Ok(match body.take(MAX_JSON).read_to_string(&mut text) {
                    Ok(_) => Attempt::Done(text),
                    Err(e) => Attempt::Again(Failed { what: e.to_string(), wait: None }),
                })
            }
        })?;
        serde_json::from_str(&text).map_err(|e| HubError::Answer { url, what: format!("the answer is no JSON: {e}") })
    }

    fn refusal(&self, url: &str, status: u16, response: &Response<Body>) -> HubError {
        let said = header(response, "x-error-message").or_else(|| header(response, "x-error-code")).unwrap_or_default();
        let hint = match (status, self.has_token()) {
            (401, false) => {
                "there is no such model, or it is private or gated: give a token by HF_TOKEN or `hf auth login`"
            }
            (401, true) => "there is no such model, or the token is not valid for it",
            (403, _) => "the model is gated: accept its terms on its page, with the account of the token",
            (404, _) => "there is no such model, revision or file: compare the name with its page",
            _ => "try again later",
        };
        let said = said.chars().filter(|c| !c.is_control()).take(200).collect();
        HubError::Status { url: url.to_owned(), status, said, hint: hint.to_owned() }
    }
}

/// A header as text.
pub fn header(response: &Response<Body>, name: &str) -> Option<String> {
    response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned)
}

/// `Retry-After`: seconds, or a date.
fn seconds(value: &str, now: SystemTime) -> Option<u64> {
    if let Ok(seconds) = value.trim().parse() {
        return Some(seconds);
    }
    let then = http_date(value.trim())?;
    let now = now.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs();
    Some(then.saturating_sub(now))
}

/// Seconds since 1970 of `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110).
fn http_date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut words = text.split_once(", ")?.1.split(' ');
    let day: u64 = words.next()?.parse().ok().filter(|d| (1..=31).contains(d))?;
    let month = words.next().and_then(|m| MONTHS.iter().position(|n| *n == m))? as u64;
    let year: u64 = words.next()?.parse().ok().filter(|y| (1970..=9999).contains(y))?;
    let mut clock = words.next()?.split(':').map(|p| p.parse::<u64>().ok());
    let (h, m, s) = (clock.next()??, clock.next()??, clock.next()??);
    // Days since 1970 of a date in the Gregorian calendar, years beginning in March (Hinnant 2013).
    let (y, mp) = if month < 2 { (year - 1, month + 10) } else { (year, month - 2) };
    let of_era = (y % 400) * 365 + (y % 400) / 4 - (y % 400) / 100 + (153 * mp + 2) / 5 + day - 1;
    let days = (y / 400 * 146_097 + of_era).checked_sub(719_468)?;
    Some(days * 86_400 + h.min(23) * 3600 + m.min(59) * 60 + s.min(60))
}

/// Whether the endpoint is this machine, which no proxy reaches.
fn is_loopback(endpoint: &str) -> bool {
    let host = endpoint.split("://").nth(1).unwrap_or(endpoint);
    ["127.", "localhost", "[::1]"].iter().any(|h| host.starts_with(h))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_read_in_seconds_and_as_dates() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_770);
        assert_eq!(seconds("7", now), Some(7));
        assert_eq!(seconds("Sun, 06 Nov 1994 08:49:37 GMT", now), Some(7));
        assert_eq!(seconds("Sun, 06 Nov 1993 08:49:37 GMT", now), Some(0));
        assert_eq!(http_date("Thu, 29 Feb 2024 00:00:00 GMT"), Some(1_709_164_800));
        for text in ["", "soon", "Sun, 99 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994"] {
            assert_eq!(seconds(text, now), None, "{text}");
        }
    }

    #[test]
    fn only_this_machine_is_asked_past_a_proxy() {
        assert!(is_loopback("http://127.0.0.1:80") && is_loopback("http://localhost:1"));
        assert!(!is_loopback("https://huggingface.co"));
    }
}
