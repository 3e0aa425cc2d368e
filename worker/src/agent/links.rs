//! Which coordinators this worker keeps links to: a plain table without I/O.
//!
//! What it keeps true: one link for each coordinator of the group, as any of them last told it; what
//! the command line named is dialled whenever no link is up; refusals end the worker only when every
//! known coordinator refuses it. `control` drives it.

use std::collections::BTreeMap;
use trireme_shared::ids::CoordinatorId;
use trireme_shared::limits::COORDINATOR_LINKS_MAX;
use trireme_shared::wire::control::CoordinatorAddress;

/// Numbers the links of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkId(pub u64);

/// Whom to dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// `host:port`
    pub address: String,
    /// `None` where only an address is known: any coordinator of the cluster will do.
    pub coordinator: Option<CoordinatorId>,
}

/// What the driver has to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// Start a link.
    Open(LinkId, Target),
    /// Dial there from the next attempt on; a connection that stands stays.
    Redirect(LinkId, Target),
    /// End a link.
    Close(LinkId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Not connected (yet, or any more).
    Trying,
    Up,
    /// The last attempt was refused; tried again all the same.
    Refused,
}

struct Link {
    target: Target,
    phase: Phase,
}

#[derive(Default)]
pub struct LinkTable {
    /// Addresses of the command line.
    seeds: Vec<String>,
    links: BTreeMap<LinkId, Link>,
    last: u64,
}

impl LinkTable {
    /// `known` is what an earlier run was told.
    pub fn new(seeds: Vec<String>, known: &[CoordinatorAddress]) -> (Self, Vec<Change>) {
        let mut table = Self {
            seeds,
            ..Self::default()
        };
        let mut changes = Vec::new();
        for one in known.iter().take(COORDINATOR_LINKS_MAX) {
            table.open(one.control.clone(), Some(one.id), &mut changes);
        }
        table.open_seeds(&mut changes);
        (table, changes)
    }

    pub fn is_up(&self) -> bool {
        self.links.values().any(|link| link.phase == Phase::Up)
    }

    /// The links that are up.
    pub fn up_links(&self) -> impl Iterator<Item = LinkId> {
        let up = self.links.iter().filter(|(_, l)| l.phase == Phase::Up);
        up.map(|(id, _)| *id)
    }

    /// `coordinator` welcomed this worker over `id`.
    pub fn up(&mut self, id: LinkId, coordinator: CoordinatorId) -> Vec<Change> {
        let Some(link) = self.links.get_mut(&id) else {
            return Vec::new();
        };
        link.phase = Phase::Up;
        link.target.coordinator = Some(coordinator);
        // It answered here, so nobody needs to look for it elsewhere.
        self.close(|other, link| other != id && link.target.coordinator == Some(coordinator))
    }

    pub fn down(&mut self, id: LinkId) -> Vec<Change> {
        let mut changes = Vec::new();
        if let Some(link) = self.links.get_mut(&id) {
            link.phase = Phase::Trying;
        }
        if !self.is_up() {
            self.open_seeds(&mut changes);
        }
        changes
    }

    /// The coordinator at the link's end does not take this worker. True where none does.
    pub fn refused(&mut self, id: LinkId) -> bool {
        if let Some(link) = self.links.get_mut(&id) {
            link.phase = Phase::Refused;
        }
        self.links.values().all(|link| link.phase == Phase::Refused)
    }

    /// A coordinator told the whole group.
    pub fn told(&mut self, group: &[CoordinatorAddress]) -> Vec<Change> {
        let group = &group[..group.len().min(COORDINATOR_LINKS_MAX)];
        if group.is_empty() {
            return Vec::new();
        }
        let mut changes = Vec::new();
        for one in group {
            let target = Target {
                address: one.control.clone(),
                coordinator: Some(one.id),
            };
            let has = |link: &&mut Link| {
                link.target.coordinator == Some(one.id)
                    || (link.target.coordinator.is_none() && link.target.address == one.control)
            };
            let found = self.links.iter_mut().find(|(_, link)| has(link));
            match found {
                Some((_, link)) if link.target == target => {}
                Some((id, link)) => {
                    link.target = target.clone();
                    changes.push(Change::Redirect(*id, target));
                }
                None => self.open(one.control.clone(), Some(one.id), &mut changes),
            }
        }
        // A link that is up may be the one that told us, of a coordinator that is leaving.
        let listed = |link: &Link| group.iter().any(|o| Some(o.id) == link.target.coordinator);
        changes.extend(self.close(|_, link| link.phase != Phase::Up && !listed(link)));
        changes
    }

