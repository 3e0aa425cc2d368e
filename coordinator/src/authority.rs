//! The rotation of the cluster's CA: two authorities stand side by side until nobody needs the older.
//!
//! 1. `AddAuthority`, by the administrator: every node trusts both; the older one signs.
//! 2. `SignWith` the newer, once every node is known to trust it.
//! 3. Nodes renew their certificates, each at half of its old one's life at the latest.
//! 4. `RetireAuthority` the older, once no certificate of it is left.
//!
//! What it keeps true: no step is taken before every member of the cluster has done the one before, or
//! has been away for so long that its certificate has ended. Where a rotation is, is in the state alone,
//! so that the next leader goes on with it. `stage`, `next` and `waits` are pure; `Rotation` drives them
//! on the leader.

use crate::fleet::Fleet;
use crate::raft::group::{Group, Kind, Terms};
use crate::raft::member::MemberStatus;
use crate::raft::types::Index;
use crate::state::{Authority, Command, Origin, Outcome, State};
use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use trireme_shared::identity::{ClusterAuthority, NodeId};
use trireme_shared::ids::CoordinatorId;
use trireme_shared::limits;

/// Where a rotation is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// One authority.
    Settled,
    /// Nodes learn to trust `new`.
    Spreading { new: String, old: String },
    /// Nodes get certificates of `new`.
    Renewing { new: String, old: String },
}

/// What only the leader knows.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Seconds since 1970.
    pub now: u64,
    /// When this leader first saw the stage.
    pub seen_at: u64,
    /// Nodes that are known to trust the newer authority.
    pub trusting: BTreeSet<NodeId>,
}

/// Of the two authorities the one that begins later is the newer (`ClusterAuthority::successor`).
pub fn stage(state: &State) -> Stage {
    let Some(signing) = state.signing_authority() else {
        return Stage::Settled;
    };
    let mut all = state.trusted_authorities();
    let Some(other) = all.find(|a| a.fingerprint != signing.fingerprint) else {
        return Stage::Settled;
    };
    let (signs, other_one) = (signing.fingerprint.clone(), other.fingerprint.clone());
    match begins_at(signing) < begins_at(other) {
        true => Stage::Spreading {
            new: other_one,
            old: signs,
        },
        false => Stage::Renewing {
            new: signs,
            old: other_one,
        },
    }
}

/// The next step, if it is time.
pub fn next(state: &State, facts: &Facts) -> Option<Command> {
    if !waiting_for(state, facts)?.is_empty() {
        return None;
    }
    match stage(state) {
        Stage::Settled => None,
        Stage::Spreading { new, .. } => Some(Command::SignWith { fingerprint: new }),
        Stage::Renewing { old, .. } => Some(Command::RetireAuthority { fingerprint: old }),
    }
}

/// What the rotation is at, in words; `None` where there is none. `facts` are the leader's.
pub fn waits(state: &State, facts: Option<&Facts>) -> Option<String> {
    let doing = match stage(state) {
        Stage::Settled => return None,
        Stage::Spreading { new, .. } => format!("all nodes learn to trust {}", short(&new)),
        Stage::Renewing { new, .. } => format!("all nodes get certificates of {}", short(&new)),
    };
    let waits = facts.and_then(|facts| waiting_for(state, facts));
    Some(match waits {
        Some(waits) if !waits.is_empty() => format!("{doing}; waits for {}", waits.join(", ")),
        _ => doing,
    })
}

/// Who or what keeps the next step off; `None` where no rotation is under way.
fn waiting_for(state: &State, facts: &Facts) -> Option<Vec<String>> {
    let lifetime = limits::NODE_CERTIFICATE_LIFETIME.as_secs();
    let skew = limits::CLOCK_SKEW_MAX.as_secs();
    let (since, least, missing) = match stage(state) {
        Stage::Settled => return None,
        Stage::Spreading { new, .. } => {
            let begun = state.trusted_authorities().find(|a| a.fingerprint == new);
            // It begins a little before it was made.
            let made_at = begun.and_then(begins_at).unwrap_or(facts.seen_at) + skew;
            let settled = facts.seen_at + limits::AUTHORITY_SETTLE.as_secs();
            let missing = nodes(state)
                .filter(|(node, _)| !facts.trusting.contains(node))
                .map(|(node, _)| node.to_string());
            (made_at, settled, missing.collect::<Vec<_>>())
        }
        Stage::Renewing { new, .. } => {
            let since = signs_since(state, &new).unwrap_or(facts.seen_at);
            // Clocks differ, so the time of a certificate alone proves little: but a node that lives
            // has renewed an older one by then.
            let least = since + lifetime / 2 + 2 * skew;
            let old = |expires_at: u64| expires_at.saturating_sub(lifetime) < since;
            let missing = nodes(state)
                .filter(|(_, expires_at)| expires_at.is_none_or(old))
                .map(|(node, _)| node.to_string());
            (since, least, missing.collect())
        }
    };
    // Whoever is missing after that has no valid certificate, and joins anew whatever we do.
    if facts.now > since + lifetime + skew {
        return Some(Vec::new());
    }
    let mut waits = missing;
    if waits.is_empty() && facts.now < least {
        waits.push(format!("{} s more, to be sure", least - facts.now));
    }
    Some(waits)
}

