//! Identities as scenarios: issue, keep, reload, and what must not pass.

use super::*;
use crate::ids::TokenRecordId;
use crate::limits;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

const WORKER: NodeId = NodeId::Worker(WorkerId(3));

/// A folder of the test's own, gone at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("trireme-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Self(path)
    }
    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn names_in_certificates_have_one_spelling() {
    for node in [WORKER, NodeId::Coordinator(CoordinatorId(1))] {
        assert_eq!(NodeId::from_dns_name(&node.dns_name()), Some(node));
    }
    assert_eq!(WORKER.dns_name(), "w3.worker.trireme");
    for wrong in [
        "w03.worker.trireme",
        "w+3.worker.trireme",
        "c3.worker.trireme",
        "w3.worker.trireme.org",
        "w3.worker",
        "é.worker.trireme",
        "w99999999999.worker.trireme",
        "",
    ] {
        assert_eq!(NodeId::from_dns_name(wrong), None, "{wrong}");
    }
}

#[test]
fn an_authority_survives_its_pem_and_signs_what_it_is_told() {
    let authority = ClusterAuthority::new("test").unwrap();
    let again = ClusterAuthority::from_pem(&authority.to_pem()).unwrap();
    assert_eq!(again.fingerprint(), authority.fingerprint());
    assert_eq!(again.cluster(), "test");

    let request = KeyRequest::generate().unwrap();
    let signed = again
        .sign_csr(request.csr(), WORKER, Duration::from_secs(60))
        .unwrap();
    assert_eq!(NodeId::of_certificate(&signed).unwrap(), WORKER);
    let parsed = parse_certificate(&signed).unwrap();
    let ca = parse_certificate(authority.certificate()).unwrap();
    parsed.verify_signature(Some(ca.public_key())).unwrap();
    assert!(!parsed.is_ca());

    let other = ClusterAuthority::new("test").unwrap();
    let (key, _) = other
        .to_pem()
        .split_once("-----BEGIN CERT")
        .map(|(k, c)| (k.to_owned(), c.to_owned()))
        .unwrap();
    let mixed = key + &pem_section("CERTIFICATE", authority.certificate());
    assert!(ClusterAuthority::from_pem(&mixed).is_err());
}

/// A joiner cannot ask for a name or for powers: the request below wants to be a coordinator and a
/// certificate authority.
#[test]
fn a_request_contributes_its_key_and_nothing_else() {
    let authority = ClusterAuthority::new("test").unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["c1.coordinator.trireme".into()]).unwrap();
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let greedy = params.serialize_request(&key).unwrap();
    let signed = authority
        .sign_csr(greedy.der(), WORKER, Duration::from_secs(60))
        .unwrap();
    assert_eq!(NodeId::of_certificate(&signed).unwrap(), WORKER);
    let parsed = parse_certificate(&signed).unwrap();
    assert!(!parsed.key_usage().unwrap().unwrap().value.key_cert_sign());

    let mut broken = greedy.der().to_vec();
    *broken.last_mut().unwrap() ^= 1;
    let refused = authority.sign_csr(&broken, WORKER, Duration::from_secs(60));
    assert!(matches!(refused, Err(IdentityError::Request(_))));
    assert!(authority.sign_csr(b"", WORKER, Duration::ZERO).is_err());
}

#[test]
fn an_identity_is_kept_privately_and_found_again() {
    let folder = Folder::new("identity");
    assert!(NodeIdentity::load(folder.path()).unwrap().is_none());
    let authority = ClusterAuthority::new("test").unwrap();
    let identity = NodeIdentity::issue(&authority, WORKER).unwrap();
    identity.save(folder.path()).unwrap();
    identity.save(folder.path()).unwrap();

    let again = NodeIdentity::load(folder.path()).unwrap().unwrap();
    assert_eq!(again.node(), WORKER);
    assert_eq!(again.trusted(), [authority.fingerprint()]);
    assert_eq!(again.chain(), identity.chain());
    assert!(again.expires_at() > SystemTime::now() + limits::NODE_CERTIFICATE_LIFETIME / 2);

    let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(files.len(), 1, "a temporary file was left");
    let file = files[0].as_ref().unwrap();
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);

    let whole = std::fs::read(file.path()).unwrap();
    std::fs::write(file.path(), &whole[..whole.len() / 2]).unwrap();
    let damaged = NodeIdentity::load(folder.path());
    assert!(matches!(damaged, Err(IdentityError::Damaged { .. })));
}

#[test]
fn a_certificate_for_another_key_is_refused() {
    let authority = ClusterAuthority::new("test").unwrap();
    let mine = KeyRequest::generate().unwrap();
    let theirs = KeyRequest::generate().unwrap();
    let certificate = authority
        .sign_csr(theirs.csr(), WORKER, Duration::from_secs(60))
        .unwrap();
    let ca = authority.certificate().clone();
    assert!(mine.complete(certificate, vec![ca]).is_err());
}