    fn open_seeds(&mut self, changes: &mut Vec<Change>) {
        for seed in self.seeds.clone() {
            if self.links.values().all(|link| link.target.address != seed) {
                self.open(seed, None, changes);
            }
        }
    }

    fn open(
        &mut self,
        address: String,
        coordinator: Option<CoordinatorId>,
        changes: &mut Vec<Change>,
    ) {
        self.last += 1;
        let (id, target) = (
            LinkId(self.last),
            Target {
                address,
                coordinator,
            },
        );
        let link = Link {
            target: target.clone(),
            phase: Phase::Trying,
        };
        self.links.insert(id, link);
        changes.push(Change::Open(id, target));
    }

    fn close(&mut self, which: impl Fn(LinkId, &Link) -> bool) -> Vec<Change> {
        let hit = self.links.iter().filter(|(id, link)| which(**id, link));
        let hit: Vec<LinkId> = hit.map(|(id, _)| *id).collect();
        for id in &hit {
            self.links.remove(id);
        }
        hit.into_iter().map(Change::Close).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(id: u32, control: &str) -> CoordinatorAddress {
        CoordinatorAddress {
            id: CoordinatorId(id),
            control: control.into(),
        }
    }

    fn open(link: u64, address: &str, coordinator: Option<u32>) -> Change {
        Change::Open(LinkId(link), target(address, coordinator))
    }

    fn target(address: &str, coordinator: Option<u32>) -> Target {
        Target {
            address: address.into(),
            coordinator: coordinator.map(CoordinatorId),
        }
    }

    #[test]
    fn one_address_leads_to_a_link_for_each_coordinator() {
        let (mut table, changes) = LinkTable::new(vec!["a:1".into()], &[]);
        assert_eq!(changes, [open(1, "a:1", None)]);
        assert_eq!(table.up(LinkId(1), CoordinatorId(1)), []);
        let group = [at(1, "a:1"), at(2, "b:1"), at(3, "c:1")];
        let two = [open(2, "b:1", Some(2)), open(3, "c:1", Some(3))];
        assert_eq!(table.told(&group), two);
        assert_eq!(table.told(&group), [], "told again by another");
        // One moves, one is removed.
        table.up(LinkId(3), CoordinatorId(3));
        let changes = table.told(&[at(1, "a:1"), at(3, "c:2")]);
        let moved = Change::Redirect(LinkId(3), target("c:2", Some(3)));
        assert_eq!(changes, [moved, Change::Close(LinkId(2))]);
    }

    #[test]
    fn a_coordinator_found_at_another_address_gets_no_second_link() {
        // An earlier run knew it at `old:1`; the command line names where it listens now.
        let (mut table, changes) = LinkTable::new(vec!["new:1".into()], &[at(1, "old:1")]);
        assert_eq!(changes.len(), 2);
        let changes = table.up(LinkId(2), CoordinatorId(1));
        assert_eq!(changes, [Change::Close(LinkId(1))]);
        let moved = Change::Redirect(LinkId(2), target("ip:1", Some(1)));
        assert_eq!(table.told(&[at(1, "ip:1")]), [moved]);
        // The group is lost: the address of the command line may lead to it again.
        assert_eq!(table.down(LinkId(2)), [open(3, "new:1", None)]);
        assert_eq!(table.up(LinkId(2), CoordinatorId(1)), []);
        assert_eq!(table.told(&[at(1, "ip:1")]), [Change::Close(LinkId(3))]);
    }

    #[test]
    fn a_worker_is_out_only_when_every_coordinator_says_so() {
        let (mut table, _) = LinkTable::new(vec!["a:1".into()], &[at(1, "a:1"), at(2, "b:1")]);
        assert!(!table.refused(LinkId(1)));
        table.up(LinkId(2), CoordinatorId(2));
        assert!(!table.refused(LinkId(1)), "the other knows it");
        table.down(LinkId(2));
        assert!(table.refused(LinkId(2)));
        let (mut alone, _) = LinkTable::new(vec!["a:1".into()], &[]);
        assert!(alone.refused(LinkId(1)));
    }
}
