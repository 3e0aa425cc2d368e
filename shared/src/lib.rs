//! What every Trireme process agrees on: identifiers, limits, wire messages, the encrypted
//! transport and its identities, the description of a model, and where a model comes from.
//!
//! This crate imports neither `coordinator` nor `worker`; both import it.

pub mod api;
pub mod identity;
pub mod ids;
pub mod limits;
pub mod model;
pub mod money;
pub mod plan;
pub mod source;
pub mod telemetry;
#[cfg(test)]
mod test_folder;
pub mod transport;
pub mod wall_clock;
pub mod wire;
