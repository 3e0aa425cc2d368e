//! Connections to drivers, one per worker and shared by its sequences, and how many sequences each
//! replica carries.

use super::reconcile::{ReplicaKey, Route};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Mutex as AsyncMutex;
use trireme_shared::identity::NodeId;
use trireme_shared::ids::{Epoch, WorkerId};
use trireme_shared::transport::{Connection, Endpoint, Protocol};

/// A worker's connection and the address it was dialled at.
type Held = Arc<AsyncMutex<Option<(String, Connection)>>>;

#[derive(Default)]
pub(super) struct Drivers {
    connections: Mutex<BTreeMap<WorkerId, Held>>,
    loads: Arc<Mutex<BTreeMap<(ReplicaKey, Epoch), usize>>>,
}

/// Counts one sequence of a replica while it lives.
pub(super) struct Load {
    loads: Arc<Mutex<BTreeMap<(ReplicaKey, Epoch), usize>>>,
    of: (ReplicaKey, Epoch),
}

impl Drivers {
    /// A live connection to the route's driver; dials if there is none. Whoever comes while
    /// somebody dials waits for that one. Ends by the transport's own deadlines.
    pub(super) async fn connection(
        &self,
        endpoint: &Endpoint,
        route: &Route,
    ) -> Result<Connection, String> {
        let held = {
            let mut all = self
                .connections
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            Arc::clone(all.entry(route.driver).or_default())
        };
        let mut held = held.lock().await;
        if let Some((address, connection)) = &*held
            && *address == route.address
            && connection.quic().close_reason().is_none()
        {
            return Ok(connection.clone());
        }
        let node = NodeId::Worker(route.driver);
        let dialled = endpoint
            .connect(&route.address, node, Protocol::Generate)
            .await
            .map_err(|e| e.to_string())?;
        *held = Some((route.address.clone(), dialled.clone()));
        Ok(dialled)
    }

    /// Sequences running there now.
    pub(super) fn load(&self, route: &Route) -> usize {
        let loads = self.loads.lock().unwrap_or_else(PoisonError::into_inner);
        loads.get(&(route.key, route.epoch)).copied().unwrap_or(0)
    }

    pub(super) fn count(&self, route: &Route) -> Load {
        let of = (route.key, route.epoch);
        let mut loads = self.loads.lock().unwrap_or_else(PoisonError::into_inner);
        *loads.entry(of).or_default() += 1;
        Load {
            loads: Arc::clone(&self.loads),
            of,
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let mut loads = self.loads.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = loads.get_mut(&self.of) {
            *count -= 1;
            if *count == 0 {
                loads.remove(&self.of);
            }
        }
    }
}
