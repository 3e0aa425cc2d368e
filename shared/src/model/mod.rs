//! What a model is, without its weights: configuration, the index of its tensors in files, and the
//! arithmetic of splitting it. Pure but for reading headers (and `random`, which writes models for
//! tests and benches).

pub mod blocks;
pub mod byte_level;
pub mod config;
pub mod dtype;
pub mod gguf;
mod gguf_llama;
mod header;
pub(crate) mod hf;
pub mod manifest;
pub mod partition;
pub mod random;
pub mod safetensors;

pub use config::{Architecture, ModelConfig, Rope, RopeStyle};
pub use dtype::DType;
pub use manifest::{Manifest, ManifestError, TensorEntry, TensorRole};
pub use partition::{RankShare, Span};
