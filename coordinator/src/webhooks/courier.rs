//! The HTTP client of webhooks. Keeps true: a connection goes to an address that `reach` allowed after the
//! name was resolved, and that very address; no redirect is followed, no proxy asked, no connection kept;
//! of an answer only the status counts, and its body is not read; all of it ends by
//! a deadline.

use super::letter::Letter;
use super::reach::Reach;
use std::time::Duration;
use trireme_shared::limits;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use ureq::{Agent, Error};

/// Cheap to clone.
#[derive(Clone)]
pub struct Courier(Agent);

impl Courier {
    /// `deadline` bounds each try.
    pub fn new(reach: Reach, deadline: Duration) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // A redirect could lead anywhere, and is no sign that the event was taken.
            .max_redirects(0)
            .proxy(None)
            .https_only(reach == Reach::Public)
            .timeout_global(Some(deadline))
            .max_response_header_size(limits::WEBHOOK_ANSWER_BYTES_MAX)
            .max_idle_connections(0)
            .user_agent(concat!("trireme/", env!("CARGO_PKG_VERSION")))
            .build();
        let names = DefaultResolver::default();
        let resolver = Checked { reach, names };
        Self(Agent::with_parts(config, DefaultConnector::new(), resolver))
    }

    /// One try; why the event was not taken, in `limits::WEBHOOK_ERROR_BYTES_MAX` at most. Blocks.
    pub fn post(&self, url: &str, letter: &Letter) -> Result<(), String> {
        let sent = self
            .0
            .post(url)
            .header("content-type", "application/json")
            .header("webhook-id", &letter.id)
            .header("webhook-timestamp", letter.at.to_string())
            .header("webhook-signature", &letter.signature)
            .send(&letter.body);
        let why = match sent {
            Ok(answer) if answer.status().is_success() => return Ok(()),
            Ok(answer) if answer.status().is_redirection() => {
                let status = answer.status().as_u16();
                format!("it answered {status}, and redirects are not followed")
            }
            Ok(answer) => format!("it answered {}", answer.status().as_u16()),
            Err(Error::Timeout(_)) => "it did not answer in time".into(),
            Err(Error::Other(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        Err(cut(why))
    }
}

fn cut(mut text: String) -> String {
    let mut end = text.len().min(limits::WEBHOOK_ERROR_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

/// What a name resolves to, less what may not be reached.
#[derive(Debug)]
struct Checked {
    reach: Reach,
    names: DefaultResolver,
}

#[derive(Debug, thiserror::Error)]
#[error("its name leads to no public address: events go to public ones only")]
struct NotPublic;

impl Resolver for Checked {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let plain = uri.scheme_str() != Some("https");
        let found = self.names.resolve(uri, config, timeout)?;
        let mut allowed = self.empty();
        for address in &found {
            if self.reach.allows(address.ip(), plain) {
                allowed.push(*address);
            }
        }
        match allowed.is_empty() {
            true => Err(Error::Other(Box::new(NotPublic))),
            false => Ok(allowed),
        }
    }
}

#[cfg(test)]
#[path = "courier_tests.rs"]
mod tests;
