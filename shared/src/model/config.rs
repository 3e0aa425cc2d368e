//! The numbers that define a transformer. Differences between architectures are data here, so that
//! the model code is written once.

use serde::{Deserialize, Serialize};
use wincode::{SchemaRead, SchemaWrite};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, SchemaRead, SchemaWrite)]
pub enum Architecture {
    /// Llama 2/3 and everything laid out like it (SmolLM2, TinyLlama).
    Llama,
}

/// Which pairs of a head's dimensions RoPE rotates together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, SchemaRead, SchemaWrite)]
pub enum RopeStyle {
    /// (0,1), (2,3), ...: GGUF `llama` files, whose Q and K rows llama.cpp's converter permuted.
    Interleaved,
    /// (0,d/2), (1,d/2+1), ...: Hugging Face's own layout.
    Halves,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, SchemaRead, SchemaWrite)]
pub struct Rope {
    pub theta: f32,
    /// Rotated dimensions of each head; `head_dim` for Llama.
    pub dims: u32,
    pub style: RopeStyle,
}

/// A transformer's shape. Every count is of the whole model, not of a rank.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, SchemaRead, SchemaWrite)]
pub struct ModelConfig {
    pub architecture: Architecture,
    pub layers: u32,
    pub hidden: u32,
    pub heads: u32,
    /// Key/value heads; `heads / kv_heads` query heads share each.
    pub kv_heads: u32,
    pub head_dim: u32,
    /// Columns of the feed-forward network.
    pub ffn: u32,
    pub vocab: u32,
    /// Longest context the model was trained for, in tokens.
    pub context: u32,
    pub rope: Rope,
    pub norm_eps: f32,
    /// The output matrix is the embedding matrix.
    pub tied_embeddings: bool,
}

impl ModelConfig {
    /// Query heads that share one key/value head.
    pub fn group(&self) -> u32 {
        self.heads / self.kv_heads
    }
}
