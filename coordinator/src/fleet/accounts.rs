//! The acts of an administrator on accounts: tenants, keys, prices and money. Like those of `admin`, each
//! is one command, checked before it is proposed and written to the audit log as it takes effect.
//!
//! What it keeps true: an act that is asked again under the same proposal id takes effect once, and a key
//! is handed out only if it is the one whose hash is in the state.

use super::admin::{check_name, random, unexpected};
use super::{Fleet, FleetError};
use crate::raft::group::Terms;
use crate::state::{Account, Command, KeySettings, Outcome, PriceList, State, TenantSettings};
use sha2::{Digest, Sha256};
use trireme_shared::api::KeyCreated;
use trireme_shared::ids::{BasisPoints, KeyId, NanoUsd, PostingId, RequestId, TenantId};
use trireme_shared::limits;

impl Fleet {
    /// Makes the tenant of that name, or gives it other settings.
    pub async fn put_tenant(
        &self,
        terms: Terms,
        name: &str,
        settings: TenantSettings,
    ) -> Result<TenantId, FleetError> {
        check_name("a tenant's name", name)?;
        let name = name.to_owned();
        let command = Command::PutTenant { name, settings };
        match self.act(terms, command).await? {
            Outcome::Tenant(id) => Ok(id),
            other => Err(unexpected(other)),
        }
    }

    /// An API key for a tenant, who is made if need be. The key is in the answer and nowhere else.
    pub async fn create_key(
        &self,
        terms: Terms,
        tenant: String,
        settings: KeySettings,
    ) -> Result<KeyCreated, FleetError> {
        check_name("a tenant's name", &tenant)?;
        check_key(&settings)?;
        let (key, hash) = new_key()?;
        let command = Command::CreateKey {
            tenant,
            key_hash: hash,
            settings,
        };
        let outcome = self.act(terms, command).await?;
        self.made_key(outcome, key, hash)
    }

    /// A key that takes another one's place, which works for that many more seconds at most.
    pub async fn rotate_key(
        &self,
        terms: Terms,
        id: KeyId,
        overlap_seconds: u64,
    ) -> Result<KeyCreated, FleetError> {
        if overlap_seconds > limits::KEY_OVERLAP_SECONDS_MAX {
            let most = limits::KEY_OVERLAP_SECONDS_MAX;
            return Err(FleetError::Refused(format!(
                "overlap_seconds must be 0 to {most}"
            )));
        }
        let (key, hash) = new_key()?;
        let command = Command::RotateKey {
            key: id,
            key_hash: hash,
            overlap: overlap_seconds,
        };
        let outcome = self.act(terms, command).await?;
        self.made_key(outcome, key, hash)
    }

    fn made_key(
        &self,
        outcome: Outcome,
        key: String,
        hash: [u8; 32],
    ) -> Result<KeyCreated, FleetError> {
        let (tenant, key_id) = match outcome {
            Outcome::Key { tenant, key } => (tenant, key),
            other => return Err(unexpected(other)),
        };
        // Whether or not it works already, or its tenant is suspended.
        let stored = self.group().read(|s| s.key_of(&hash).map(|key| key.id));
        if stored != Some(key_id) {
            return Err(FleetError::Earlier(format!(
                "this was done by an earlier try, whose key ({key_id}) was not kept: make another"
            )));
        }
        Ok(KeyCreated {
            tenant,
            key_id,
            key,
        })
    }

    /// Gives a key other settings; its limits and its budget are its whole line's.
    pub async fn update_key(
        &self,
        terms: Terms,
        key: KeyId,
        settings: KeySettings,
    ) -> Result<(), FleetError> {
        check_key(&settings)?;
        self.done(terms, Command::UpdateKey { key, settings }).await
    }

    /// From now on it lets nobody in.
    pub async fn revoke_key(&self, terms: Terms, key: KeyId) -> Result<(), FleetError> {
        self.done(terms, Command::RevokeKey { key }).await
    }

