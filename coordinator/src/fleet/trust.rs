//! What nodes are told of each other: the authorities to trust, the coordinators, the removed.

use super::{Fleet, FleetError};
use crate::state::{Authority, State};
use quinn::rustls::pki_types::CertificateDer;
use std::sync::{Arc, Mutex, PoisonError};
use trireme_shared::identity::{ClusterAuthority, NodeId};
use trireme_shared::ids::WorkerId;
use trireme_shared::wire::control::CoordinatorAddress;

/// The signing authority, taken from its PEM once.
#[derive(Default)]
pub(super) struct Signer(Mutex<Option<(String, Arc<ClusterAuthority>)>>);

impl Fleet {
    /// Who signs certificates now, and all who are trusted.
    pub(super) fn signer(
        &self,
    ) -> Result<(Arc<ClusterAuthority>, Vec<CertificateDer<'static>>), FleetError> {
        let signing = self.shared.group.read(|s| s.signing_authority().cloned());
        let signing =
            signing.ok_or_else(|| FleetError::Refused("this cluster is not set up yet".into()))?;
        let authority = self.shared.signer.take_up(&signing)?;
        let bundle = self.authorities().into_iter().map(CertificateDer::from);
        Ok((authority, bundle.collect()))
    }

    /// CA certificates (DER) that nodes are told to trust.
    pub(super) fn authorities(&self) -> Vec<Vec<u8>> {
        self.shared.group.read(trusted)
    }

    /// All coordinators that can be dialled.
    pub(super) fn coordinators(&self) -> Vec<CoordinatorAddress> {
        self.shared.group.read(coordinators)
    }

    pub(super) fn removed_workers(&self) -> Vec<WorkerId> {
        self.shared.group.read(removed_workers)
    }
}

impl Signer {
    fn take_up(&self, authority: &Authority) -> Result<Arc<ClusterAuthority>, FleetError> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((fingerprint, known)) = &*held
            && *fingerprint == authority.fingerprint
        {
            return Ok(known.clone());
        }
        let taken = ClusterAuthority::from_pem(&authority.pem)
            .map_err(|e| FleetError::Refused(e.to_string()))?;
        let taken = Arc::new(taken);
        *held = Some((authority.fingerprint.clone(), taken.clone()));
        Ok(taken)
    }
}

/// A PEM that does not parse was refused when it was added.
pub(super) fn trusted(state: &State) -> Vec<Vec<u8>> {
    let parsed = state
        .trusted_authorities()
        .filter_map(|a| ClusterAuthority::from_pem(&a.pem).ok());
    parsed.map(|a| a.certificate().to_vec()).collect()
}

pub(super) fn coordinators(state: &State) -> Vec<CoordinatorAddress> {
    let listening = state.coordinators().filter(|c| !c.control.is_empty());
    let address = |c: &crate::state::CoordinatorRecord| CoordinatorAddress {
        id: c.id,
        control: c.control.clone(),
    };
    listening.map(address).collect()
}

pub(super) fn removed_workers(state: &State) -> Vec<WorkerId> {
    let workers = state.removed().filter_map(|node| match node {
        NodeId::Worker(id) => Some(id),
        NodeId::Coordinator(_) => None,
    });
    workers.collect()
}
