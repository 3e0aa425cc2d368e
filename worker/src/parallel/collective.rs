//! [`Mesh`]: the [`Collective`] of a stage whose ranks have a link to each other.
//!
//! Kept true: every rank computes each sum in rank order, so results are bit-identical everywhere;
//! and no rank has more than half a ring under way unread, so exchanges cannot deadlock (each round
//! writes one chunk to every peer, then reads one chunk from every peer).
//!
//! Small vectors go to every peer directly (one hop: decode is bound by latency); large ones are
//! reduced by segment owners and then gathered (each rank sends `2 (n-1) / n` of the vector instead
//! of `n - 1` times it: prefill is bound by bandwidth).

use super::frame::{FramedLink, Kind, as_bytes, as_bytes_mut};
use super::{Collective, LinkError};
use std::ops::Range;
use trireme_shared::limits::{ALL_REDUCE_DIRECT_BYTES, GATHER_CHUNK_BYTES};

/// The ranks of one stage, pairwise linked.
pub struct Mesh {
    rank: usize,
    /// By rank; `None` at this rank's own place.
    peers: Vec<Option<FramedLink>>,
    /// f64s of one chunk.
    chunk: usize,
    /// Sum so far.
    sum: Vec<f64>,
    /// What one peer sent.
    part: Vec<f64>,
}

impl Mesh {
    /// `peers[r]` is the link to rank `r` of the stage; exactly `peers[rank]` is `None`.
    pub fn new(rank: usize, peers: Vec<Option<FramedLink>>) -> Self {
        for (r, peer) in peers.iter().enumerate() {
            assert_eq!(peer.is_none(), r == rank, "a link to each other rank");
        }
        // The smallest window decides for all, and every rank of a stage must cut alike: links
        // of one stage are all built with equal windows (see `mesh`).
        let bytes = peers.iter().flatten().map(FramedLink::chunk_bytes).min();
        Self {
            rank,
            peers,
            chunk: (bytes.unwrap_or(usize::MAX) / size_of::<f64>()).max(1),
            sum: Vec::new(),
            part: Vec::new(),
        }
    }

    /// The other ranks, beginning after our own: neighbours do not all write to rank 0 first.
    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let (rank, size) = (self.rank, self.peers.len());
        (1..size).map(move |step| (rank + step) % size)
    }

    fn peer(&mut self, rank: usize) -> &mut FramedLink {
        self.peers[rank]
            .as_mut()
            .expect("others() skips our own place")
    }

    /// Adds up everyone's `values` (at most a chunk): our own and what each peer sent us.
    fn sum_in_order(&mut self, values: &mut [f64]) -> Result<(), LinkError> {
        self.part.resize(values.len(), 0.0);
        self.sum.clear();
        for rank in 0..self.peers.len() {
            let part = match &mut self.peers[rank] {
                None => &values[..],
                Some(peer) => {
                    peer.receive_into(Kind::Reduce, 0, as_bytes_mut(&mut self.part))?;
                    &self.part[..]
                }
            };
            if rank == 0 {
                self.sum.extend_from_slice(part);
            } else {
                add(&mut self.sum, part);
            }
        }
        values.copy_from_slice(&self.sum);
        Ok(())
    }

    /// Everyone sends everything to everyone, a chunk at a time.
    fn reduce_directly(&mut self, values: &mut [f64]) -> Result<(), LinkError> {
        let chunk = self.chunk;
        for part in values.chunks_mut(chunk) {
            for rank in self.others() {
                self.peer(rank).send(Kind::Reduce, 0, as_bytes(part))?;
            }
            self.sum_in_order(part)?;
        }
        Ok(())
    }

    /// Reduce-scatter, then all-gather: rank r sums segment r and hands the sum to the others.
    fn reduce_by_segments(&mut self, values: &mut [f64]) -> Result<(), LinkError> {
        let (me, size, total) = (self.rank, self.peers.len(), values.len());
        let longest = segment(0, size, total).len();
        for at in (0..longest).step_by(self.chunk) {
            let chunk_of = |rank| cut(segment(rank, size, total), at, self.chunk);
            let ranges: Vec<Range<usize>> = (0..size).map(chunk_of).collect();
            for rank in self.others() {
                let theirs = ranges[rank].clone();
                if !theirs.is_empty() {
                    let bytes = as_bytes(&values[theirs]);
                    self.peer(rank).send(Kind::Reduce, 0, bytes)?;
                }
            }
            let mine = ranges[me].clone();
            if !mine.is_empty() {
                self.sum_in_order(&mut values[mine])?;
            }
        }
        for at in (0..longest).step_by(self.chunk) {
            let mine = cut(segment(me, size, total), at, self.chunk);
            for rank in self.others() {
                if !mine.is_empty() {
                    let bytes = as_bytes(&values[mine.clone()]);
                    self.peer(rank).send(Kind::Reduce, 1, bytes)?;
                }
            }
            for rank in self.others() {
                let theirs = cut(segment(rank, size, total), at, self.chunk);
                if !theirs.is_empty() {
                    let bytes = as_bytes_mut(&mut values[theirs]);
                    self.peer(rank).receive_into(Kind::Reduce, 1, bytes)?;
                }
            }
        }
        Ok(())
    }
}