    /// Prices of a model from a second on that is yet to come; `None` is the next one.
    pub async fn put_price(
        &self,
        terms: Terms,
        model: &str,
        effective_from: Option<u64>,
        list: PriceList,
    ) -> Result<(), FleetError> {
        check_name("a model's name", model)?;
        if effective_from == Some(0) {
            let text = "effective_from is a second to come; leave it out for the next one".into();
            return Err(FleetError::Refused(text));
        }
        let command = Command::PutPrice {
            model: model.to_owned(),
            effective_from: effective_from.unwrap_or_default(),
            list,
        };
        self.done(terms, command).await
    }

    /// What the platform keeps of every charge from now on.
    pub async fn set_fee(&self, terms: Terms, fee: BasisPoints) -> Result<(), FleetError> {
        self.done(terms, Command::SetFee { fee }).await
    }

    /// Money that a tenant paid in; below zero, that is taken back from it.
    pub async fn credit(
        &self,
        terms: Terms,
        tenant: &str,
        amount: NanoUsd,
        reason: String,
    ) -> Result<PostingId, FleetError> {
        let id = self.group().read(|s| s.tenant_named(tenant).map(|t| t.id));
        let Some(tenant) = id else {
            let text = "no tenant has that name: `cluster tenant list` shows them";
            return Err(FleetError::Unknown(text.into()));
        };
        let command = Command::Credit {
            tenant,
            amount,
            reason: reason.clone(),
        };
        self.posted(terms, command, &reason).await
    }

    /// Gives part of a request's charge back. `request`: our id, or that of an attempt at it.
    pub async fn refund(
        &self,
        terms: Terms,
        request: RequestId,
        amount: NanoUsd,
        reason: String,
    ) -> Result<PostingId, FleetError> {
        let command = Command::Refund {
            request,
            amount,
            reason: reason.clone(),
        };
        self.posted(terms, command, &reason).await
    }

    /// Part of a provider's earnings was paid to it.
    pub async fn payout(
        &self,
        terms: Terms,
        provider: &str,
        amount: NanoUsd,
        reason: String,
    ) -> Result<PostingId, FleetError> {
        let account = Account::Provider(provider.to_owned());
        let known = |s: &State| s.balances().any(|(known, _)| *known == account);
        if !self.group().read(known) {
            let text = "no such provider has earned anything: `cluster provider list` shows them";
            return Err(FleetError::Unknown(text.into()));
        }
        let command = Command::Payout {
            provider: provider.to_owned(),
            amount,
            reason: reason.clone(),
        };
        self.posted(terms, command, &reason).await
    }

    async fn posted(
        &self,
        terms: Terms,
        command: Command,
        reason: &str,
    ) -> Result<PostingId, FleetError> {
        let length = (1..=limits::REASON_BYTES_MAX).contains(&reason.len());
        if !length || reason.chars().any(char::is_control) {
            return Err(FleetError::Refused(format!(
                "a reason has 1 to {} bytes and no control characters",
                limits::REASON_BYTES_MAX
            )));
        }
        match self.act(terms, command).await? {
            Outcome::Posting(id) => Ok(id),
            other => Err(unexpected(other)),
        }
    }
}

fn new_key() -> Result<(String, [u8; 32]), FleetError> {
    let key = format!("sk-tr-{}", hex::encode(random::<20>()?));
    let hash = Sha256::digest(key.as_bytes()).into();
    Ok((key, hash))
}

fn check_key(settings: &KeySettings) -> Result<(), FleetError> {
    if !settings.name.is_empty() {
        check_name("a key's name", &settings.name)?;
    }
    let models = settings.models.as_deref().unwrap_or_default();
    if models.len() > limits::KEY_MODELS_MAX {
        let most = limits::KEY_MODELS_MAX;
        let text = format!("a key names at most {most} models; leave 'models' out for all");
        return Err(FleetError::Refused(text));
    }
    for model in models {
        check_name("a model's name", model)?;
    }
    if !settings.scopes.inference && !settings.scopes.billing {
        let text = "a key needs a scope: 'inference', 'billing' or both";
        return Err(FleetError::Refused(text.into()));
    }
    Ok(())
}
