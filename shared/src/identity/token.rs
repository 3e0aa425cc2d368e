//! Join tokens: `<CA fingerprint>.<id>.<secret>`. Whoever holds one may ask for a certificate.

use super::{Fingerprint, IdentityError};
use crate::ids::TokenRecordId;
use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;

/// The SHA-256 of a token's secret: all that a coordinator stores. The secret has 256 random bits,
/// so a plain hash cannot be searched.
pub type SecretHash = [u8; 32];

/// A join token. `Debug` and `Display` hide its secret; [`JoinToken::reveal`] does not.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    authority: Fingerprint,
    id: TokenRecordId,
    secret: [u8; 32],
}

impl JoinToken {
    /// A token with a new random secret.
    pub fn generate(authority: Fingerprint, id: TokenRecordId) -> Result<Self, IdentityError> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(|error| IdentityError::Crypto(error.to_string()))?;
        Ok(Self {
            authority,
            id,
            secret,
        })
    }

    /// The CA that the joiner insists on before it says anything.
    pub fn authority(&self) -> Fingerprint {
        self.authority
    }

    pub fn id(&self) -> TokenRecordId {
        self.id
    }

    pub fn secret_hash(&self) -> SecretHash {
        Self::hash(&self.secret)
    }

    /// The whole token with its secret, to be shown to its owner once.
    pub fn reveal(&self) -> String {
        format!(
            "{}.{}.{}",
            self.authority,
            self.id,
            hex::encode(self.secret)
        )
    }

    pub(crate) fn secret(&self) -> [u8; 32] {
        self.secret
    }

    pub(crate) fn hash(secret: &[u8; 32]) -> SecretHash {
        Sha256::digest(secret).into()
    }
}

impl FromStr for JoinToken {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.trim().split('.');
        let (Some(authority), Some(id), Some(secret), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(IdentityError::Token);
        };
        let number = id.strip_prefix('j').and_then(|number| number.parse().ok());
        let mut bytes = [0; 32];
        hex::decode_to_slice(secret, &mut bytes).map_err(|_| IdentityError::Token)?;
        Ok(Self {
            authority: authority.parse()?,
            id: TokenRecordId(number.ok_or(IdentityError::Token)?),
            secret: bytes,
        })
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.<secret>", self.authority, self.id)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({self})")
    }
}
