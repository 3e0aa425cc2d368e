//! Who a node is: the cluster's certificate authority, node certificates and join tokens.
//!
//! What it keeps true: a certificate names exactly one node, by one DNS name
//! `<id>.<role>.trireme` that only the coordinator writes (a joiner's request contributes its public
//! key and nothing else); private keys and token secrets never show in `Debug`, `Display` or logs;
//! files with keys are private and replaced atomically. Neighbours: `transport` authenticates
//! connections with these; a worker keeps its own on disk, a coordinator keeps the authority in its
//! state and issues itself a certificate at each start.
//!
//! A certificate is short-lived: there is no revocation list, a removed node is refused by its name
//! (`transport::gate`). A new CA comes in four steps, each of which must have reached every node
//! before the next: trust the new one too, sign with it, have every certificate renewed, stop
//! trusting the old one (`transport::tests::rotation`).

pub mod atomic_file;
mod authority;
mod node;
mod request;
mod token;

pub use atomic_file::write_atomic;
pub use authority::{ClusterAuthority, Fingerprint, check_csr};
pub use node::NodeIdentity;
pub use request::KeyRequest;
pub use token::{JoinToken, SecretHash};

use crate::api::Role;
use crate::ids::{CoordinatorId, WorkerId};
use rustls_pki_types::CertificateDer;
use std::fmt;
use std::path::PathBuf;
use wincode::{SchemaRead, SchemaWrite};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// A node as its certificate names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, SchemaRead, SchemaWrite)]
pub enum NodeId {
    Coordinator(CoordinatorId),
    Worker(WorkerId),
}

impl NodeId {
    pub fn role(self) -> Role {
        match self {
            Self::Coordinator(_) => Role::Coordinator,
            Self::Worker(_) => Role::Worker,
        }
    }

    /// The name in its certificate, e.g. `w3.worker.trireme`.
    pub fn dns_name(self) -> String {
        match self {
            Self::Coordinator(id) => format!("{id}.coordinator.trireme"),
            Self::Worker(id) => format!("{id}.worker.trireme"),
        }
    }

    /// The reverse of `dns_name`; other spellings of the same number are refused.
    pub fn from_dns_name(name: &str) -> Option<Self> {
        let (id, role) = name.strip_suffix(".trireme")?.split_once('.')?;
        let number = id.get(1..)?.parse().ok()?;
        let node = match role {
            "coordinator" => Self::Coordinator(CoordinatorId(number)),
            "worker" => Self::Worker(WorkerId(number)),
            _ => return None,
        };
        (node.dns_name() == name).then_some(node)
    }

    /// The node that a certificate names. Says nothing about who signed it.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let parsed = parse_certificate(certificate)?;
        let names = parsed
            .subject_alternative_name()
            .map_err(|error| IdentityError::Certificate(error.to_string()))?;
        let names = names.map_or(&[][..], |extension| &extension.value.general_names);
        match names {
            [GeneralName::DNSName(name)] => Self::from_dns_name(name),
            _ => None,
        }
        .ok_or_else(|| IdentityError::Certificate("it names no Trireme node".into()))
    }
}

/// A node's certificate as the group keeps it: for audits, and to know when a rotated CA may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CertificateMark {
    pub fingerprint: Fingerprint,
    /// Seconds since 1970; the certificate's own end.
    pub expires_at: u64,
}

impl CertificateMark {
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let ends = parse_certificate(certificate)?.validity().not_after;
        Ok(Self {
            fingerprint: Fingerprint::of(certificate),
            expires_at: u64::try_from(ends.timestamp()).unwrap_or(0),
        })
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Coordinator(id) => write!(f, "coordinator {id}"),
            Self::Worker(id) => write!(f, "worker {id}"),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("the certificate is not usable: {0}")]
    Certificate(String),
    #[error("a key or certificate cannot be made: {0}")]
    Crypto(String),
    #[error("{path}: {source}")]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(
        "{path} is damaged ({reason}): move it away and join again with a new token \
         (`cluster token create`)"
    )]
    Damaged { path: PathBuf, reason: String },
    #[error("the certificate request is not valid: {0}")]
    Request(String),
    #[error(
        "this is not a join token: it looks like <64 hex digits>.j<number>.<64 hex digits>, as \
         `cluster token create` prints it"
    )]
    Token,
}

impl From<rcgen::Error> for IdentityError {
    fn from(error: rcgen::Error) -> Self {
        Self::Crypto(error.to_string())
    }
}

fn parse_certificate<'a>(
    der: &'a CertificateDer<'_>,
) -> Result<X509Certificate<'a>, IdentityError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(IdentityError::Certificate("bytes follow it".into())),
        Err(error) => Err(IdentityError::Certificate(error.to_string())),
    }
}

/// One PEM section (RFC 7468).
fn pem_section(label: &str, der: &[u8]) -> String {
    use base64::Engine;
    const LINE: usize = 64;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(LINE) {
        pem.extend(line.iter().map(|&byte| byte as char));
        pem.push('\n');
    }
    pem.push_str(&format!("-----END {label}-----\n"));
    pem
}

#[cfg(test)]
mod tests;
