//! The acts of an administrator: deployments, join tokens, API keys. Each is one command of the
//! journal, checked before it is proposed.

use super::reconcile::Event;
use super::{Fleet, FleetError, models, unix_now};
use crate::billing::DEFAULT_PRICES;
use crate::placement;
use crate::state::{Command, Outcome};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use trireme_shared::api::{
    DeploymentReport, KeyCreated, KeyRequest, TokenCreated, TokenReport, TokenRequest,
};
use trireme_shared::identity::ClusterAuthority;
use trireme_shared::ids::TokenRecordId;
use trireme_shared::limits;
use trireme_shared::plan::DeploymentSpec;

impl Fleet {
    /// Creates or replaces the deployment of that model name. Opens the model to check the split.
    pub async fn deploy(&self, mut spec: DeploymentSpec) -> Result<DeploymentReport, FleetError> {
        check_name("a model's name", &spec.model.name)?;
        let opened = models::open(&spec.model, self.shared.cache_dir.clone()).await?;
        placement::check_split(&opened.manifest, &spec)
            .map_err(|e| FleetError::Refused(e.to_string()))?;
        if spec.model.sha256.is_none() {
            // Every worker then refuses a file that is not this one.
            spec.model.sha256 = opened.sha256;
        }
        let command = Command::PutDeployment {
            spec: spec.clone(),
            price: DEFAULT_PRICES,
            now: unix_now(),
        };
        let id = match self.shared.journal.propose(command).await? {
            Outcome::Deployment(id) => id,
            other => return Err(unexpected(other)),
        };
        self.feed(Event::Deployed {
            id,
            spec,
            manifest: Arc::new(opened.manifest),
            epochs: self.epochs(id),
        });
        self.deployment_report(id)
            .ok_or_else(|| FleetError::Refused("the deployment was removed meanwhile".into()))
    }

    /// A join token. Its secret is in the answer and nowhere else.
    pub async fn create_token(&self, request: TokenRequest) -> Result<TokenCreated, FleetError> {
        if !(1..=limits::TOKEN_USES_MAX).contains(&request.uses) {
            let text = format!("uses must be 1 to {}", limits::TOKEN_USES_MAX);
            return Err(FleetError::Refused(text));
        }
        if !(1..=limits::TOKEN_TTL_SECONDS_MAX).contains(&request.ttl_seconds) {
            let text = format!("ttl_seconds must be 1 to {}", limits::TOKEN_TTL_SECONDS_MAX);
            return Err(FleetError::Refused(text));
        }
        let fingerprint = self.authority()?.fingerprint();
        let secret = random::<32>()?;
        let expires_at = unix_now().saturating_add(request.ttl_seconds);
        let command = Command::CreateToken {
            secret_hash: Sha256::digest(secret).into(),
            role: request.role.into(),
            uses: request.uses,
            expires_at,
        };
        match self.shared.journal.propose(command).await? {
            // The form that `shared::identity::JoinToken` parses.
            Outcome::Token(id) => Ok(TokenCreated {
                id,
                token: format!("{fingerprint}.{id}.{}", hex::encode(secret)),
                expires_at,
            }),
            other => Err(unexpected(other)),
        }
    }

    /// All join tokens, used up and revoked ones too.
    pub fn tokens(&self) -> Vec<TokenReport> {
        self.shared
            .journal
            .read(|s| s.tokens().map(report).collect())
    }

    /// Lets nobody in with that token any more. Nodes that joined with it stay.
    pub async fn revoke_token(&self, id: TokenRecordId) -> Result<TokenReport, FleetError> {
        match self
            .shared
            .journal
            .propose(Command::RevokeToken { id })
            .await?
        {
            Outcome::Done => {}
            Outcome::Refused(_) => {
                return Err(FleetError::Refused(format!(
                    "there is no join token {id}: `cluster token list` shows them"
                )));
            }
            other => return Err(unexpected(other)),
        }
        self.shared
            .journal
            .read(|s| s.token(id).map(report))
            .ok_or_else(|| FleetError::Refused(format!("there is no join token {id}")))
    }

    /// An API key for a tenant, who is made if need be. The key is in the answer and nowhere else.
    pub async fn create_key(&self, request: KeyRequest) -> Result<KeyCreated, FleetError> {
        check_name("a tenant's name", &request.tenant)?;
        let key = format!("sk-tr-{}", hex::encode(random::<20>()?));
        let command = Command::CreateKey {
            tenant: request.tenant,
            key_hash: Sha256::digest(key.as_bytes()).into(),
            now: unix_now(),
        };
        match self.shared.journal.propose(command).await? {
            Outcome::Key {
                tenant,
                key: key_id,
            } => Ok(KeyCreated {
                tenant,
                key_id,
                key,
            }),
            other => Err(unexpected(other)),
        }
    }

    /// The cluster's CA, from the state.
    pub(super) fn authority(&self) -> Result<ClusterAuthority, FleetError> {
        let pem = self
            .shared
            .journal
            .read(|s| s.cluster().map(|c| c.ca_pem.clone()))
            .ok_or_else(|| FleetError::Refused("this cluster is not set up yet".into()))?;
        ClusterAuthority::from_pem(&pem).map_err(|e| FleetError::Refused(e.to_string()))
    }
}

fn report(token: &crate::state::TokenRecord) -> TokenReport {
    TokenReport {
        id: token.id,
        role: token.role.into(),
        uses_left: token.uses_left,
        expires_at: token.expires_at,
        revoked: token.revoked,
    }
}

fn check_name(what: &str, name: &str) -> Result<(), FleetError> {
    let length = (1..=limits::NAME_BYTES_MAX).contains(&name.len());
    if length && name.chars().all(|c| !c.is_control()) {
        return Ok(());
    }
    Err(FleetError::Refused(format!(
        "{what} has 1 to {} bytes and no control characters",
        limits::NAME_BYTES_MAX
    )))
}

fn random<const N: usize>() -> Result<[u8; N], FleetError> {
    let mut bytes = [0u8; N];
    getrandom::fill(&mut bytes)
        .map_err(|e| FleetError::Refused(format!("the system gives no random numbers: {e}")))?;
    Ok(bytes)
}

fn unexpected(outcome: Outcome) -> FleetError {
    FleetError::Refused(match outcome {
        Outcome::Refused(why) => why.to_string(),
        other => format!("the state answered {other:?}, which does not fit the command"),
    })
}
