//! Tenants and their API keys, which are stored as hashes only: who may do what, and up to which
//! limits (`settings`). Kept true: one tenant a name, one tenant a key; settings are in range; what was
//! revoked stays revoked.

use super::codec::stored;
use super::settings::{KeySettings, TenantSettings, TenantStatus};
use super::table::Table;
use super::{Outcome, Refusal};
use trireme_shared::ids::{KeyId, NanoUsd, TenantId};
use wincode::{SchemaRead, SchemaWrite};

/// Who an API key belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    Admin,
    Tenant {
        tenant: TenantId,
        name: String,
        key: KeyId,
    },
}

/// Why a key lets nobody in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyFault {
    #[error("this API key is not known here")]
    Unknown,
    #[error("this API key has expired")]
    Expired,
    #[error("this API key was revoked")]
    Revoked,
    #[error("this account is suspended")]
    Suspended,
}

#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Tenant {
    pub id: TenantId,
    pub name: String,
    /// Seconds since 1970.
    pub created_at: u64,
    pub settings: TenantSettings,
    /// By how much it was overdrawn when its settings were last changed: the one way to be so.
    pub excused: NanoUsd,
}

/// An API key without the key.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct ApiKey {
    pub id: KeyId,
    pub tenant: TenantId,
    /// Seconds since 1970.
    pub created_at: u64,
    pub settings: KeySettings,
    /// Seconds since 1970.
    pub revoked_at: Option<u64>,
    /// The key it was made to take the place of.
    pub replaces: Option<KeyId>,
    /// The first key of its line of replacements, under whose number limits and budget are counted.
    pub line: KeyId,
}

impl ApiKey {
    /// Whether it works at that second since 1970.
    pub fn fault(&self, now: u64) -> Option<KeyFault> {
        if self.revoked_at.is_some() {
            return Some(KeyFault::Revoked);
        }
        let expired = self.settings.expires_at.is_some_and(|at| now >= at);
        expired.then_some(KeyFault::Expired)
    }
}

#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Tenants {
    pub rows: Table<TenantId, Tenant>,
    pub names: Table<String, TenantId>,
    pub keys: Table<KeyId, ApiKey>,
    /// SHA-256 of a key to its number.
    pub key_hashes: Table<[u8; 32], KeyId>,
    pub last_tenant: u32,
    pub last_key: u32,
}

stored!(Tenants {
    rows,
    names,
    keys,
    key_hashes,
    last_tenant,
    last_key
});

impl Tenants {
    /// Whose key it is; `now` in seconds since 1970, like all times here.
    pub fn of_key(&self, key_hash: &[u8; 32], now: u64) -> Result<Principal, KeyFault> {
        // An attacker cannot choose a SHA-256 prefix by prefix, so an ordered lookup leaks nothing.
        let id = self.key_hashes.get(key_hash);
        let key = id.and_then(|id| self.keys.get(id));
        let key = key.ok_or(KeyFault::Unknown)?;
        let tenant = self.rows.get(&key.tenant).ok_or(KeyFault::Unknown)?;
        if let Some(fault) = key.fault(now) {
            return Err(fault);
        }
        if tenant.settings.status == TenantStatus::Suspended {
            return Err(KeyFault::Suspended);
        }
        Ok(Principal::Tenant {
            tenant: key.tenant,
            name: tenant.name.clone(),
            key: key.id,
        })
    }

    /// Makes the tenant of that name, or gives it other settings.
    pub fn put(
        &mut self,
        name: &str,
        settings: &TenantSettings,
        now: u64,
    ) -> Result<TenantId, Refusal> {
        settings.check()?;
        let id = self.named(name, now);
        if let Some(tenant) = self.rows.get_mut(&id) {
            tenant.settings = settings.clone();
        }
        Ok(id)
    }

    fn named(&mut self, name: &str, now: u64) -> TenantId {
        if let Some(id) = self.names.get(name) {
            return *id;
        }
        let id = TenantId(super::next(&mut self.last_tenant));
        let tenant = Tenant {
            id,
            name: name.to_owned(),
            created_at: now,
            settings: TenantSettings::default(),
            excused: NanoUsd(0),
        };
        self.rows.insert(id, tenant);
        self.names.insert(name.to_owned(), id);
        id
    }

