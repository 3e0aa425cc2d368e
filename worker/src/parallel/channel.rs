//! One-way byte channels of a replica: step plans from the driver to every rank, sampled tokens
//! from the last stage to the driver. What the bytes mean is the engine's affair.
//!
//! Kept true: a receiver may wait for hours without using a core, and still ends at a close (or the
//! death) of the sender or at an abort.

use super::LinkError;
use super::frame::{FramedLink, Kind};

/// The driver's end of the plan link to one rank.
pub struct PlanSender(FramedLink);

/// A rank's end of its plan link.
pub struct PlanReceiver(FramedLink);

/// The last stage's end (its rank 0) of the sampled-token link.
pub struct SampledSender(FramedLink);

/// The driver's end of the sampled-token link; may be used from a thread of its own.
pub struct SampledReceiver(FramedLink);

impl PlanSender {
    pub fn new(link: FramedLink) -> Self {
        Self(link)
    }

    /// The index in the plan of the rank this leads to.
    pub fn peer(&self) -> usize {
        self.0.peer()
    }

    pub fn send(&mut self, plan: &[u8]) -> Result<(), LinkError> {
        self.0.send(Kind::Plan, 0, plan)
    }
}

impl PlanReceiver {
    pub fn new(link: FramedLink) -> Self {
        Self(link)
    }

    /// The next plan. Waits without a deadline, parked.
    pub fn recv(&mut self) -> Result<Vec<u8>, LinkError> {
        self.0.receive_idle(Kind::Plan)
    }
}

impl SampledSender {
    pub fn new(link: FramedLink) -> Self {
        Self(link)
    }

    pub fn send(&mut self, sampled: &[u8]) -> Result<(), LinkError> {
        self.0.send(Kind::Sampled, 0, sampled)
    }
}

impl SampledReceiver {
    pub fn new(link: FramedLink) -> Self {
        Self(link)
    }

    /// The next frame, of a step that is under way: a last stage that hangs is an error.
    pub fn recv(&mut self) -> Result<Vec<u8>, LinkError> {
        self.0.receive(Kind::Sampled)
    }
}
