//! Delivery of what the state has for tenants' webhooks (`state::webhooks`): signed by `letter`, sent by
//! `courier` to no address but those that `reach` allows.
//!
//! Keeps true: only the leader delivers; one event of a tenant is on its way at a time, and
//! `limits::WEBHOOKS_AT_ONCE` in all; what came of a try is written down by a command before the next. A
//! leader that ends between the two leaves the event to the next one, which sends it again under the same
//! id: at least once.

mod courier;
pub(crate) mod letter;
pub mod reach;

use crate::raft::group::Group;
use crate::state::webhooks::{Event, Secret};
use crate::state::{Command, State};
use courier::Courier;
use letter::Letter;
use reach::Reach;
use std::collections::BTreeMap;
use tokio::task::{Id, JoinSet};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use trireme_shared::ids::TenantId;
use trireme_shared::limits;
use trireme_shared::wall_clock::{unix_ms, unix_seconds};

/// An event, and where it goes.
struct Parcel {
    event: Event,
    /// The tenant's name.
    name: String,
    url: String,
    secret: Secret,
}

/// Runs until `shutdown`; tries that are under way then are left to the next leader.
pub async fn deliver(group: Group, reach: Reach, shutdown: CancellationToken) {
    let courier = Courier::new(reach, limits::WEBHOOK_DEADLINE);
    let mut looks = interval(limits::WEBHOOK_LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut tries = JoinSet::new();
    let mut under_way = BTreeMap::<Id, TenantId>::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            Some(ended) = tries.join_next_with_id() => {
                let id = ended.map_or_else(|error| error.id(), |(id, ())| id);
                under_way.remove(&id);
            }
            _ = looks.tick() => {}
        }
        if !group.leadership().borrow().is_me {
            continue;
        }
        let busy = |tenant| under_way.values().any(|of| *of == tenant);
        let room = limits::WEBHOOKS_AT_ONCE.saturating_sub(under_way.len());
        for parcel in group.read(|state| due(state, busy, room, unix_ms())) {
            let tenant = parcel.event.tenant;
            let task = tries.spawn(send(group.clone(), courier.clone(), parcel));
            under_way.insert(task.id(), tenant);
        }
    }
}

/// The events to send now, milliseconds since 1970: of each tenant that is not busy the oldest that is
/// due; those first that have waited longest.
fn due(state: &State, busy: impl Fn(TenantId) -> bool, room: usize, now_ms: u64) -> Vec<Parcel> {
    let mut of_tenants = BTreeMap::<TenantId, &Event>::new();
    for event in state.webhook_events().filter(|e| e.due_at_ms <= now_ms) {
        of_tenants.entry(event.tenant).or_insert(event);
    }
    let mut events: Vec<&Event> = of_tenants.into_values().collect();
    events.retain(|event| !busy(event.tenant));
    events.sort_by_key(|event| event.due_at_ms);
    let parcel = |event: &&Event| {
        let webhook = state.webhook(event.tenant)?;
        Some(Parcel {
            event: (*event).clone(),
            name: state.tenant(event.tenant)?.name.clone(),
            url: webhook.url.clone(),
            secret: webhook.secret,
        })
    };
    events.iter().take(room).filter_map(parcel).collect()
}

/// One try, and what came of it written down.
async fn send(group: Group, courier: Courier, parcel: Parcel) {
    let Parcel {
        event,
        name,
        url,
        secret,
    } = parcel;
    let letter = Letter::of(&event, &name, &secret, unix_seconds());
    let id = letter.id.clone();
    let sent = tokio::task::spawn_blocking(move || courier.post(&url, &letter)).await;
    let sent = sent.unwrap_or_else(|_| Err("the coordinator failed on it".into()));
    let error = sent.err();
    match &error {
        None => tracing::info!(tenant = %event.tenant, %id, "an event was delivered"),
        Some(error) => {
            tracing::info!(tenant = %event.tenant, %id, error, "an event was not delivered")
        }
    }
    let noted = group.propose(Command::NoteDelivery {
        tenant: event.tenant,
        event: event.seq,
        failures: event.failures,
        error,
    });
    if let Err(error) = noted.await {
        tracing::warn!(%id, %error, "what came of an event's delivery was not noted: it is sent again");
        sleep(limits::RECONNECT_DELAY_MAX).await;
    }
}

#[cfg(test)]
mod tests;
