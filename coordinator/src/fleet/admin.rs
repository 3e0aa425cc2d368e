//! The acts of an administrator. Each is one command of the replicated log, checked before it is
//! proposed and written to the audit log as it takes effect.
//!
//! What it keeps true: an act that is asked again under the same proposal id takes effect once, and a
//! secret is handed out only if it is the one whose hash is in the state.

use super::{Fleet, FleetError, models};
use crate::placement;
use crate::raft::group::{Group, Terms};
use crate::state::{Command, Outcome, Refusal, TokenRole};
use sha2::{Digest, Sha256};
use trireme_shared::api::{self, DeploymentReport, TokenCreated, TokenReport, TokenRequest};
use trireme_shared::identity::NodeId;
use trireme_shared::ids::{CoordinatorId, DeploymentId, TokenRecordId};
use trireme_shared::limits;
use trireme_shared::plan::DeploymentSpec;
use trireme_shared::wall_clock::unix_seconds;

impl Fleet {
    pub(super) fn group(&self) -> &Group {
        &self.shared.group
    }

    /// Creates or replaces the deployment of that model name. Opens the model to check the split.
    pub async fn deploy(
        &self,
        terms: Terms,
        mut spec: DeploymentSpec,
    ) -> Result<DeploymentReport, FleetError> {
        check_name("a model's name", &spec.model.name)?;
        let opened = models::open(&spec.model, self.shared.cache_dir.clone()).await?;
        placement::check_split(&opened.manifest, &spec)
            .map_err(|e| FleetError::Refused(e.to_string()))?;
        if spec.model.sha256.is_none() {
            // Every worker then refuses a file that is not this one.
            spec.model.sha256 = opened.sha256;
        }
        let command = Command::PutDeployment { spec: spec.clone() };
        let _at_hand = self.keep_at_hand(spec.model.clone(), opened.manifest);
        let id = match self.act(terms, command).await? {
            Outcome::Deployment(id) => id,
            other => return Err(unexpected(other)),
        };
        self.until_known(id, &spec).await;
        self.deployment_report(id)
            .ok_or_else(|| FleetError::Refused("the deployment was removed meanwhile".into()))
    }

