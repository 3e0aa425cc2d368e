//! Getting an identity: the saved one, or a new one for a join token.

use super::backoff::Backoff;
use crate::{WorkerConfig, WorkerError};
use std::net::SocketAddr;
use std::time::SystemTime;
use tokio::time::{Instant, sleep};
use trireme_shared::identity::{JoinToken, NodeId, NodeIdentity};
use trireme_shared::ids::WorkerId;
use trireme_shared::limits;
use trireme_shared::transport::join::{JoinError, join};
use trireme_shared::transport::{Endpoint, Protocol, TransportError};

/// The identity this worker starts with. A saved one is used for as long as it holds; a token is
/// needed (and used up) only without it.
pub async fn enrol(config: &WorkerConfig) -> Result<(NodeIdentity, WorkerId), WorkerError> {
    let token = config.token.as_deref().map(str::parse::<JoinToken>);
    let token = token.transpose()?;
    let folder = config.data_dir.display();
    if let Some(saved) = NodeIdentity::load(&config.data_dir)? {
        let node = saved.node();
        let NodeId::Worker(worker) = node else {
            return Err(WorkerError::Start(format!(
                "{folder} belongs to {node}, which is no worker: use another --data-dir"
            )));
        };
        let holds = saved.expires_at() > SystemTime::now();
        let vouched = token.as_ref().is_none_or(|t| saved.trusts(t.authority()));
        // The CA that the token names may have been replaced since: the coordinators tell.
        let is_ours = vouched || (holds && is_accepted(config, &saved).await?);
        if !is_ours {
            return Err(WorkerError::Start(format!(
                "{folder} already belongs to {node} of another cluster: use another --data-dir"
            )));
        }
        if holds {
            return Ok((saved, worker));
        }
        tracing::warn!(%node, "the saved certificate has expired: joining again");
    }
    let Some(token) = token else {
        return Err(WorkerError::Start(format!(
            "{folder} holds no identity that is still valid: pass --token with a join token \
             (`cluster token create` makes one)"
        )));
    };
    let joining = || async { Ok(join(&config.coordinators, &token).await?.identity) };
    let identity = patiently("no coordinator lets this worker in yet", joining).await?;
    let NodeId::Worker(worker) = identity.node() else {
        return Err(WorkerError::Start(format!(
            "the token made this node {}, not a worker: ask for a worker token",
            identity.node()
        )));
    };
    identity.save(&config.data_dir)?;
    tracing::info!(node = %identity.node(), "joined");
    Ok((identity, worker))
}

/// Whether a coordinator that the user named is of the cluster that `saved` is of. Its own "no" to a
/// worker of the cluster is for the control stream to hear.
async fn is_accepted(config: &WorkerConfig, saved: &NodeIdentity) -> Result<bool, WorkerError> {
    let from = SocketAddr::new(config.listen.ip(), 0);
    let endpoint = Endpoint::bind(from, saved, &[])?;
    let asking = || async {
        let mut unreachable = None;
        for address in &config.coordinators {
            let dialled = endpoint.connect_coordinator(address, Protocol::Control);
            match dialled.await {
                Ok(connection) => {
                    connection.leave("only asked who is here");
                    return Ok(true);
                }
                Err(TransportError::WrongPeer { .. }) => {}
                Err(error) => unreachable = Some(error),
            }
        }
        unreachable.map_or(Ok(false), |error| Err(error.into()))
    };
    let accepted = patiently("no coordinator tells its cluster yet", asking).await;
    endpoint.close().await;
    Ok(accepted?)
}

/// Asks all in turn, and again what may be different in a moment: a coordinator that starts at the same
/// time may not listen yet.
async fn patiently<T, Fut>(not_yet: &str, ask: impl Fn() -> Fut) -> Result<T, JoinError>
where
    Fut: Future<Output = Result<T, JoinError>>,
{
    let give_up = Instant::now() + limits::JOIN_PATIENCE;
    let mut backoff = Backoff::new(u64::from(std::process::id()));
    loop {
        let error = match ask().await {
            Ok(answer) => return Ok(answer),
            Err(error) if error.may_try_again() => error,
            Err(error) => return Err(error),
        };
        tracing::info!(%error, "{not_yet}");
        let wait = backoff.next();
        if Instant::now() + wait > give_up {
            return Err(error);
        }
        sleep(wait).await;
    }
}
