//! The leader ends lives of gateways that were not renewed in time: their requests are settled at what
//! was last told of them, and what was lent to them goes back (`state::billing`).
//!
//! Keeps true: only the leader reaps; the state has the last word on whether a life is over.

use crate::raft::group::Group;
use crate::state::{Command, Outcome, Refusal, State};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use trireme_shared::ids::GatewayLife;
use trireme_shared::limits;
use trireme_shared::wall_clock::unix_ms;

/// Runs until `shutdown`.
pub async fn reap(group: Group, shutdown: CancellationToken) {
    let mut looks = interval(limits::REAP_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = looks.tick() => {}
        }
        if !group.leadership().borrow().is_me {
            continue;
        }
        for life in group.read(|state| over(state, unix_ms())) {
            match group.propose(Command::ReapGateway { life }).await {
                Ok(Outcome::Refused(Refusal::GatewayAlive(_) | Refusal::GatewayGone(_))) => {}
                Ok(Outcome::Refused(why)) => {
                    tracing::warn!(%life, %why, "a gateway was not reaped")
                }
                Ok(_) => tracing::info!(%life, "a gateway is gone: its requests are settled"),
                Err(error) => tracing::warn!(%life, %error, "a gateway was not reaped"),
            }
        }
    }
}

/// Lives that are over at that time, milliseconds since 1970.
fn over(state: &State, now_ms: u64) -> Vec<GatewayLife> {
    let skew = limits::GATEWAY_LEASE_SKEW.as_millis() as u64;
    let over = state
        .gateways()
        .filter(|gateway| now_ms >= gateway.expires_at_ms.saturating_add(skew));
    over.map(|gateway| gateway.life).collect()
}
