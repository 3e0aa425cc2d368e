//! Activations from a stage to the next: rank r of stage s to rank r of stage s + 1.
//!
//! Kept true: a hidden state is taken only for the step it was computed in.

use super::LinkError;
use super::frame::{FramedLink, Kind, as_bytes, as_bytes_mut};

/// The end in the earlier stage.
pub struct StageSender(FramedLink);

/// The end in the later stage.
pub struct StageReceiver(FramedLink);

impl StageSender {
    pub fn new(link: FramedLink) -> Self {
        Self(link)
    }

    /// Hands over `rows x hidden` activations of `step`. Waits while the next stage is behind.
    pub fn send_hidden(&mut self, step: u64, values: &[f32]) -> Result<(), LinkError> {
        self.0.send(Kind::Hidden, step, as_bytes(values))
    }
}

impl StageReceiver {
    pub fn new(link: FramedLink) -> Self {
        Self(link)
    }

    /// Fills `values` with the activations of `step`; another step or size is an error.
    pub fn recv_hidden(&mut self, step: u64, values: &mut [f32]) -> Result<(), LinkError> {
        self.0
            .receive_into(Kind::Hidden, step, as_bytes_mut(values))
    }
}
