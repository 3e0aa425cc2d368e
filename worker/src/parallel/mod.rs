//! How ranks of one replica exchange tensors.
//!
//! A [`Link`] is an ordered byte stream between two ranks. Shared memory and QUIC each implement
//! it; everything above (all-reduce, activations, step plans) is written once on top. Every wait
//! ends: by the bytes, by the deadline, by the peer closing, or by [`Abort`].

pub mod abort;
pub mod bench;
pub mod channel;
pub mod collective;
pub mod frame;
pub mod incoming;
pub mod mesh;
pub mod quic;
pub mod ring;
pub mod shm;
pub mod stage;
pub mod topology;
pub mod wait;

pub use abort::Abort;
pub use wait::{Patience, WaitPolicy, Waits};

use std::time::Duration;

/// Why an exchange between ranks did not complete. After any of these the epoch is over.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("rank {peer} closed its link")]
    Closed { peer: usize },
    #[error("rank {peer} did not answer within {waited:?}")]
    Deadline { peer: usize, waited: Duration },
    #[error("the epoch was ended")]
    Aborted,
    #[error("rank {peer} speaks of epoch {got}, this replica runs epoch {want}")]
    WrongEpoch { peer: usize, got: u64, want: u64 },
    #[error("rank {peer} sent a frame that is not valid: {reason}")]
    Corrupt { peer: usize, reason: String },
}

/// An ordered byte stream to one peer rank, both ways. Not shared between threads.
pub trait Link: Send {
    /// Hands all of `bytes` over; waits while the peer is behind.
    fn write_all(&mut self, bytes: &[u8]) -> Result<(), LinkError>;
    /// Fills `bytes`; waits until the peer has written enough, each time at most the deadline.
    fn read_exact(&mut self, bytes: &mut [u8]) -> Result<(), LinkError>;
    /// Like `read_exact`, but the peer may take any time before the first byte: between steps there
    /// may be nothing to say. Ends by a close or an abort.
    fn read_exact_idle(&mut self, bytes: &mut [u8]) -> Result<(), LinkError>;
    /// The other end's index in the plan.
    fn peer(&self) -> usize;
    /// Bytes that each side may have under way before the other must read.
    fn window_bytes(&self) -> usize;
}

/// The ranks of one stage, acting together. Every member calls the same operations in the same
/// order with equal sizes.
pub trait Collective: Send {
    /// This rank's place, `0..size()`.
    fn rank(&self) -> usize;
    fn size(&self) -> usize;
    /// Element-wise sum over all ranks, left in `values` of each. Summed in rank order, so every
    /// rank holds bit-identical results. In f64, so that the sum does not depend on how the model
    /// is split either (see `Backend::Partial`).
    fn all_reduce(&mut self, values: &mut [f64]) -> Result<(), LinkError>;
    /// Brings every rank's `mine` to rank 0: there `out` becomes the concatenation in rank order
    /// (`counts[r]` elements of rank r); elsewhere `out` is left empty.
    fn gather(
        &mut self,
        mine: &[f32],
        counts: &[usize],
        out: &mut Vec<f32>,
    ) -> Result<(), LinkError>;
}

/// The only rank of its stage.
pub struct Solo;

impl Collective for Solo {
    fn rank(&self) -> usize {
        0
    }
    fn size(&self) -> usize {
        1
    }
    fn all_reduce(&mut self, _values: &mut [f64]) -> Result<(), LinkError> {
        Ok(())
    }
    fn gather(
        &mut self,
        mine: &[f32],
        _counts: &[usize],
        out: &mut Vec<f32>,
    ) -> Result<(), LinkError> {
        out.clear();
        out.extend_from_slice(mine);
        Ok(())
    }
}