#[test]
fn a_bundle_holds_the_signer_and_nothing_strange() {
    let (old, new) = (
        ClusterAuthority::new("test").unwrap(),
        ClusterAuthority::new("test").unwrap(),
    );
    let ca = |authority: &ClusterAuthority| authority.certificate().clone();
    let identity = NodeIdentity::issue(&old, WORKER).unwrap();
    // The signer may stand anywhere, and what is said twice counts once.
    let both = vec![ca(&new), ca(&old), ca(&new)];
    let trusting = identity.with_authorities(both).unwrap();
    assert_eq!(trusting.trusted(), [new.fingerprint(), old.fingerprint()]);
    assert!(trusting.trusts(old.fingerprint()) && !identity.trusts(new.fingerprint()));
    assert_eq!(trusting.fingerprint(), identity.fingerprint());

    let leaf = identity.chain()[0].clone();
    let many = (0..limits::AUTHORITIES_MAX).map(|_| ClusterAuthority::new("test").unwrap());
    let many = many.map(|one| ca(&one)).chain([ca(&old)]).collect();
    for (what, wrong) in [
        ("empty", vec![]),
        ("without the signer", vec![ca(&new)]),
        ("with a node's certificate", vec![ca(&old), leaf]),
        ("with noise", vec![ca(&old), b"noise".to_vec().into()]),
        ("too large", many),
    ] {
        let refused = identity.with_authorities(wrong);
        let refused = refused.expect_err(what);
        assert!(matches!(refused, IdentityError::Certificate(_)), "{what}");
    }

    let folder = Folder::new("bundle");
    trusting.save(folder.path()).unwrap();
    let again = NodeIdentity::load(folder.path()).unwrap().unwrap();
    assert_eq!(again.chain(), trusting.chain());
}

#[test]
fn a_renewal_is_of_the_same_node_by_a_trusted_authority_at_half_life() {
    let authority = ClusterAuthority::new("test").unwrap();
    let stranger = ClusterAuthority::new("test").unwrap();
    let other = NodeId::Worker(WorkerId(4));
    let lifetime = limits::NODE_CERTIFICATE_LIFETIME;
    let renew = |signer: &ClusterAuthority, node, lifetime| {
        let request = KeyRequest::generate().unwrap();
        let signed = signer.sign_csr(request.csr(), node, lifetime).unwrap();
        request.complete_for(WORKER, signed, vec![authority.certificate().clone()])
    };
    assert!(renew(&stranger, WORKER, lifetime).is_err());
    assert!(renew(&authority, other, lifetime).is_err());
    for lifetime in [lifetime, Duration::from_secs(60)] {
        let before = SystemTime::now();
        let renewed = renew(&authority, WORKER, lifetime).unwrap();
        let after = SystemTime::now();
        // Certificates count whole seconds.
        let rounding = Duration::from_secs(1);
        assert!(renewed.expires_at() + rounding > before + lifetime);
        assert!(renewed.expires_at() <= after + lifetime);
        assert!(renewed.renew_at() + rounding > before + lifetime / 2);
        assert!(renewed.renew_at() <= after + lifetime / 2);
    }
}

/// Peers recognise a restarted node by it; two nodes must never share one.
#[test]
fn the_reset_secret_outlives_a_restart_and_is_of_one_node() {
    let authority = ClusterAuthority::new("test").unwrap();
    let issue = |number| {
        let node = NodeId::Coordinator(CoordinatorId(number));
        NodeIdentity::issue(&authority, node).unwrap()
    };
    assert_eq!(issue(1).reset_secret(), issue(1).reset_secret());
    assert_ne!(issue(1).reset_secret(), issue(2).reset_secret());

    let request = KeyRequest::generate().unwrap();
    let signed = authority.sign_csr(request.csr(), WORKER, Duration::from_secs(60));
    let joined = request
        .complete(signed.unwrap(), vec![authority.certificate().clone()])
        .unwrap();
    let folder = Folder::new("reset");
    joined.save(folder.path()).unwrap();
    let again = NodeIdentity::load(folder.path()).unwrap().unwrap();
    assert_eq!(again.reset_secret(), joined.reset_secret());
}

#[test]
fn a_token_is_read_back_and_never_shows_its_secret() {
    let authority = ClusterAuthority::new("test").unwrap();
    let token = JoinToken::generate(authority.fingerprint(), TokenRecordId(4)).unwrap();
    let text = token.reveal();
    let again: JoinToken = text.parse().unwrap();
    assert!(again == token && again.secret_hash() == token.secret_hash());
    let secret = text.rsplit('.').next().unwrap();
    assert_eq!(secret.len(), 64);
    for shown in [
        format!("{token}"),
        format!("{token:?}"),
        format!("{token:#?}"),
    ] {
        assert!(!shown.contains(&secret[..8]), "{shown}");
    }
    for wrong in [
        "",
        "a.b.c",
        &text[1..],
        &text[..text.len() - 1],
        &format!("{text}.x"),
    ] {
        assert!(matches!(
            wrong.parse::<JoinToken>(),
            Err(IdentityError::Token)
        ));
    }
}
