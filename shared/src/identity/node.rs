//! One node's own key and certificate and the authorities it trusts, in memory and on disk.

use super::authority::reset_secret;
use super::{
    ClusterAuthority, Fingerprint, IdentityError, KeyRequest, NodeId, parse_certificate,
    pem_section, write_atomic,
};
use crate::limits;
use rcgen::KeyPair;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::fmt;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Key, node certificate and trust bundle in one file, so that they are replaced together.
const FILE: &str = "identity.pem";

/// A node's key, its certificate and the CA certificates it trusts (its bundle: one, and two while
/// the cluster's CA is being rotated). One of the bundle has signed the certificate. Cheap to clone.
/// `Debug` shows the name only.
#[derive(Clone)]
pub struct NodeIdentity(Arc<Parts>);

#[derive(Clone)]
struct Parts {
    node: NodeId,
    key: Key,
    certificate: CertificateDer<'static>,
    /// 1 to `limits::AUTHORITIES_MAX`, without repetition, in the order given.
    authorities: Vec<CertificateDer<'static>>,
    issued_at: SystemTime,
    expires_at: SystemTime,
    reset_secret: [u8; 32],
}

/// Only its owner may copy a key.
struct Key(PrivatePkcs8KeyDer<'static>);

impl Clone for Key {
    fn clone(&self) -> Self {
        Self(self.0.clone_key())
    }
}

impl NodeIdentity {
    /// Made on the spot by whoever holds the authority: a coordinator's own identity, and tests. It
    /// trusts that authority alone; see `with_authorities`.
    pub fn issue(authority: &ClusterAuthority, node: NodeId) -> Result<Self, IdentityError> {
        let request = KeyRequest::generate()?;
        let validity = limits::NODE_CERTIFICATE_LIFETIME;
        let certificate = authority.sign_csr(request.csr(), node, validity)?;
        let bundle = vec![authority.certificate().clone()];
        let mut issued = request.complete_for(node, certificate, bundle)?;
        Arc::make_mut(&mut issued.0).reset_secret = authority.reset_secret(node);
        Ok(issued)
    }

    /// The same key and certificate with another trust bundle, which must hold the authority that
    /// signed the certificate.
    pub fn with_authorities(
        &self,
        authorities: Vec<CertificateDer<'static>>,
    ) -> Result<Self, IdentityError> {
        let mut changed = Parts::clone(&self.0);
        changed.authorities = bundle(&changed.certificate, authorities)?;
        Ok(Self(Arc::new(changed)))
    }

    pub(super) fn assemble(
        key: PrivatePkcs8KeyDer<'static>,
        certificate: CertificateDer<'static>,
        authorities: Vec<CertificateDer<'static>>,
    ) -> Result<Self, IdentityError> {
        let node = NodeId::of_certificate(&certificate)?;
        let authorities = bundle(&certificate, authorities)?;
        let parsed = parse_certificate(&certificate)?;
        let public = KeyPair::try_from(&key)?;
        if parsed.public_key().subject_public_key.data != public.public_key_raw() {
            return Err(unusable("it belongs to another key"));
        }
        let unix = |seconds: i64| {
            SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
        };
        let valid = parsed.validity();
        Ok(Self(Arc::new(Parts {
            node,
            issued_at: unix(valid.not_before.timestamp()) + limits::CLOCK_SKEW_MAX,
            expires_at: unix(valid.not_after.timestamp()),
            reset_secret: reset_secret(key.secret_pkcs8_der(), node),
            key: Key(key),
            certificate,
            authorities,
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
        let (Ok(key), Ok(mut certificates)) = (key, certificates) else {
            return Err(damaged("it is not a PEM file with a key".into()));
        };
        if certificates.is_empty() {
            return Err(damaged("it holds no certificate".into()));
        }
        let certificate = certificates.remove(0);
        let identity = Self::assemble(key, certificate, certificates);
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
        let mut pem = pem_section("PRIVATE KEY", self.0.key.0.secret_pkcs8_der());
        for certificate in self.chain() {
            pem += &pem_section("CERTIFICATE", &certificate);
        }
        let path = folder.join(FILE);
        write_atomic(&path, pem.as_bytes(), 0o600).map_err(|source| failed(&path, source))
    }

    pub fn node(&self) -> NodeId {
        self.0.node
    }

    /// The trust bundle: the CA certificates of the peers that this node talks to.
    pub fn authorities(&self) -> &[CertificateDer<'static>] {
        &self.0.authorities
    }

    /// Whether the CA with this fingerprint is in the trust bundle.
    pub fn trusts(&self, authority: Fingerprint) -> bool {
        let mut all = self.0.authorities.iter();
        all.any(|one| Fingerprint::of(one) == authority)
    }

    /// The fingerprints of the trust bundle, as `ToCoordinator::Trusting` tells them.
    pub fn trusted(&self) -> Vec<Fingerprint> {
        self.0.authorities.iter().map(Fingerprint::of).collect()
    }

    /// Of the node's own certificate.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.0.certificate)
    }

    /// When the certificate ends; no new connection is made with it from then on.
    pub fn expires_at(&self) -> SystemTime {
        self.0.expires_at
    }

    /// When to ask for the next certificate: half of this one's life then remains for trying.
    pub fn renew_at(&self) -> SystemTime {
        let life = self.0.expires_at.duration_since(self.0.issued_at);
        // One that was never valid is renewed at once.
        self.0.issued_at + life.unwrap_or_default() / 2
    }

    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.0.key.0.clone_key())
    }

    /// Own certificate, then the bundle: a joiner needs to see the CA that its token pins.
    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        let own = std::iter::once(&self.0.certificate);
        own.chain(&self.0.authorities).cloned().collect()
    }

    /// Equal at every start of this node: for a coordinator it hangs on the authority's key, for a
    /// worker on its own.
    pub(crate) fn reset_secret(&self) -> &[u8; 32] {
        &self.0.reset_secret
    }
}

/// Checks a trust bundle, and that one of it has signed `certificate`. Drops repetitions.
fn bundle(
    certificate: &CertificateDer<'_>,
    authorities: Vec<CertificateDer<'static>>,
) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let mut kept: Vec<CertificateDer<'static>> = Vec::new();
    for authority in authorities {
        if kept.contains(&authority) {
            continue;
        }
        if kept.len() == limits::AUTHORITIES_MAX {
            return Err(unusable("more authorities come with it than a node trusts"));
        }
        if !parse_certificate(&authority)?.is_ca() {
            return Err(unusable("what comes with it is not an authority's"));
        }
        kept.push(authority);
    }
    let signed = parse_certificate(certificate)?;
    for authority in &kept {
        let authority = parse_certificate(authority)?;
        if signed
            .verify_signature(Some(authority.public_key()))
            .is_ok()
        {
            return Ok(kept);
        }
    }
    Err(unusable("no authority that this node trusts signed it"))
}

fn unusable(reason: &str) -> IdentityError {
    IdentityError::Certificate(reason.into())
}

impl fmt::Debug for NodeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeIdentity({})", self.0.node)
    }
}
