//! Which workers a replica gets, and which stage each serves.

use super::Candidate;
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// A worker chosen for a rank.
pub(super) type Seat<'a> = &'a Candidate;

/// `pp` stages of `tp` workers, or `None` where there are too few.
///
/// A tensor-parallel all-reduce happens twice a layer, a hand-over between stages once a step: so
/// a stage is kept on one host first, and a replica on one host next. Best fit: the smallest host
/// that is large enough, so that large hosts stay whole for larger replicas.
pub(super) fn seats(free: &[Candidate], tp: usize, pp: usize) -> Option<Vec<Vec<Seat<'_>>>> {
    if free.len() < tp * pp {
        return None;
    }
    let mut hosts: BTreeMap<&str, Vec<Seat<'_>>> = BTreeMap::new();
    for candidate in free {
        hosts.entry(&candidate.host).or_default().push(candidate);
    }
    for workers in hosts.values_mut() {
        // Fastest last, to be popped first; the lower id breaks ties.
        workers.sort_by_key(|c| (c.weight(), Reverse(c.worker)));
    }
    let whole = smallest_holding(&hosts, tp * pp);
    let mut stages = Vec::with_capacity(pp);
    for _ in 0..pp {
        let host = whole.or_else(|| smallest_holding(&hosts, tp));
        let mut stage = Vec::with_capacity(tp);
        while stage.len() < tp {
            // No host holds a whole stage: fill it from as few hosts as possible.
            let from = host.or_else(|| largest(&hosts))?;
            stage.push(hosts.get_mut(from)?.pop()?);
        }
        stages.push(stage);
    }
    Some(stages)
}

fn smallest_holding<'a>(hosts: &BTreeMap<&'a str, Vec<Seat<'_>>>, count: usize) -> Option<&'a str> {
    let large_enough = hosts.iter().filter(|(_, w)| w.len() >= count);
    large_enough
        .min_by_key(|(host, w)| (w.len(), **host))
        .map(|(host, _)| *host)
}

fn largest<'a>(hosts: &BTreeMap<&'a str, Vec<Seat<'_>>>) -> Option<&'a str> {
    hosts
        .iter()
        .max_by_key(|(host, w)| (w.len(), Reverse(**host)))
        .map(|(host, _)| *host)
}
