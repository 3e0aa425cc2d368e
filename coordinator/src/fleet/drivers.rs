//! Connections to drivers, one per worker and shared by its sequences, and how many sequences of whom
//! each replica carries.

use super::reconcile::{ReplicaKey, Route};
use crate::places::Places;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Mutex as AsyncMutex;
use trireme_shared::identity::NodeId;
use trireme_shared::ids::{Epoch, TenantId, WorkerId};
use trireme_shared::limits;
use trireme_shared::transport::{Connection, Endpoint, Protocol};

/// A worker's connection and the address it was dialled at.
type Held = Arc<AsyncMutex<Option<(String, Connection)>>>;

#[derive(Default)]
pub(super) struct Drivers {
    connections: Mutex<BTreeMap<WorkerId, Held>>,
    loads: Arc<Mutex<Loads>>,
}

/// The streams open at each replica's driver; none of a replica without any.
type Loads = BTreeMap<(ReplicaKey, Epoch), Places>;

/// Counts one sequence of a replica while it lives.
pub(super) struct Load {
    loads: Arc<Mutex<Loads>>,
    of: (ReplicaKey, Epoch),
    tenant: TenantId,
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
        loads
            .get(&(route.key, route.epoch))
            .map_or(0, Places::taken)
    }

    /// Whether one more sequence of the tenant may go there.
    pub(super) fn has_room(&self, route: &Route, tenant: TenantId, weight: u32) -> bool {
        let loads = self.loads.lock().unwrap_or_else(PoisonError::into_inner);
        let places = loads.get(&(route.key, route.epoch));
        places.is_none_or(|places| places.has_room(tenant, weight))
    }

    pub(super) fn count(&self, route: &Route, tenant: TenantId, weight: u32) -> Load {
        let of = (route.key, route.epoch);
        let mut loads = self.loads.lock().unwrap_or_else(PoisonError::into_inner);
        let most = limits::GENERATE_STREAMS_MAX as usize;
        let places = loads.entry(of).or_insert_with(|| Places::new(most));
        places.take(tenant, weight);
        Load {
            loads: Arc::clone(&self.loads),
            of,
            tenant,
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let mut loads = self.loads.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(places) = loads.get_mut(&self.of) {
            places.give_back(self.tenant);
            if places.taken() == 0 {
                loads.remove(&self.of);
            }
        }
    }
}
