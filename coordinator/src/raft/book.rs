//! Where the other members are: by the state, by what they said when they dialled, and by whoever told
//! a newcomer. A member that came back on another port is found by its own hello before the state
//! knows.

use super::types::MemberId;
use crate::state::State;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use trireme_shared::ids::CoordinatorId;
use trireme_shared::wire::control::CoordinatorAddress;

/// Cheap to clone; all clones are one book.
#[derive(Clone, Default)]
pub(super) struct Book(Arc<Mutex<Pages>>);

#[derive(Default)]
struct Pages {
    state: BTreeMap<MemberId, String>,
    said: BTreeMap<MemberId, String>,
    seeds: BTreeMap<MemberId, String>,
}

impl Book {
    pub(super) fn follow(&self, state: &State) {
        let listens = state.coordinators().filter(|c| !c.control.is_empty());
        let addresses = listens
            .map(|c| (u64::from(c.id.0), c.control.clone()))
            .collect();
        let mut pages = self.pages();
        if pages.state != addresses {
            // The state's word is newer than what was said before it.
            let changed: Vec<MemberId> = addresses
                .iter()
                .filter(|(id, to)| pages.state.get(id) != Some(to))
                .map(|(id, _)| *id)
                .collect();
            for id in changed {
                pages.said.remove(&id);
            }
            pages.state = addresses;
        }
    }

    pub(super) fn said(&self, id: MemberId, control: &str) {
        self.pages().said.insert(id, control.to_owned());
    }

    pub(super) fn seeds(&self, seeds: &[CoordinatorAddress]) {
        let seeds = seeds.iter().map(|s| (u64::from(s.id.0), s.control.clone()));
        self.pages().seeds = seeds.collect();
    }

    /// All addresses worth a try, the likeliest first.
    pub(super) fn addresses(&self, id: MemberId) -> Vec<String> {
        let pages = self.pages();
        let mut all = Vec::new();
        for source in [&pages.said, &pages.state, &pages.seeds] {
            if let Some(address) = source.get(&id)
                && !all.contains(address)
            {
                all.push(address.clone());
            }
        }
        all
    }

    /// Every coordinator that is known.
    pub(super) fn everyone(&self) -> Vec<CoordinatorId> {
        let pages = self.pages();
        let mut all: Vec<MemberId> = pages
            .state
            .keys()
            .chain(pages.said.keys())
            .chain(pages.seeds.keys())
            .copied()
            .collect();
        all.sort_unstable();
        all.dedup();
        all.into_iter()
            .filter_map(|id| u32::try_from(id).ok().map(CoordinatorId))
            .collect()
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
