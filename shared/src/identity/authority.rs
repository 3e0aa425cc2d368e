//! The cluster's certificate authority. It lives on coordinators only.

use super::{IdentityError, NodeId, parse_certificate, pem_section};
use crate::limits;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    SerialNumber,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};
use time::OffsetDateTime;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY};
use x509_parser::prelude::FromDer;

/// The SHA-256 of a CA certificate's DER bytes: what a join token pins. Shown as lower-case hex.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(Sha256::digest(certificate).into())
    }

    /// Of the first certificate in a PEM text; `None` where there is none.
    pub fn of_pem(pem: &str) -> Option<Self> {
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
        Some(Self::of(&certificate))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

impl FromStr for Fingerprint {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| IdentityError::Token)?;
        Ok(Self(bytes))
    }
}

/// Signs node certificates (ECDSA P-256). `Debug` shows the fingerprint only.
pub struct ClusterAuthority {
    cluster: String,
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl ClusterAuthority {
    /// A new authority for a cluster of this name.
    pub fn new(cluster: &str) -> Result<Self, IdentityError> {
        Self::beginning(cluster, OffsetDateTime::now_utc() - limits::CLOCK_SKEW_MAX)
    }

    /// A new authority to take this one's place. It begins later than this one, whatever the clocks
    /// say, so that everybody can tell which of the two is to go.
    pub fn successor(&self) -> Result<Self, IdentityError> {
        let now = OffsetDateTime::now_utc() - limits::CLOCK_SKEW_MAX;
        let after = OffsetDateTime::from(self.begins_at()?) + Duration::from_secs(1);
        Self::beginning(&self.cluster, now.max(after))
    }

    fn beginning(cluster: &str, at: OffsetDateTime) -> Result<Self, IdentityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, cluster);
        // It signs nodes, never further authorities.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut params, at, limits::AUTHORITY_LIFETIME)?;
        let certificate = params.self_signed(&key)?.der().clone();
        Self::assemble(certificate, key)
    }

    /// Key and certificate, for the coordinator's disk (secret: mode 0600).
    pub fn to_pem(&self) -> String {
        pem_section("PRIVATE KEY", self.issuer.key().serialized_der())
            + &pem_section("CERTIFICATE", &self.certificate)
    }

    pub fn from_pem(pem: &str) -> Result<Self, IdentityError> {
        let wrong = |error: rustls_pki_types::pem::Error| {
            IdentityError::Certificate(format!("the authority's file: {error}"))
        };
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(wrong)?;
        let key = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).map_err(wrong)?;
        Self::assemble(certificate, KeyPair::try_from(&key)?)
    }

    fn assemble(certificate: CertificateDer<'static>, key: KeyPair) -> Result<Self, IdentityError> {
        let parsed = parse_certificate(&certificate)?;
        if parsed.public_key().subject_public_key.data != key.public_key_raw() {
            let reason = "the authority's key and certificate do not belong together";
            return Err(IdentityError::Certificate(reason.into()));
        }
        let name = parsed.subject().iter_common_name().next();
        let name = name.and_then(|name| name.as_str().ok());
        Ok(Self {
            cluster: name.unwrap_or_default().to_owned(),
            issuer: Issuer::from_ca_cert_der(&certificate, key)?,
            certificate,
        })
    }

    /// The cluster's name.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }

    /// From when on its certificate holds: a little before it was made.
    pub fn begins_at(&self) -> Result<SystemTime, IdentityError> {
        let parsed = parse_certificate(&self.certificate)?;
        unix(parsed.validity().not_before.timestamp())
    }

    pub fn ends_at(&self) -> Result<SystemTime, IdentityError> {
        let parsed = parse_certificate(&self.certificate)?;
        unix(parsed.validity().not_after.timestamp())
    }

    /// A secret of `node` that outlives its certificates and restarts, for whoever holds the
    /// authority: see [`NodeIdentity`](super::NodeIdentity)'s reset secret.
    pub(super) fn reset_secret(&self, node: NodeId) -> [u8; 32] {
        reset_secret(self.issuer.key().serialized_der(), node)
    }

    /// A certificate for `node` with the public key of a certificate signing request (DER, PKCS#10).
    /// The request proves that its sender holds the key; names and uses in it are ignored.
    pub fn sign_csr(
        &self,
        csr: &[u8],
        node: NodeId,
        validity: Duration,
    ) -> Result<CertificateDer<'static>, IdentityError> {
        let request = checked(csr)?;
        let mut params = CertificateParams::new(vec![node.dns_name()])?;
        params
            .distinguished_name
            .push(DnType::CommonName, node.dns_name());
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // Every node both serves and dials.
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        let mut serial = [0; 16];
        getrandom::fill(&mut serial).map_err(|error| IdentityError::Crypto(error.to_string()))?;
        serial[0] &= 0x7F; // a serial number is positive
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        let begin = OffsetDateTime::now_utc() - limits::CLOCK_SKEW_MAX;
        set_validity(&mut params, begin, validity + limits::CLOCK_SKEW_MAX)?;
        let signed = params.signed_by(&request.public_key, &self.issuer)?;
        Ok(signed.der().clone())
    }
}

/// Whether `ClusterAuthority::sign_csr` would sign this request, to be known before anything is spent
/// on its sender: it parses, its signature is good, and its key is of the one kind that nodes have.
pub fn check_csr(csr: &[u8]) -> Result<(), IdentityError> {
    checked(csr).map(drop)
}

fn checked(csr: &[u8]) -> Result<CertificateSigningRequestParams, IdentityError> {
    let bad = |error: &dyn fmt::Display| IdentityError::Request(error.to_string());
    let (_, parsed) = X509CertificationRequest::from_der(csr).map_err(|e| bad(&e))?;
    let key = &parsed.certification_request_info.subject_pki.algorithm;
    let curve = key.parameters.as_ref().and_then(|p| p.as_oid().ok());
    // The certificate is made for this kind, whatever the request's key is of.
    if key.algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY || curve != Some(OID_EC_P256) {
        return Err(bad(&"its key is not of ECDSA P-256"));
    }
    CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr))
        .map_err(|e| bad(&e))
}

impl fmt::Debug for ClusterAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ClusterAuthority({}, {})",
            self.cluster,
            self.fingerprint()
        )
    }
}

fn unix(seconds: i64) -> Result<SystemTime, IdentityError> {
    let seconds = u64::try_from(seconds).ok();
    seconds
        .and_then(|s| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(s)))
        .ok_or_else(|| IdentityError::Certificate("its times are out of range".into()))
}

/// What a node's endpoint proves itself with when it tells peers that it has forgotten their
/// connections (QUIC's stateless reset), made of a private key that survives a restart.
pub(super) fn reset_secret(private_key: &[u8], node: NodeId) -> [u8; 32] {
    let seed = Sha256::new()
        .chain_update(b"trireme stateless reset")
        .chain_update(private_key)
        .finalize();
    // The name too: two nodes of one authority must not be able to reset each other's connections.
    let secret = Sha256::new()
        .chain_update(seed)
        .chain_update(node.dns_name());
    secret.finalize().into()
}

fn set_validity(
    params: &mut CertificateParams,
    begin: OffsetDateTime,
    lifetime: Duration,
) -> Result<(), IdentityError> {
    let too_long = || IdentityError::Crypto("the validity is out of range".into());
    let lifetime = time::Duration::try_from(lifetime).map_err(|_| too_long())?;
    params.not_before = begin;
    params.not_after = begin.checked_add(lifetime).ok_or_else(too_long)?;
    Ok(())
}
