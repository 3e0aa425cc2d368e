//! Getting an identity: the saved one, or a new one for a join token.

use super::backoff::Backoff;
use crate::{WorkerConfig, WorkerError};
use std::time::SystemTime;
use tokio::time::{Instant, sleep};
use trireme_shared::api::Role;
use trireme_shared::identity::{JoinToken, NodeIdentity};
use trireme_shared::limits;
use trireme_shared::transport::join::join;

/// The identity this worker starts with. A saved one is used for as long as it holds; a token is
/// needed (and used up) only without it.
pub async fn enrol(config: &WorkerConfig) -> Result<NodeIdentity, WorkerError> {
    let token = config.token.as_deref().map(str::parse::<JoinToken>);
    let token = token.transpose()?;
    let folder = config.data_dir.display();
    if let Some(saved) = NodeIdentity::load(&config.data_dir)? {
        let other_cluster = token
            .as_ref()
            .is_some_and(|token| !saved.trusts(token.authority()));
        if other_cluster || saved.node().role() != Role::Worker {
            return Err(WorkerError::Start(format!(
                "{folder} already belongs to {} of another cluster or role: use another --data-dir",
                saved.node()
            )));
        }
        if saved.expires_at() > SystemTime::now() {
            return Ok(saved);
        }
        tracing::warn!(node = %saved.node(), "the saved certificate has expired: joining again");
    }
    let Some(token) = token else {
        return Err(WorkerError::Start(format!(
            "{folder} holds no identity that is still valid: pass --token with a join token \
             (`cluster token create` makes one)"
        )));
    };
    let identity = join_patiently(&config.coordinators, &token).await?;
    identity.save(&config.data_dir)?;
    tracing::info!(node = %identity.node(), "joined");
    Ok(identity)
}

/// A coordinator that starts at the same time may not listen yet; another one may answer.
async fn join_patiently(
    addresses: &[String],
    token: &JoinToken,
) -> Result<NodeIdentity, WorkerError> {
    let give_up = Instant::now() + limits::JOIN_PATIENCE;
    let mut backoff = Backoff::new(u64::from(std::process::id()));
    loop {
        // All addresses in turn; what may be different in a moment is asked again.
        let error = match join(addresses, token).await {
            Ok(joined) => return Ok(joined.identity),
            Err(error) if error.may_try_again() => error,
            Err(error) => return Err(error.into()),
        };
        tracing::info!(%error, "no coordinator lets this worker in yet");
        let wait = backoff.next();
        if Instant::now() + wait > give_up {
            return Err(error.into());
        }
        sleep(wait).await;
    }
}
