//! What a model is, without its weights: configuration, the index of its tensors in files, and the
//! arithmetic of splitting it. Pure but for reading headers (and `random`, which writes models for
//! tests and benches).

pub mod blocks;
pub mod byte_level;
pub mod config;
pub mod dtype;
pub mod gguf;
mod gguf_config;
mod gguf_model;
mod header;
pub(crate) mod hf;
mod hf_config;
pub mod manifest;
#[cfg(test)]
mod mixture_tests;
pub mod partition;
mod precision;
pub mod random;
mod roles;
pub mod safetensors;

pub use config::{
    Activation, Architecture, Mixture, ModelConfig, Rope, RopeDivisors, RopeScaling, RopeStyle,
    Window,
};
pub use dtype::DType;
pub use manifest::{Manifest, ManifestError, TensorEntry};
pub use partition::{RankShare, Span};
pub use precision::{ActivationFormat, KvFormat, Precision, Quantize};
pub use roles::{Expert, TensorRole, layer_shapes};
