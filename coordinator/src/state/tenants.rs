//! Tenants and their API keys, which are stored as hashes only. Kept true: one tenant a name, one
//! tenant a key.

use super::codec::stored;
use super::table::Table;
use super::{Outcome, Refusal};
use trireme_shared::ids::{KeyId, TenantId};
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

#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Tenant {
    pub id: TenantId,
    pub name: String,
    /// Seconds since 1970.
    pub created_at: u64,
}

/// An API key without the key.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct ApiKey {
    pub id: KeyId,
    pub tenant: TenantId,
    /// Seconds since 1970.
    pub created_at: u64,
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
    pub fn of_key(&self, key_hash: &[u8; 32]) -> Option<Principal> {
        // An attacker cannot choose a SHA-256 prefix by prefix, so an ordered lookup leaks nothing.
        let id = *self.key_hashes.get(key_hash)?;
        let key = self.keys.get(&id)?;
        let tenant = self.rows.get(&key.tenant)?;
        Some(Principal::Tenant {
            tenant: key.tenant,
            name: tenant.name.clone(),
            key: id,
        })
    }

    /// `now`: seconds since 1970.
    pub fn create_key(
        &mut self,
        tenant: &str,
        key_hash: &[u8; 32],
        now: u64,
    ) -> Result<Outcome, Refusal> {
        if self.key_hashes.contains_key(key_hash) {
            return Err(Refusal::KeyExists);
        }
        let owner = match self.names.get(tenant) {
            Some(id) => *id,
            None => {
                let id = TenantId(super::next(&mut self.last_tenant));
                let record = Tenant {
                    id,
                    name: tenant.to_owned(),
                    created_at: now,
                };
                self.rows.insert(id, record);
                self.names.insert(tenant.to_owned(), id);
                id
            }
        };
        let id = KeyId(super::next(&mut self.last_key));
        let key = ApiKey {
            id,
            tenant: owner,
            created_at: now,
        };
        self.keys.insert(id, key);
        self.key_hashes.insert(*key_hash, id);
        Ok(Outcome::Key {
            tenant: owner,
            key: id,
        })
    }

    pub fn check(&self) -> Result<(), String> {
        let named = |t: &Tenant| self.names.get(&t.name) == Some(&t.id);
        if self.rows.len() != self.names.len() || !self.rows.values().all(named) {
            return Err("tenants and their names differ".into());
        }
        let owned = |k: &ApiKey| self.rows.contains_key(&k.tenant);
        if !self.keys.values().all(owned) {
            return Err("a key has no tenant".into());
        }
        if !self
            .key_hashes
            .values()
            .all(|id| self.keys.contains_key(id))
        {
            return Err("a key's hash has no key".into());
        }
        Ok(())
    }
}
