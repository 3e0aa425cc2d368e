//! What the cluster is, and the authorities its nodes trust.
//!
//! Kept true: once set up there is exactly one authority that signs, and at most
//! `limits::STATE_AUTHORITIES_MAX` are trusted; a retired one's key is gone from the state.

use super::codec::{stored, stored_value};
use super::table::Table;
use super::{Outcome, Refusal};
use std::fmt;
use trireme_shared::identity::Fingerprint;
use trireme_shared::limits;
use wincode::{SchemaRead, SchemaWrite};

/// A cluster's random identity. A restored cluster has another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct ClusterId(pub [u8; 16]);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

#[derive(Clone, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Cluster {
    pub id: ClusterId,
    pub name: String,
    /// SHA-256 of the admin key.
    pub admin_key_hash: [u8; 32],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum AuthorityStage {
    /// Nodes accept what it signed; it signs nothing.
    Trusted,
    Signing,
}

/// A CA of the cluster. Holds its private key: it has no `Debug`.
#[derive(Clone, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Authority {
    /// Certificate and private key; every coordinator signs with it.
    pub pem: String,
    /// Lower-case hex SHA-256 of the certificate (DER).
    pub fingerprint: String,
    pub stage: AuthorityStage,
}

#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Identity {
    pub cluster: Option<Cluster>,
    /// By fingerprint.
    pub authorities: Table<String, Authority>,
}

stored_value!(Option<Cluster>);
stored!(Identity {
    cluster,
    authorities
});

impl Identity {
    /// Sets the identity and its one authority, whatever was there.
    pub fn found(&mut self, cluster: Cluster, pem: &str) -> Result<Outcome, Refusal> {
        let fingerprint = fingerprint(pem)?;
        let authority = Authority {
            pem: pem.to_owned(),
            fingerprint: fingerprint.clone(),
            stage: AuthorityStage::Signing,
        };
        self.cluster = Some(cluster);
        self.authorities = Table::from_iter([(fingerprint, authority)]);
        Ok(Outcome::Done)
    }

    pub fn signing(&self) -> Option<&Authority> {
        self.authorities
            .values()
            .find(|a| a.stage == AuthorityStage::Signing)
    }

    pub fn add(&mut self, pem: &str) -> Result<Outcome, Refusal> {
        let fingerprint = fingerprint(pem)?;
        if self.cluster.is_none() {
            return Err(Refusal::NotBootstrapped);
        }
        if self.authorities.contains_key(&fingerprint) {
            return Err(Refusal::AuthorityExists);
        }
        if self.authorities.len() >= limits::STATE_AUTHORITIES_MAX {
            return Err(Refusal::TooManyAuthorities);
        }
        let authority = Authority {
            pem: pem.to_owned(),
            fingerprint: fingerprint.clone(),
            stage: AuthorityStage::Trusted,
        };
        self.authorities.insert(fingerprint, authority);
        Ok(Outcome::Done)
    }

    pub fn sign_with(&mut self, fingerprint: &str) -> Result<Outcome, Refusal> {
        if !self.authorities.contains_key(fingerprint) {
            return Err(Refusal::UnknownAuthority(fingerprint.to_owned()));
        }
        let all: Vec<String> = self.authorities.keys().cloned().collect();
        for other in all {
            if let Some(authority) = self.authorities.get_mut(&other) {
                authority.stage = if other == fingerprint {
                    AuthorityStage::Signing
                } else {
                    AuthorityStage::Trusted
                };
            }
        }
        Ok(Outcome::Done)
    }

    pub fn retire(&mut self, fingerprint: &str) -> Result<Outcome, Refusal> {
        match self.authorities.get(fingerprint).map(|a| a.stage) {
            None => Err(Refusal::UnknownAuthority(fingerprint.to_owned())),
            Some(AuthorityStage::Signing) => Err(Refusal::AuthoritySigns),
            Some(AuthorityStage::Trusted) => {
                self.authorities.remove(fingerprint);
                Ok(Outcome::Done)
            }
        }
    }

    /// Certificates without their keys: enough to know and to trust them.
    pub fn without_keys(&self) -> Self {
        let public = |authority: &Authority| Authority {
            pem: certificate_of(&authority.pem),
            ..authority.clone()
        };
        let authorities = self.authorities.values();
        Self {
            cluster: self.cluster.clone(),
            authorities: authorities
                .map(|a| (a.fingerprint.clone(), public(a)))
                .collect(),
        }
    }

    pub fn check(&self) -> Result<(), String> {
        let signing = self
            .authorities
            .values()
            .filter(|a| a.stage == AuthorityStage::Signing)
            .count();
        if signing != usize::from(self.cluster.is_some()) {
            return Err(format!("{signing} authorities sign"));
        }
        if self.authorities.len() > limits::STATE_AUTHORITIES_MAX {
            return Err(format!(
                "{} authorities are trusted",
                self.authorities.len()
            ));
        }
        Ok(())
    }
}

/// Of the CA in a PEM text. Every member computes the same: it only decodes and hashes.
pub(super) fn fingerprint(pem: &str) -> Result<String, Refusal> {
    Fingerprint::of_pem(pem)
        .map(|f| f.to_string())
        .ok_or(Refusal::BadAuthority)
}

/// The certificate's section of a PEM text, and nothing else.
fn certificate_of(pem: &str) -> String {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let from = pem.find(BEGIN);
    let section = from.and_then(|from| {
        let len = pem[from..].find(END)?;
        Some(format!("{}{END}\n", &pem[from..from + len]))
    });
    section.unwrap_or_default()
}

#[cfg(test)]
#[path = "cluster_tests.rs"]
mod tests;
