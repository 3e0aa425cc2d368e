//! Asking for a certificate: at the first join and at every renewal.

use super::{IdentityError, NodeId, NodeIdentity};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

/// A fresh key and the request to certify it; the key never leaves this process. Has no `Debug`.
pub struct KeyRequest {
    key: KeyPair,
    csr: Vec<u8>,
}

impl KeyRequest {
    pub fn generate() -> Result<Self, IdentityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let request = CertificateParams::new(Vec::new())?.serialize_request(&key)?;
        Ok(Self {
            csr: request.der().to_vec(),
            key,
        })
    }

    /// PKCS#10, DER: what `ClusterAuthority::sign_csr` takes.
    pub fn csr(&self) -> &[u8] {
        &self.csr
    }

    /// The identity, once the certificate came back. Refuses a certificate of another key, one that
    /// none of `authorities` signed, and a bundle that is empty or larger than
    /// `limits::AUTHORITIES_MAX`.
    pub fn complete(
        self,
        certificate: CertificateDer<'static>,
        authorities: Vec<CertificateDer<'static>>,
    ) -> Result<NodeIdentity, IdentityError> {
        let key = PrivatePkcs8KeyDer::from(self.key.serialize_der());
        NodeIdentity::assemble(key, certificate, authorities)
    }

    /// As `complete`, for a node that already has a name: the certificate must carry it.
    pub fn complete_for(
        self,
        node: NodeId,
        certificate: CertificateDer<'static>,
        authorities: Vec<CertificateDer<'static>>,
    ) -> Result<NodeIdentity, IdentityError> {
        let identity = self.complete(certificate, authorities)?;
        if identity.node() != node {
            let reason = format!("it names {}, and this is {node}", identity.node());
            return Err(IdentityError::Certificate(reason));
        }
        Ok(identity)
    }
}