/// Segment `rank` of `total` elements cut into `size`; the first is never shorter than another.
fn segment(rank: usize, size: usize, total: usize) -> Range<usize> {
    let (each, more) = (total / size, total % size);
    let start = rank * each + rank.min(more);
    start..start + each + usize::from(rank < more)
}

/// Up to `chunk` elements of `range`, from `at` elements after its start.
fn cut(range: Range<usize>, at: usize, chunk: usize) -> Range<usize> {
    let start = (range.start + at).min(range.end);
    start..range.end.min(start + chunk)
}

fn add(sum: &mut [f64], part: &[f64]) {
    for (total, value) in sum.iter_mut().zip(part) {
        *total += value;
    }
}

impl Collective for Mesh {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.peers.len()
    }

    fn all_reduce(&mut self, values: &mut [f64]) -> Result<(), LinkError> {
        if self.peers.len() > 2 && size_of_val(values) > ALL_REDUCE_DIRECT_BYTES {
            self.reduce_by_segments(values)
        } else {
            self.reduce_directly(values)
        }
    }

    fn gather(
        &mut self,
        mine: &[f32],
        counts: &[usize],
        out: &mut Vec<f32>,
    ) -> Result<(), LinkError> {
        out.clear();
        if counts.len() != self.peers.len() || counts[self.rank] != mine.len() {
            return Err(LinkError::Corrupt {
                peer: self.rank,
                reason: format!("gather of {} elements with counts {counts:?}", mine.len()),
            });
        }
        let chunk = GATHER_CHUNK_BYTES / size_of::<f32>();
        if self.rank != 0 {
            for part in mine.chunks(chunk) {
                self.peer(0).send(Kind::Gather, 0, as_bytes(part))?;
            }
            return Ok(());
        }
        out.resize(counts.iter().sum(), 0.0);
        let (own, mut rest) = out.split_at_mut(mine.len());
        own.copy_from_slice(mine);
        for (rank, &count) in counts.iter().enumerate().skip(1) {
            let (theirs, later) = rest.split_at_mut(count);
            for part in theirs.chunks_mut(chunk) {
                self.peer(rank)
                    .receive_into(Kind::Gather, 0, as_bytes_mut(part))?;
            }
            rest = later;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::HEADER_BYTES;
    use super::super::mesh::{Shape, in_process};
    use super::super::{Abort, WaitPolicy};
    use super::*;
    use std::time::Duration;
    use trireme_shared::ids::Epoch;
    use trireme_shared::limits::LINK_RING_BYTES;

    fn stage(size: u16, policy: WaitPolicy) -> (Vec<Box<dyn Collective>>, Vec<Abort>) {
        let shape = Shape {
            tensor_parallel: size,
            pipeline_parallel: 1,
        };
        let aborts = vec![Abort::default(); usize::from(size)];
        let ranks = in_process(shape, Epoch(1), policy, &aborts).unwrap();
        (
            ranks.into_iter().map(|rank| rank.collective).collect(),
            aborts,
        )
    }

    /// Runs `work` as every rank at once; results in rank order.
    fn together<T: Send>(
        ranks: Vec<Box<dyn Collective>>,
        work: impl Fn(&mut dyn Collective) -> T + Sync,
    ) -> Vec<T> {
        std::thread::scope(|scope| {
            let work = &work;
            let threads: Vec<_> = ranks
                .into_iter()
                .map(|mut rank| scope.spawn(move || work(&mut *rank)))
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        })
    }

    /// Values whose sum depends on the order of addition.
    fn value(rank: usize, at: usize) -> f64 {
        let mixed = (rank * 7_919 + at).wrapping_mul(2_654_435_761) % 100_003;
        (mixed as f64 - 50_000.0) * 10f64.powi((mixed % 9) as i32 - 4) / 3.0
    }

    fn expected(size: usize, at: usize) -> f64 {
        (1..size).fold(value(0, at), |sum, rank| sum + value(rank, at))
    }

    #[test]
    fn sums_are_in_rank_order_on_every_rank_at_every_size() {
        for size in 1..=4u16 {
            let (ranks, _) = stage(size, WaitPolicy::crowded());
            let ok = together(ranks, |rank| {
                // Twice over, so that a length left misaligned by the one before is caught.
                for len in [1, 576, 100_000, 3, 4_097, 0, 576] {
                    let mut values: Vec<f64> = (0..len).map(|at| value(rank.rank(), at)).collect();
                    rank.all_reduce(&mut values).unwrap();
                    for (at, got) in values.iter().enumerate() {
                        // Bit for bit: the order of addition is part of the contract.
                        assert_eq!(
                            got.to_bits(),
                            expected(rank.size(), at).to_bits(),
                            "{len} {at}"
                        );
                    }
                }
                true
            });
            assert_eq!(ok, vec![true; usize::from(size)]);
        }
    }

    #[test]
    fn gather_concatenates_uneven_parts_on_rank_0_only() {
        let (ranks, _) = stage(3, WaitPolicy::crowded());
        let counts = [2, 300_000, 0];
        let outs = together(ranks, |rank| {
            let me = rank.rank();
            let mine: Vec<f32> = (0..counts[me]).map(|at| value(me, at) as f32).collect();
            let mut out = vec![9.0];
            rank.gather(&mine, &counts, &mut out).unwrap();
            out
        });
        let want: Vec<f32> = (0..3)
            .flat_map(|rank| (0..counts[rank]).map(move |at| value(rank, at) as f32))
            .collect();
        assert!(outs[0] == want);
        assert!(outs[1].is_empty() && outs[2].is_empty());
    }

    #[test]
    fn counts_that_do_not_fit_are_refused() {
        let (mut ranks, _) = stage(2, WaitPolicy::crowded());
        let refused = ranks[1].gather(&[1.0], &[1, 2], &mut Vec::new());
        assert!(matches!(refused, Err(LinkError::Corrupt { .. })));
    }

    #[test]
    fn a_rank_that_leaves_or_stalls_ends_the_others() {
        let policy = WaitPolicy {
            deadline: Duration::from_millis(100),
            ..WaitPolicy::crowded()
        };
        let (mut ranks, _) = stage(3, policy);
        drop(ranks.remove(1));
        let left = together(ranks, |rank| rank.all_reduce(&mut [1.0; 576]));
        assert!(
            left.iter()
                .all(|end| matches!(end, Err(LinkError::Closed { .. }))),
            "{left:?}"
        );

        let (mut ranks, _) = stage(3, policy);
        let stalled = ranks.remove(1);
        let left = together(ranks, |rank| rank.all_reduce(&mut [1.0; 576]));
        let named = |end: &Result<(), LinkError>| match end {
            Err(LinkError::Deadline { peer: 1, .. }) => true,
            // The first to give up closes its links.
            Err(LinkError::Closed { .. }) => true,
            _ => false,
        };
        assert!(left.iter().all(named), "{left:?}");
        drop(stalled);
    }

    #[test]
    fn abort_ends_an_all_reduce_that_waits() {
        let (mut ranks, aborts) = stage(2, WaitPolicy::crowded());
        let silent = ranks.remove(1);
        let mut waiting = ranks.remove(0);
        let thread = std::thread::spawn(move || waiting.all_reduce(&mut [1.0; 8]));
        aborts[0].raise();
        assert!(matches!(thread.join().unwrap(), Err(LinkError::Aborted)));
        drop(silent);
    }

    #[test]
    fn segments_cover_everything_once_and_the_first_is_longest() {
        for (size, total) in [(1, 5), (3, 100), (4, 3), (7, 0), (64, 65_537)] {
            let mut next = 0;
            for rank in 0..size {
                let range = segment(rank, size, total);
                assert_eq!(range.start, next);
                assert!(range.len() <= segment(0, size, total).len());
                next = range.end;
            }
            assert_eq!(next, total);
        }
    }

    #[test]
    fn two_chunks_with_their_headers_fit_a_ring() {
        // What `Mesh` relies on: a rank one round ahead never waits for room.
        let chunk = LINK_RING_BYTES / 2 - HEADER_BYTES;
        assert!(2 * (chunk + HEADER_BYTES) <= LINK_RING_BYTES);
        assert!(
            ALL_REDUCE_DIRECT_BYTES <= chunk,
            "a direct exchange is one round"
        );
    }
}
