//! What tenants do to their webhooks: one command each.
//!
//! What it keeps true: a secret is handed out only if it is the one in the state; nobody fills the log by
//! asking too often.

use super::admin::{random, unexpected};
use super::{Fleet, FleetError};
use crate::raft::group::Terms;
use crate::state::webhooks::{Event, Secret, Tells};
use crate::state::{Command, Outcome, State, Topics};
use trireme_shared::ids::TenantId;
use trireme_shared::wall_clock::unix_ms;

impl Fleet {
    /// Sets where a tenant is told, and gives the secret where it is a new one.
    pub async fn put_webhook(
        &self,
        terms: Terms,
        tenant: TenantId,
        url: String,
        topics: Topics,
        rotate: bool,
    ) -> Result<Option<Secret>, FleetError> {
        self.may_act(tenant)?;
        let secret: Secret = random()?;
        let command = Command::PutWebhook {
            tenant,
            url,
            topics,
            secret,
            rotate,
        };
        match self.act(terms, command).await? {
            Outcome::Webhook { fresh: false } => Ok(None),
            Outcome::Webhook { fresh: true } => {
                let kept = |s: &State| s.webhook(tenant).map(|w| w.secret);
                match self.group().read(kept) == Some(secret) {
                    true => Ok(Some(secret)),
                    false => Err(FleetError::Earlier(
                        "this was done by an earlier try, whose secret was not kept: ask for another with \
                         'rotate'"
                            .into(),
                    )),
                }
            }
            other => Err(unexpected(other)),
        }
    }

    pub async fn remove_webhook(&self, terms: Terms, tenant: TenantId) -> Result<(), FleetError> {
        self.may_act(tenant)?;
        self.done(terms, Command::RemoveWebhook { tenant }).await
    }

    /// Has an event sent, and gives its id.
    pub async fn test_webhook(&self, terms: Terms, tenant: TenantId) -> Result<String, FleetError> {
        self.may_act(tenant)?;
        match self.act(terms, Command::TestWebhook { tenant }).await? {
            Outcome::Event(seq) => Ok(Event::id_of(tenant, seq, &Tells::Test)),
            other => Err(unexpected(other)),
        }
    }

    /// What would be refused is not proposed: the log and its audit records are everybody's.
    fn may_act(&self, tenant: TenantId) -> Result<(), FleetError> {
        let may = |s: &State| s.may_act_on_webhook(tenant, unix_ms());
        let may = self.group().read(may);
        may.map_err(|why| unexpected(Outcome::Refused(why)))
    }
}
