//! One node's own key and certificate, in memory and on disk.

use super::{
    ClusterAuthority, Fingerprint, IdentityError, NodeId, parse_certificate, pem_section,
    write_atomic,
};
use crate::limits;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::fmt;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Key, node certificate and CA certificate in one file, so that they are replaced together.
const FILE: &str = "identity.pem";

/// A node's key, its certificate and the cluster's CA certificate. `Debug` shows the name only.
#[derive(Clone)]
pub struct NodeIdentity(Arc<Parts>);

struct Parts {
    node: NodeId,
    key: PrivatePkcs8KeyDer<'static>,
    certificate: CertificateDer<'static>,
    authority: CertificateDer<'static>,
    expires_at: SystemTime,
}

/// A fresh key and the request to certify it; the key never leaves this process.
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

    /// The identity, once the certificate came back.
    pub fn complete(
        self,
        certificate: CertificateDer<'static>,
        authority: CertificateDer<'static>,
    ) -> Result<NodeIdentity, IdentityError> {
        let key = PrivatePkcs8KeyDer::from(self.key.serialize_der());
        NodeIdentity::assemble(key, certificate, authority)
    }
}

impl NodeIdentity {
    /// Made on the spot by whoever holds the authority: a coordinator's own identity, and tests.
    pub fn issue(authority: &ClusterAuthority, node: NodeId) -> Result<Self, IdentityError> {
        let request = KeyRequest::generate()?;
        let validity = limits::NODE_CERTIFICATE_LIFETIME;
        let certificate = authority.sign_csr(request.csr(), node, validity)?;
        request.complete(certificate, authority.certificate().clone())
    }

    fn assemble(
        key: PrivatePkcs8KeyDer<'static>,
        certificate: CertificateDer<'static>,
        authority: CertificateDer<'static>,
    ) -> Result<Self, IdentityError> {
        let node = NodeId::of_certificate(&certificate)?;
        let parsed = parse_certificate(&certificate)?;
        let public = KeyPair::try_from(&key)?;
        if parsed.public_key().subject_public_key.data != public.public_key_raw() {
            let reason = "it belongs to another key";
            return Err(IdentityError::Certificate(reason.into()));
        }
        let expires = parsed.validity().not_after.timestamp();
        let expires = Duration::from_secs(u64::try_from(expires).unwrap_or(0));
        Ok(Self(Arc::new(Parts {
            node,
            key,
            expires_at: SystemTime::UNIX_EPOCH + expires,
            certificate,
            authority,
        })))
    }

    /// What an earlier `save` left in `folder`; `None` if nothing is there.
    pub fn load(folder: &Path) -> Result<Option<Self>, IdentityError> {
        let path = folder.join(FILE);
        let pem = match std::fs::read(&path) {
            Ok(pem) => pem,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(IdentityError::Io { path, source }),
        };
        let damaged = |reason: String| IdentityError::Damaged {
            path: path.clone(),
            reason,
        };
        let key = PrivatePkcs8KeyDer::from_pem_slice(&pem);
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        let (Ok(key), Ok(certificates)) = (key, certificates) else {
            return Err(damaged("it is not a PEM file with a key".into()));
        };
        let Ok([certificate, authority]) = <[_; 2]>::try_from(certificates) else {
            return Err(damaged("it does not hold two certificates".into()));
        };
        let identity = Self::assemble(key, certificate, authority);
        identity
            .map(Some)
            .map_err(|error| damaged(error.to_string()))
    }

    /// Keeps it in `folder` (made if need be, mode 0700) as a private file.
    pub fn save(&self, folder: &Path) -> Result<(), IdentityError> {
        let failed = |path: &Path, source| IdentityError::Io {
            path: path.to_owned(),
            source,
        };
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|source| failed(folder, source))?;
        let pem = pem_section("PRIVATE KEY", self.0.key.secret_pkcs8_der())
            + &pem_section("CERTIFICATE", &self.0.certificate)
            + &pem_section("CERTIFICATE", &self.0.authority);
        let path = folder.join(FILE);
        write_atomic(&path, pem.as_bytes(), 0o600).map_err(|source| failed(&path, source))
    }

    pub fn node(&self) -> NodeId {
        self.0.node
    }

    /// The CA certificate's fingerprint: equal for all nodes of a cluster.
    pub fn cluster(&self) -> Fingerprint {
        Fingerprint::of(&self.0.authority)
    }

    /// When the certificate ends; the node must have joined again by then (renewal is not built).
    pub fn expires_at(&self) -> SystemTime {
        self.0.expires_at
    }

    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.0.key.clone_key())
    }

    /// Own certificate, then the CA's: a joiner needs to see the CA to compare it with its token.
    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.0.certificate.clone(), self.0.authority.clone()]
    }

    pub(crate) fn authority(&self) -> &CertificateDer<'static> {
        &self.0.authority
    }
}

impl fmt::Debug for NodeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeIdentity({})", self.0.node)
    }
}
