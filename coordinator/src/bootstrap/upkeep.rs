//! What a coordinator does for its group while it runs, besides its work: says where it listens,
//! renews its certificate, follows the CA, cuts removed nodes off, and lets a state of an older release
//! become one of this.

use super::enter::own_identity;
use crate::raft::group::{Group, Kind};
use crate::state::codec::STATE_VERSION;
use crate::state::{Command, Outcome, State};
use std::path::PathBuf;
use std::time::UNIX_EPOCH;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use trireme_shared::api::CoordinatorReport;
use trireme_shared::identity::{NodeId, NodeIdentity};
use trireme_shared::limits;
use trireme_shared::transport::Endpoint;
use trireme_shared::wall_clock;

/// The tasks, and what they need.
#[derive(Clone)]
pub(crate) struct Upkeep {
    pub(crate) group: Group,
    pub(crate) endpoint: Endpoint,
    pub(crate) this: CoordinatorReport,
    pub(crate) data_dir: PathBuf,
    pub(crate) identity: NodeIdentity,
    /// Tells of every change of the authorities since `identity` was made.
    pub(crate) authorities: watch::Receiver<u64>,
}

impl Upkeep {
    /// Runs until `shutdown`.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let shown = watch::Sender::new(self.identity.clone());
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.announce() => {}
            () = self.renew(&shown) => {}
            () = self.note(shown.subscribe()) => {}
            () = self.cut_off() => {}
            () = self.upgrade() => {}
        }
    }

    /// Tells the group where this coordinator listens, until the state says so. Does not end.
    async fn announce(&self) {
        let mut changes = self.group.changes(Kind::Members);
        loop {
            changes.mark_unchanged();
            let known = self.group.read(|s| {
                let record = s.coordinator(self.this.id);
                record.is_some_and(|c| {
                    c.http == self.this.http
                        && c.control == self.this.control
                        && c.version == env!("CARGO_PKG_VERSION")
                })
            });
            if known {
                if changes.changed().await.is_err() {
                    return std::future::pending().await;
                }
                continue;
            }
            let command = Command::PutCoordinator {
                id: self.this.id,
                http: self.this.http.clone(),
                control: self.this.control.clone(),
                version: env!("CARGO_PKG_VERSION").into(),
            };
            match self.group.propose(command).await {
                Ok(Outcome::Refused(why)) => {
                    tracing::error!(%why, "the group does not know this coordinator");
                    let _ = timeout(limits::RECONNECT_DELAY_MAX, changes.changed()).await;
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::info!(%error, "the group does not answer yet");
                    sleep(limits::RECONNECT_DELAY_MIN).await;
                }
            }
        }
    }

    /// A new certificate at half-life, and whenever the CA changes. Does not end.
    async fn renew(&self, shown: &watch::Sender<NodeIdentity>) {
        let mut changes = self.authorities.clone();
        let mut identity = self.identity.clone();
        loop {
            let changed = tokio::select! {
                changed = changes.changed() => changed.is_ok(),
                () = wall_clock::wait_until(identity.renew_at()) => true,
            };
            if !changed {
                return std::future::pending().await;
            }
            match own_identity(&self.group, self.this.id) {
                Ok(renewed) => {
                    if let Err(error) = renewed.save(&self.data_dir) {
                        tracing::warn!(%error, "the renewed certificate was not saved");
                    }
                    if let Err(error) = self.endpoint.replace_identity(&renewed) {
                        tracing::error!(%error, "the renewed certificate cannot be used");
                    }
                    shown.send_replace(renewed.clone());
                    identity = renewed;
                    tracing::info!("this coordinator's certificate was renewed");
                }
                Err(error) => {
                    tracing::error!(%error, "this coordinator's certificate was not renewed");
                    sleep(limits::RECONNECT_DELAY_MAX).await;
                }
            }
        }
    }

    /// Tells the group of this coordinator's newest certificate, until the state has it. Does not end.
    async fn note(&self, mut shown: watch::Receiver<NodeIdentity>) {
        let mut changes = self.group.changes(Kind::Members);
        let own = NodeId::Coordinator(self.this.id);
        loop {
            changes.mark_unchanged();
            let identity = shown.borrow_and_update().clone();
            let fingerprint = identity.fingerprint().to_string();
            let (member, known) = self.group.read(|s| {
                let record = s.coordinator(self.this.id);
                let noted = record.and_then(|c| c.certificate.as_ref());
                let known = noted.is_some_and(|c| c.fingerprint == fingerprint);
                (record.is_some(), known)
            });
            if known || !member {
                let news = tokio::select! {
                    news = shown.changed() => news,
                    news = changes.changed() => news,
                };
                if news.is_err() {
                    return std::future::pending().await;
                }
                continue;
            }
            let ends = identity.expires_at().duration_since(UNIX_EPOCH);
            let command = Command::PutCertificate {
                node: own,
                fingerprint,
                expires_at: ends.map_or(0, |d| d.as_secs()),
            };
            if let Err(error) = self.group.propose(command).await {
                tracing::debug!(%error, "this coordinator's certificate is not noted yet");
                sleep(limits::RECONNECT_DELAY_MAX).await;
            }
        }
    }

    /// Closes removed nodes' connections at once, and refuses them from then on. Does not end.
    async fn cut_off(&self) {
        let mut members = self.group.changes(Kind::Members);
        let mut workers = self.group.changes(Kind::Workers);
        loop {
            for node in self.removed() {
                self.endpoint.remove_node(node);
            }
            let more = tokio::select! {
                more = members.changed() => more,
                more = workers.changed() => more,
            };
            if more.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Has a state that an older release wrote keep all that this one does. Does not end.
    async fn upgrade(&self) {
        while !self.group.read(State::is_current) {
            let version = STATE_VERSION;
            match self.group.propose(Command::UpgradeTo { version }).await {
                Ok(outcome) => tracing::info!(?outcome, "the state goes on as this release's"),
                Err(error) => {
                    tracing::debug!(%error, "the state is an older release's yet");
                    sleep(limits::RECONNECT_DELAY_MAX).await;
                }
            }
        }
        std::future::pending().await
    }

    /// A removed coordinator is heard until the group counts without it: its voice may be needed for
    /// just that.
    fn removed(&self) -> Vec<NodeId> {
        let counted = self.group.status().map(|s| s.members).unwrap_or_default();
        let counts = |id: u32| {
            let id = u64::from(id);
            counted.voters.contains(&id)
                || counted.learners.contains(&id)
                || counted.voters_outgoing.contains(&id)
        };
        let all: Vec<NodeId> = self.group.read(|s| s.removed().collect());
        all.into_iter()
            .filter(|node| !matches!(node, NodeId::Coordinator(id) if counts(id.0)))
            .collect()
    }
}
