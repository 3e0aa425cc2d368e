//! Join tokens without their secrets. Kept true: a token lets in as many nodes as it says, of its
//! role, before it expires or is revoked.

use super::codec::stored;
use super::table::Table;
use super::{Outcome, Refusal, same_bytes};
use trireme_shared::api::Role;
use trireme_shared::ids::TokenRecordId;
use wincode::{SchemaRead, SchemaWrite};

/// What a join token lets in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum TokenRole {
    Worker,
    /// A coordinator that shall vote as soon as it has caught up.
    Coordinator,
    /// A coordinator that only listens until it is promoted.
    Learner,
}

impl From<Role> for TokenRole {
    fn from(role: Role) -> Self {
        match role {
            Role::Worker => Self::Worker,
            Role::Coordinator => Self::Coordinator,
        }
    }
}

impl From<TokenRole> for Role {
    fn from(role: TokenRole) -> Self {
        match role {
            TokenRole::Worker => Self::Worker,
            TokenRole::Coordinator | TokenRole::Learner => Self::Coordinator,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct TokenRecord {
    pub id: TokenRecordId,
    /// SHA-256 of the secret.
    pub secret_hash: [u8; 32],
    pub role: TokenRole,
    /// Whose machines join with it.
    pub provider: Option<String>,
    pub uses_left: u32,
    /// Seconds since 1970; the token works before this second.
    pub expires_at: u64,
    pub revoked: bool,
}

#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct JoinTokens {
    pub rows: Table<TokenRecordId, TokenRecord>,
    pub last: u32,
}

stored!(JoinTokens { rows, last });

impl JoinTokens {
    pub fn create(
        &mut self,
        secret_hash: [u8; 32],
        role: TokenRole,
        provider: Option<String>,
        uses: u32,
        expires_at: u64,
    ) -> Result<Outcome, Refusal> {
        if uses == 0 {
            return Err(Refusal::NoUses);
        }
        let id = TokenRecordId(super::next(&mut self.last));
        let record = TokenRecord {
            id,
            secret_hash,
            role,
            provider,
            uses_left: uses,
            expires_at,
            revoked: false,
        };
        self.rows.insert(id, record);
        Ok(Outcome::Token(id))
    }

    pub fn revoke(&mut self, id: TokenRecordId) -> Result<Outcome, Refusal> {
        let token = self.rows.get_mut(&id).ok_or(Refusal::UnknownToken)?;
        token.revoked = true;
        Ok(Outcome::Done)
    }

    /// Whether the token lets a node of that role in now (seconds since 1970).
    pub fn admits(
        &self,
        id: TokenRecordId,
        secret_hash: &[u8; 32],
        role: Role,
        now: u64,
    ) -> Result<&TokenRecord, Refusal> {
        let token = self.rows.get(&id).ok_or(Refusal::UnknownToken)?;
        if !same_bytes(&token.secret_hash, secret_hash) {
            return Err(Refusal::UnknownToken);
        }
        if token.revoked {
            return Err(Refusal::TokenRevoked(id));
        }
        if now >= token.expires_at {
            return Err(Refusal::TokenExpired(id));
        }
        if Role::from(token.role) != role {
            return Err(Refusal::TokenRole(id));
        }
        if token.uses_left == 0 {
            return Err(Refusal::TokenUsedUp(id));
        }
        Ok(token)
    }

    /// Takes one use away, once a token admitted somebody.
    pub fn use_up(&mut self, id: TokenRecordId) {
        if let Some(token) = self.rows.get_mut(&id) {
            token.uses_left -= 1;
        }
    }
}
