//! A new certificate before the old one ends, and the authorities that others' are checked with:
//! `ask`, `take` and `trust`, driven by the agent's loop.

use crate::WorkerError;
use quinn::rustls::pki_types::CertificateDer;
use std::path::PathBuf;
use std::time::SystemTime;
use trireme_shared::identity::{KeyRequest, NodeIdentity};
use trireme_shared::limits::RENEW_RETRY_INTERVAL;
use trireme_shared::wall_clock;
use trireme_shared::wire::control::ToCoordinator;

pub struct Renewal {
    identity: NodeIdentity,
    data_dir: PathBuf,
    /// The key of the newest request under way.
    asked: Option<KeyRequest>,
    /// When to ask (again).
    due: SystemTime,
}

impl Renewal {
    pub fn new(identity: NodeIdentity, data_dir: PathBuf) -> Self {
        Self {
            due: identity.renew_at(),
            identity,
            data_dir,
            asked: None,
        }
    }

    /// Waits until it is time to `ask`.
    pub async fn due(&self) {
        wall_clock::wait_until(self.due).await;
    }

    /// What to say to a coordinator, with a fresh key. Asked again later if no answer comes.
    pub fn ask(&mut self) -> Result<ToCoordinator, WorkerError> {
        self.due = SystemTime::now() + RENEW_RETRY_INTERVAL;
        let request = KeyRequest::generate()?;
        let csr = request.csr().to_vec();
        self.asked = Some(request);
        Ok(ToCoordinator::Renew { csr })
    }

    /// The answer: keeps the new identity on disk and gives it. Nobody's answer is nothing.
    pub fn take(
        &mut self,
        certificate: Vec<u8>,
        authorities: Vec<Vec<u8>>,
    ) -> Result<Option<NodeIdentity>, WorkerError> {
        let Some(request) = self.asked.take() else {
            return Ok(None);
        };
        let authorities = authorities.into_iter().map(CertificateDer::from).collect();
        let (node, certificate) = (self.identity.node(), CertificateDer::from(certificate));
        let identity = request.complete_for(node, certificate, authorities)?;
        self.keep(identity).map(Some)
    }

    /// The authorities to trust from now on, as a coordinator told: the same certificate with another
    /// bundle. `None` where nothing changes.
    pub fn trust(&mut self, authorities: &[Vec<u8>]) -> Result<Option<NodeIdentity>, WorkerError> {
        let known = self.identity.authorities();
        let same = |(told, known): (&Vec<u8>, &CertificateDer<'_>)| told[..] == known[..];
        if authorities.len() == known.len() && authorities.iter().zip(known).all(same) {
            return Ok(None);
        }
        let bundle = authorities.iter().cloned().map(CertificateDer::from);
        match self.identity.with_authorities(bundle.collect()) {
            Ok(identity) => self.keep(identity).map(Some),
            // The one that signed this certificate is not trusted any more: time for a new one.
            Err(error) => {
                self.due = SystemTime::now();
                Err(error.into())
            }
        }
    }

    /// SHA-256 of each authority that this worker trusts.
    pub fn trusted(&self) -> Vec<[u8; 32]> {
        let trusted = self.identity.trusted();
        trusted
            .into_iter()
            .map(|fingerprint| fingerprint.0)
            .collect()
    }

    fn keep(&mut self, identity: NodeIdentity) -> Result<NodeIdentity, WorkerError> {
        identity.save(&self.data_dir)?;
        self.due = identity.renew_at();
        self.identity = identity.clone();
        Ok(identity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trireme_shared::identity::{ClusterAuthority, NodeId};
    use trireme_shared::ids::WorkerId;
    use trireme_shared::limits::NODE_CERTIFICATE_LIFETIME;

    fn asked(renewal: &mut Renewal) -> Vec<u8> {
        match renewal.ask().unwrap() {
            ToCoordinator::Renew { csr } => csr,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn only_a_certificate_for_this_node_and_key_is_taken_and_it_is_kept() {
        let name = format!("trireme-renewal-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        let authority = ClusterAuthority::new("test").unwrap();
        let (me, other) = (NodeId::Worker(WorkerId(1)), NodeId::Worker(WorkerId(2)));
        let identity = NodeIdentity::issue(&authority, me).unwrap();
        let mut renewal = Renewal::new(identity, folder.clone());
        assert!(renewal.due > SystemTime::now());
        let ca = || vec![authority.certificate().to_vec()];
        let signed = |csr: &[u8], node| {
            let signed = authority.sign_csr(csr, node, NODE_CERTIFICATE_LIFETIME);
            signed.unwrap().to_vec()
        };
        let csr = asked(&mut renewal);
        assert!(renewal.take(signed(&csr, other), ca()).is_err());
        let stale = signed(&csr, me);
        assert!(renewal.take(stale.clone(), ca()).unwrap().is_none(), "once");
        let csr = asked(&mut renewal);
        assert!(renewal.take(stale, ca()).is_err(), "of an older key");
        assert!(NodeIdentity::load(&folder).unwrap().is_none());
        drop(csr);
        let csr = asked(&mut renewal);
        let new = renewal.take(signed(&csr, me), ca()).unwrap().unwrap();
        assert_eq!(new.node(), me);
        let saved = NodeIdentity::load(&folder).unwrap().unwrap();
        assert_eq!(saved.expires_at(), new.expires_at());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
