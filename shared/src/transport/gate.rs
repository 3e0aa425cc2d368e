//! Nodes that were removed from the cluster: nobody talks to them again.
//!
//! What it keeps true: a connection that [`Gate::enter`] let through is either with a node that is
//! not refused, or was handed to whoever refused that node, to be closed. There is no gap between the
//! two, because both hold the same lock. Ids are never used twice, so that a name is refused for
//! good.

use crate::identity::NodeId;
use crate::limits;
use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// `T` is a connection; the gate only keeps weak hold of those that others hold.
pub(super) struct Gate<T>(Mutex<State<T>>);

struct State<T> {
    removed: HashSet<NodeId>,
    /// The removed, as they came.
    order: VecDeque<NodeId>,
    live: Vec<(NodeId, Weak<T>)>,
    /// Number of entries in `live` at which those that are gone are thrown out: twice what remained
    /// last time, so that the work is a constant per connection.
    sweep_at: usize,
}

const SWEEP_MIN: usize = 64;

impl<T> Default for Gate<T> {
    fn default() -> Self {
        Self(Mutex::new(State {
            removed: HashSet::new(),
            order: VecDeque::new(),
            live: Vec::new(),
            sweep_at: SWEEP_MIN,
        }))
    }
}

impl<T> Gate<T> {
    pub(super) fn refuses(&self, node: NodeId) -> bool {
        self.lock().removed.contains(&node)
    }

    /// Whether a connection with `node` may be used; it is then remembered for as long as it is held.
    pub(super) fn enter(&self, node: NodeId, connection: &Arc<T>) -> bool {
        let mut state = self.lock();
        if state.removed.contains(&node) {
            return false;
        }
        if state.live.len() >= state.sweep_at {
            state.live.retain(|(_, held)| held.strong_count() > 0);
            state.sweep_at = SWEEP_MIN.max(2 * state.live.len());
        }
        state.live.push((node, Arc::downgrade(connection)));
        true
    }

    /// Refuses `nodes` from now on; gives their live connections, which the caller closes.
    #[must_use]
    pub(super) fn refuse(&self, nodes: impl IntoIterator<Item = NodeId>) -> Vec<Arc<T>> {
        let mut state = self.lock();
        let mut news = HashSet::new();
        for node in nodes {
            if !state.removed.insert(node) {
                continue;
            }
            news.insert(node);
            state.order.push_back(node);
            if state.order.len() > limits::REMOVED_NODES_MAX
                && let Some(oldest) = state.order.pop_front()
            {
                tracing::warn!(node = %oldest, "too many removed nodes: the oldest is forgotten");
                state.removed.remove(&oldest);
            }
        }
        let mut cut = Vec::new();
        state.live.retain(|(node, held)| {
            let stays = !news.contains(node);
            if !stays {
                cut.extend(held.upgrade());
            }
            stays
        });
        cut
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // Every change leaves the state whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::WorkerId;

    fn worker(number: u32) -> NodeId {
        NodeId::Worker(WorkerId(number))
    }

    #[test]
    fn a_removed_node_is_cut_off_and_stays_out() {
        let gate = Gate::default();
        let (first, second, other) = (Arc::new('a'), Arc::new('b'), Arc::new('c'));
        assert!(gate.enter(worker(1), &first) && gate.enter(worker(1), &second));
        assert!(gate.enter(worker(2), &other));
        drop(second);
        assert_eq!(gate.refuse([worker(1)]), [first]);
        assert!(gate.refuses(worker(1)) && !gate.refuses(worker(2)));
        assert!(!gate.enter(worker(1), &Arc::new('d')));
        assert!(gate.enter(worker(2), &Arc::new('e')));
        assert_eq!(gate.refuse([worker(1)]), [], "again");
    }

    #[test]
    fn what_it_remembers_is_bounded() {
        let gate = Gate::default();
        let held = Arc::new(());
        assert!(gate.enter(worker(0), &held));
        for _ in 0..10 * SWEEP_MIN {
            assert!(gate.enter(worker(0), &Arc::new(())));
        }
        assert!(gate.lock().live.len() <= SWEEP_MIN);
        assert_eq!(gate.refuse([worker(0)]).len(), 1);

        let most = limits::REMOVED_NODES_MAX as u32;
        assert!(gate.refuse((1..=most).map(worker)).is_empty());
        assert!(!gate.refuses(worker(0)), "the oldest goes first");
        assert!(gate.refuses(worker(1)) && gate.refuses(worker(most)));
        assert_eq!(gate.lock().removed.len(), limits::REMOVED_NODES_MAX);
        assert_eq!(gate.lock().order.len(), limits::REMOVED_NODES_MAX);
    }
}