    /// Waits until this coordinator's own copy of the state has the deployment, so that the answer
    /// shows its replicas. One that lags behind for long answers with what it knows.
    async fn until_known(&self, id: DeploymentId, spec: &DeploymentSpec) {
        let mut applied = self.group().applied();
        let known = async {
            loop {
                applied.borrow_and_update();
                self.catch_up();
                let known = self.lock().core.spec(id) == Some(spec);
                if known || applied.changed().await.is_err() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(limits::PROPOSE_DEADLINE, known).await;
    }

    /// Ends the deployment of that model name.
    pub async fn undeploy(&self, terms: Terms, name: &str) -> Result<(), FleetError> {
        let id = self
            .group()
            .read(|s| s.deployment_named(name).map(|d| d.id));
        let Some(id) = id else {
            let text = "no deployment has that name: `cluster status` shows them".to_owned();
            return Err(FleetError::Unknown(text));
        };
        self.done(terms, Command::RemoveDeployment { id }).await
    }

    /// A join token. Its secret is in the answer and nowhere else.
    pub async fn create_token(
        &self,
        terms: Terms,
        request: TokenRequest,
    ) -> Result<TokenCreated, FleetError> {
        if !(1..=limits::TOKEN_USES_MAX).contains(&request.uses) {
            let text = format!("uses must be 1 to {}", limits::TOKEN_USES_MAX);
            return Err(FleetError::Refused(text));
        }
        if !(1..=limits::TOKEN_TTL_SECONDS_MAX).contains(&request.ttl_seconds) {
            let text = format!("ttl_seconds must be 1 to {}", limits::TOKEN_TTL_SECONDS_MAX);
            return Err(FleetError::Refused(text));
        }
        if let Some(provider) = &request.provider {
            check_name("a provider's name", provider)?;
        }
        let fingerprint = self.signer()?.0.fingerprint();
        let secret = random::<32>()?;
        let hash: [u8; 32] = Sha256::digest(secret).into();
        let expires_at = unix_seconds().saturating_add(request.ttl_seconds);
        let command = Command::CreateToken {
            secret_hash: hash,
            role: stored_role(request.role),
            provider: request.provider,
            uses: request.uses,
            expires_at,
        };
        let id = match self.act(terms, command).await? {
            Outcome::Token(id) => id,
            other => return Err(unexpected(other)),
        };
        let stored = self.group().read(|s| s.token(id).map(|t| t.secret_hash));
        if stored != Some(hash) {
            return Err(FleetError::Earlier(format!(
                "this was done by an earlier try, whose secret was not kept: revoke token {id} and \
                 make another"
            )));
        }
        // The form that `shared::identity::JoinToken` parses.
        Ok(TokenCreated {
            id,
            token: format!("{fingerprint}.{id}.{}", hex::encode(secret)),
            expires_at,
        })
    }

    /// All join tokens, used up and revoked ones too.
    pub fn tokens(&self) -> Vec<TokenReport> {
        self.group().read(|s| s.tokens().map(report).collect())
    }

    /// Lets nobody in with that token any more. Nodes that joined with it stay.
    pub async fn revoke_token(
        &self,
        terms: Terms,
        id: TokenRecordId,
    ) -> Result<TokenReport, FleetError> {
        let missing = || {
            FleetError::Unknown(format!(
                "there is no join token {id}: `cluster token list` shows them"
            ))
        };
        match self.act(terms, Command::RevokeToken { id }).await? {
            Outcome::Done => {}
            Outcome::Refused(Refusal::UnknownToken) => return Err(missing()),
            other => return Err(unexpected(other)),
        }
        self.group()
            .read(|s| s.token(id).map(report))
            .ok_or_else(missing)
    }

    /// A learner shall vote.
    pub async fn promote(&self, terms: Terms, id: CoordinatorId) -> Result<(), FleetError> {
        self.done(terms, Command::PromoteCoordinator { id }).await
    }

    /// Its connections end at once, everywhere, and its certificate is good for nothing.
    pub async fn remove_node(&self, terms: Terms, node: NodeId) -> Result<(), FleetError> {
        let command = match node {
            NodeId::Coordinator(id) => Command::RemoveCoordinator { id },
            NodeId::Worker(id) => Command::RemoveWorker { id },
        };
        self.done(terms, command).await
    }

    /// Begins a rotation of the CA, which `crate::authority` then drives.
    pub async fn rotate_authority(&self, terms: Terms) -> Result<(), FleetError> {
        let successor = self.signer()?.0.successor();
        let pem = successor
            .map_err(|e| FleetError::Refused(e.to_string()))?
            .to_pem();
        self.done(terms, Command::AddAuthority { pem }).await
    }

    /// Writes an act down that changes nothing else.
    pub async fn record_act(&self, terms: Terms, what: &str) -> Result<(), FleetError> {
        let command = Command::RecordAct {
            what: what.into(),
            detail: String::new(),
        };
        self.done(terms, command).await
    }

    pub(super) async fn done(&self, terms: Terms, command: Command) -> Result<(), FleetError> {
        match self.act(terms, command).await? {
            Outcome::Done => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    pub(super) async fn act(&self, terms: Terms, command: Command) -> Result<Outcome, FleetError> {
        Ok(self.group().propose_as(terms, command).await?)
    }
}

fn report(token: &crate::state::TokenRecord) -> TokenReport {
    TokenReport {
        id: token.id,
        role: match token.role {
            TokenRole::Worker => api::TokenRole::Worker,
            TokenRole::Coordinator => api::TokenRole::Coordinator,
            TokenRole::Learner => api::TokenRole::Learner,
        },
        provider: token.provider.clone(),
        uses_left: token.uses_left,
        expires_at: token.expires_at,
        revoked: token.revoked,
    }
}

fn stored_role(role: api::TokenRole) -> TokenRole {
    match role {
        api::TokenRole::Worker => TokenRole::Worker,
        api::TokenRole::Coordinator => TokenRole::Coordinator,
        api::TokenRole::Learner => TokenRole::Learner,
    }
}

pub(super) fn check_name(what: &str, name: &str) -> Result<(), FleetError> {
    let length = (1..=limits::NAME_BYTES_MAX).contains(&name.len());
    if length && name.chars().all(|c| !c.is_control()) {
        return Ok(());
    }
    Err(FleetError::Refused(format!(
        "{what} has 1 to {} bytes and no control characters",
        limits::NAME_BYTES_MAX
    )))
}

pub(super) fn random<const N: usize>() -> Result<[u8; N], FleetError> {
    let mut bytes = [0u8; N];
    getrandom::fill(&mut bytes)
        .map_err(|e| FleetError::Refused(format!("the system gives no random numbers: {e}")))?;
    Ok(bytes)
}

pub(super) fn unexpected(outcome: Outcome) -> FleetError {
    match outcome {
        Outcome::Refused(
            why @ (Refusal::UnknownCoordinator(_)
            | Refusal::UnknownWorker(_)
            | Refusal::UnknownDeployment(_)
            | Refusal::UnknownToken
            | Refusal::UnknownTenant(_)
            | Refusal::UnknownKey(_)
            | Refusal::UnknownRequest(_)
            | Refusal::NoWebhook),
        ) => FleetError::Unknown(why.to_string()),
        Outcome::Refused(why @ Refusal::TooManyActs { retry_after_ms }) => FleetError::TooOften {
            why: why.to_string(),
            retry_after_ms,
        },
        Outcome::Refused(why @ Refusal::OlderVersion) => FleetError::NotYet(why.to_string()),
        Outcome::Refused(why @ (Refusal::TooOld | Refusal::UnknownBase)) => {
            FleetError::Earlier(why.to_string())
        }
        Outcome::Refused(why) => FleetError::Refused(why.to_string()),
        other => FleetError::Refused(format!(
            "the state answered {other:?}, which does not fit the command"
        )),
    }
}