/// Every member, and when its certificate ends.
fn nodes(state: &State) -> impl Iterator<Item = (NodeId, Option<u64>)> {
    let coordinators = state.coordinators().map(|c| {
        let ends = c.certificate.as_ref().map(|c| c.expires_at);
        (NodeId::Coordinator(c.id), ends)
    });
    let workers = state.workers().map(|w| {
        let ends = w.certificate.as_ref().map(|c| c.expires_at);
        (NodeId::Worker(w.id), ends)
    });
    coordinators.chain(workers)
}

/// When that authority began to sign, by the audit log (seconds since 1970).
fn signs_since(state: &State, fingerprint: &str) -> Option<u64> {
    let act = crate::state::audit::sign_with(fingerprint);
    let mut newest_first = state.audit_records().rev();
    let record = newest_first.find(|r| r.what == act && r.outcome == "done");
    record.map(|r| r.at_ms / 1_000)
}

fn begins_at(authority: &Authority) -> Option<u64> {
    seconds(
        ClusterAuthority::from_pem(&authority.pem)
            .ok()?
            .begins_at()
            .ok()?,
    )
}

fn seconds(at: SystemTime) -> Option<u64> {
    at.duration_since(UNIX_EPOCH).ok().map(|d| d.as_secs())
}

fn short(fingerprint: &str) -> &str {
    fingerprint.get(..16).unwrap_or(fingerprint)
}

/// Drives the rotation where this coordinator leads.
#[derive(Clone)]
pub struct Rotation {
    pub group: Group,
    pub fleet: Fleet,
}

/// What this leader remembers of a stage.
struct Seen {
    term: u64,
    stage: Stage,
    at: u64,
    /// The newest certain entry at that time: whoever has it has the stage.
    index: u64,
}

impl Rotation {
    /// Runs until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut changes = self.group.changes(Kind::Authorities);
        let mut seen = None;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.look(&mut seen) => {}
            }
            let wait = timeout(limits::AUTHORITY_INTERVAL, changes.changed());
            let woken = tokio::select! {
                () = shutdown.cancelled() => return,
                woken = wait => woken,
            };
            if matches!(woken, Ok(Err(_))) {
                return;
            }
        }
    }

    async fn look(&self, seen: &mut Option<Seen>) {
        let leadership = *self.group.leadership().borrow();
        let stage = self.group.read(stage);
        if !leadership.is_me || stage == Stage::Settled {
            *seen = None;
            return;
        }
        let now = seconds(SystemTime::now()).unwrap_or(0);
        let fresh = |s: &Seen| s.term == leadership.term && s.stage == stage;
        if !seen.as_ref().is_some_and(fresh) {
            let commit = self.group.status().map_or(0, |s| s.commit);
            *seen = Some(Seen {
                term: leadership.term,
                stage: stage.clone(),
                at: now,
                index: commit,
            });
        }
        let Some(known) = seen else { return };
        let facts = self.facts(known, now);
        let Some(command) = self.group.read(|s| next(s, &facts)) else {
            return;
        };
        let terms = Terms {
            origin: Some(Origin {
                who: format!("coordinator {}", self.group.own()),
                from: "the rotation of the CA".into(),
            }),
            ..Terms::default()
        };
        match self.group.propose_as(terms, command).await {
            Ok(Outcome::Refused(why)) => tracing::warn!(%why, "the rotation of the CA waits"),
            Ok(_) => tracing::info!(?stage, "the rotation of the CA is a step further"),
            Err(error) => tracing::warn!(%error, "the rotation of the CA waits"),
        }
    }

    fn facts(&self, seen: &Seen, now: u64) -> Facts {
        Facts {
            now,
            seen_at: seen.at,
            trusting: match newer(&seen.stage) {
                Some(new) => {
                    let status = self.group.status();
                    trusting(&self.fleet, new, status.as_ref(), seen.index)
                }
                None => BTreeSet::new(),
            },
        }
    }
}

/// What can be known at any coordinator; `None` where no rotation is under way.
pub async fn facts(group: &Group, fleet: &Fleet) -> Option<Facts> {
    let stage = group.read(stage);
    let new = newer(&stage)?;
    let status = group.leader_status().await;
    Some(Facts {
        now: seconds(SystemTime::now())?,
        seen_at: 0,
        trusting: trusting(fleet, new, status.as_ref(), 0),
    })
}

fn newer(stage: &Stage) -> Option<&str> {
    match stage {
        Stage::Settled => None,
        Stage::Spreading { new, .. } | Stage::Renewing { new, .. } => Some(new),
    }
}

/// Workers said so; coordinators that live and have the entry follow it.
fn trusting(
    fleet: &Fleet,
    new: &str,
    leader: Option<&MemberStatus>,
    index: Index,
) -> BTreeSet<NodeId> {
    let mut all = fleet.trusting(new);
    if let Some(leader) = leader {
        let live = leader.followers.iter();
        let live = live.filter(|f| f.active && f.matched >= index);
        let ids = live.map(|f| f.id).chain([leader.id]);
        all.extend(
            ids.filter_map(|id| u32::try_from(id).ok())
                .map(|id| NodeId::Coordinator(CoordinatorId(id))),
        );
    }
    all
}

#[cfg(test)]
#[path = "authority_tests.rs"]
mod tests;
