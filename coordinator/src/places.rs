//! A bounded number of places that tenants share, so that one who floods locks nobody out.
//!
//! The rule is that of dynamic thresholds (Choudhury and Hahne, "Dynamic Queue Length Thresholds for
//! Shared-Memory Packet Switches", IEEE/ACM Transactions on Networking 6(2), 1998): a tenant may hold
//! `limits::PLACES_PER_FREE` places for each one that is free, and less by as much as its weight is below
//! the heaviest holder's; whoever holds none may take any free one. A share of all places alone would
//! not do: who is alone has all of them, and has them still when the next one comes.
//!
//! Kept true: a tenant that takes all it can leaves about one part in `1 + PLACES_PER_FREE` of what it
//! found free; tenants that go on taking all they can hold, once what they held has turned over, places
//! in proportion to their weights. A tenant alone may hold all but that one part.
//!
//! The gateway has such places for requests, the fleet for sequences and for each driver's streams.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use trireme_shared::ids::TenantId;
use trireme_shared::limits;

/// Who holds how many. Pure.
#[derive(Debug)]
pub struct Places {
    capacity: usize,
    taken: usize,
    holders: BTreeMap<TenantId, Held>,
}

#[derive(Debug)]
struct Held {
    /// Above zero.
    places: usize,
    /// As it last said.
    weight: u32,
}

impl Places {
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            taken: 0,
            holders: BTreeMap::new(),
        }
    }

    pub fn taken(&self) -> usize {
        self.taken
    }

    /// Whether a tenant of that weight may have one more.
    pub fn has_room(&self, tenant: TenantId, weight: u32) -> bool {
        let free = self.capacity.saturating_sub(self.taken);
        let held = self.holders.get(&tenant).map_or(0, |held| held.places);
        if free == 0 || held == 0 {
            return free > 0;
        }
        let heaviest = self.holders.values().map(|held| held.weight);
        let heaviest = heaviest.fold(weight, u32::max);
        // Counts far below 2^32 times weights.
        let may = (limits::PLACES_PER_FREE * free) as u64 * u64::from(weight);
        (held as u64) * u64::from(heaviest) < may
    }

    /// One more, room or not: for who cannot be turned away any more.
    pub fn take(&mut self, tenant: TenantId, weight: u32) {
        self.taken += 1;
        let held = self.holders.entry(tenant);
        let held = held.or_insert(Held { places: 0, weight });
        held.places += 1;
        held.weight = weight;
    }

    pub fn give_back(&mut self, tenant: TenantId) {
        if let Some(held) = self.holders.get_mut(&tenant) {
            self.taken -= 1;
            held.places -= 1;
            if held.places == 0 {
                self.holders.remove(&tenant);
            }
        }
    }
}

/// Places that many tasks take. Cheap to clone.
#[derive(Clone)]
pub struct SharedPlaces(Arc<Mutex<Places>>);

/// One place; free again when it is dropped.
pub struct Place {
    of: SharedPlaces,
    tenant: TenantId,
}

impl SharedPlaces {
    pub fn new(capacity: usize) -> Self {
        Self(Arc::new(Mutex::new(Places::new(capacity))))
    }

    /// A place, if the tenant may have one more.
    pub fn try_take(&self, tenant: TenantId, weight: u32) -> Option<Place> {
        let mut places = self.lock();
        places.has_room(tenant, weight).then(|| {
            places.take(tenant, weight);
            Place {
                of: self.clone(),
                tenant,
            }
        })
    }

    /// A panic elsewhere leaves the counts whole.
    fn lock(&self) -> MutexGuard<'_, Places> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.of.lock().give_back(self.tenant);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many a tenant gets that takes all it can.
    fn flood(places: &mut Places, tenant: u32, weight: u32) -> usize {
        let mut got = 0;
        while places.has_room(TenantId(tenant), weight) {
            places.take(TenantId(tenant), weight);
            got += 1;
        }
        got
    }

    #[test]
    fn whoever_floods_leaves_a_part_of_what_it_found() {
        let mut places = Places::new(1_000);
        assert_eq!(flood(&mut places, 1, 1), 800);
        assert_eq!(flood(&mut places, 2, 1), 160);
        assert_eq!(flood(&mut places, 3, 1), 32);
        // One who asks for one gets it, and is not asked for its share.
        for tenant in 4..12 {
            assert!(places.has_room(TenantId(tenant), 1), "{tenant}");
            places.take(TenantId(tenant), 1);
        }
        assert!(!places.has_room(TenantId(99), 1), "all are taken");
        assert_eq!(places.taken(), 1_000);
    }

    #[test]
    fn with_turnover_floods_hold_places_by_weight() {
        let weights = [(1, 1), (2, 3), (3, 6)];
        let mut places = Places::new(1_000);
        for (tenant, weight) in weights {
            flood(&mut places, tenant, weight);
        }
        for turn in 0..20_000u32 {
            let (leaves, _) = weights[turn as usize % 3];
            places.give_back(TenantId(leaves));
            // Whoever comes first gets the place: the one who floods hardest always asks first.
            for (tenant, weight) in weights {
                flood(&mut places, tenant, weight);
            }
        }
        let held = |tenant| places.holders[&TenantId(tenant)].places;
        // free = 1000 / (1 + 4 * (1/6 + 3/6 + 6/6)) = 130, and four times as many by weight.
        for (tenant, due) in [(1, 87), (2, 261), (3, 522)] {
            let off = held(tenant).abs_diff(due);
            assert!(off <= 5, "tenant {tenant} holds {}", held(tenant));
        }
    }

    #[test]
    fn a_light_tenant_beside_a_heavy_one_always_gets_one() {
        let mut places = Places::new(100);
        flood(&mut places, 1, limits::WEIGHT_MAX);
        assert_eq!(flood(&mut places, 2, 1), 1);
    }

    #[test]
    fn what_was_given_back_leaves_nothing_behind() {
        let shared = SharedPlaces::new(10);
        let held: Vec<_> = (0..8)
            .filter_map(|_| shared.try_take(TenantId(1), 1))
            .collect();
        assert_eq!(held.len(), 8);
        assert!(shared.try_take(TenantId(1), 1).is_none());
        let other = shared.try_take(TenantId(2), 1);
        assert_eq!(shared.lock().taken(), 9);
        drop((held, other));
        assert_eq!(shared.lock().taken(), 0);
        assert!(shared.lock().holders.is_empty());
    }
}