    /// Makes a key, and its tenant if there is none of that name.
    pub fn create_key(
        &mut self,
        tenant: &str,
        key_hash: &[u8; 32],
        settings: &KeySettings,
        now: u64,
    ) -> Result<Outcome, Refusal> {
        settings.check()?;
        if self.key_hashes.contains_key(key_hash) {
            return Err(Refusal::KeyExists);
        }
        let tenant = self.named(tenant, now);
        let key = self.add_key(tenant, key_hash, settings.clone(), None, now);
        Ok(Outcome::Key { tenant, key })
    }

    fn add_key(
        &mut self,
        tenant: TenantId,
        key_hash: &[u8; 32],
        settings: KeySettings,
        replaces: Option<&ApiKey>,
        now: u64,
    ) -> KeyId {
        let id = KeyId(super::next(&mut self.last_key));
        let key = ApiKey {
            id,
            tenant,
            created_at: now,
            settings,
            revoked_at: None,
            replaces: replaces.map(|old| old.id),
            line: replaces.map_or(id, |old| old.line),
        };
        self.keys.insert(id, key);
        self.key_hashes.insert(*key_hash, id);
        id
    }

    /// Gives the key other settings; its limits and its budget to all keys of its line.
    pub fn update_key(&mut self, id: KeyId, settings: &KeySettings) -> Result<Outcome, Refusal> {
        settings.check()?;
        let line = self.keys.get(&id).ok_or(Refusal::UnknownKey(id))?.line;
        let of_line = |key: &&ApiKey| key.line == line;
        let line: Vec<KeyId> = self.keys.values().filter(of_line).map(|k| k.id).collect();
        for other in line {
            let Some(key) = self.keys.get_mut(&other) else {
                continue;
            };
            key.settings.limits = settings.limits.clone();
            key.settings.monthly_budget = settings.monthly_budget;
            if other == id {
                key.settings = settings.clone();
            }
        }
        Ok(Outcome::Done)
    }

    /// From now on it lets nobody in. Revoking it again changes nothing.
    pub fn revoke_key(&mut self, id: KeyId, now: u64) -> Result<Outcome, Refusal> {
        let key = self.keys.get_mut(&id).ok_or(Refusal::UnknownKey(id))?;
        key.revoked_at.get_or_insert(now);
        Ok(Outcome::Done)
    }

    /// Makes a key that takes this one's place, which works for `overlap` more seconds at most.
    pub fn rotate_key(
        &mut self,
        id: KeyId,
        key_hash: &[u8; 32],
        overlap: u64,
        now: u64,
    ) -> Result<Outcome, Refusal> {
        if self.key_hashes.contains_key(key_hash) {
            return Err(Refusal::KeyExists);
        }
        let old = self.keys.get_mut(&id).ok_or(Refusal::UnknownKey(id))?;
        if old.fault(now).is_some() {
            return Err(Refusal::KeyEnded(id));
        }
        let replaced = old.clone();
        let end = now.saturating_add(overlap);
        old.settings.expires_at = Some(old.settings.expires_at.map_or(end, |at| at.min(end)));
        let (tenant, settings) = (replaced.tenant, replaced.settings.clone());
        let key = self.add_key(tenant, key_hash, settings, Some(&replaced), now);
        Ok(Outcome::Key { tenant, key })
    }

    pub fn check(&self) -> Result<(), String> {
        let named = |t: &Tenant| self.names.get(&t.name) == Some(&t.id);
        if self.rows.len() != self.names.len() || !self.rows.values().all(named) {
            return Err("tenants and their names differ".into());
        }
        let sound = |t: &Tenant| t.settings.check().is_ok() && t.id.0 <= self.last_tenant;
        if !self.rows.values().all(sound) {
            return Err("a tenant's settings are out of range".into());
        }
        for key in self.keys.values() {
            let first = self.keys.get(&key.line);
            let in_line = first.is_some_and(|f| f.tenant == key.tenant && f.id <= key.id);
            if !self.rows.contains_key(&key.tenant) || !in_line {
                return Err(format!("key {} has no tenant or no line", key.id));
            }
            if key.settings.check().is_err() || key.id.0 > self.last_key {
                return Err(format!("key {} is out of range", key.id));
            }
        }
        let hashed = |id: &KeyId| self.keys.contains_key(id);
        if self.keys.len() != self.key_hashes.len() || !self.key_hashes.values().all(hashed) {
            return Err("keys and their hashes differ".into());
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "tenants_tests.rs"]
mod tests;
