//! What a model is, without its weights: configuration, the index of its tensors in files, and the
//! arithmetic of splitting it. Pure but for reading headers.

pub mod config;
pub mod dtype;
pub mod manifest;
pub mod partition;

pub use config::{Architecture, ModelConfig, Rope, RopeStyle};
pub use dtype::DType;
pub use manifest::{Manifest, TensorEntry, TensorRole};
pub use partition::{RankShare, Span};
