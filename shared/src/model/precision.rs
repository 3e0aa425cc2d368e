//! How a rank keeps the numbers of a model: as its files have them, or in fewer bits, as a deployment asks.

use super::manifest::TensorEntry;
use super::{DType, TensorRole};
use crate::limits::PAGE_TOKENS;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use wincode::{SchemaRead, SchemaWrite};

/// What a deployment says of it.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Serialize,
    Deserialize,
    ToSchema,
    SchemaRead,
    SchemaWrite,
)]
#[serde(default, deny_unknown_fields)]
pub struct Precision {
    /// Matrices of floats become blocks of so many bits as they are loaded; without it, and of types that are
    /// quantised in the files, they stay as they are.
    pub quantize: Option<Quantize>,
    pub activations: ActivationFormat,
    pub kv: KvFormat,
}

impl Precision {
    /// What differs from the default: a setting's name and its value, as one writes them.
    pub fn settings(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let quantize = self.quantize.map(|q| ("quantize", q.name()));
        let (activations, kv) = (self.activations, self.kv);
        let activations = (activations != ActivationFormat::default())
            .then_some(("activations", activations.name()));
        let kv = (kv != KvFormat::default()).then_some(("kv", kv.name()));
        quantize.into_iter().chain(activations).chain(kv)
    }
}

/// How activations are rounded before quantised weights multiply them.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Serialize,
    Deserialize,
    ToSchema,
    SchemaRead,
    SchemaWrite,
)]
#[serde(rename_all = "lowercase")]
pub enum ActivationFormat {
    /// To 64,769 steps, blocks of 32 with a scale each: next to nothing is lost.
    #[default]
    Int16,
    /// To 255 steps, as llama.cpp does: half the products.
    Int8,
    /// To eight bits of fraction each, and the weights that they meet, too: what a unit multiplies that
    /// has tiles of bf16. Elsewhere the same numbers, slowly.
    Bf16,
}

impl ActivationFormat {
    pub fn name(self) -> &'static str {
        match self {
            Self::Int16 => "int16",
            Self::Int8 => "int8",
            Self::Bf16 => "bf16",
        }
    }
}

/// How the KV cache holds keys and values.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Serialize,
    Deserialize,
    ToSchema,
    SchemaRead,
    SchemaWrite,
)]
#[serde(rename_all = "lowercase")]
pub enum KvFormat {
    /// Two bytes a number; as bf16 where activations are bf16 and the processor multiplies tiles of them.
    #[default]
    F16,
    /// Bytes, with an f32 that scales a token's key of one head, and one for its value.
    Int8,
}

impl KvFormat {
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Int8 => "int8",
        }
    }

    /// Bytes of one token's key and value of one head.
    pub fn token_bytes(self, head_dim: u32) -> u64 {
        const KEY_AND_VALUE: u64 = 2;
        let dim = u64::from(head_dim);
        KEY_AND_VALUE
            * match self {
                Self::F16 => 2 * dim,
                Self::Int8 => dim + 4,
            }
    }

    /// Bytes of one page of so many layers and KV heads.
    pub fn page_bytes(self, head_dim: u32, layers: u32, heads: u32) -> u64 {
        PAGE_TOKENS as u64 * u64::from(layers) * u64::from(heads) * self.token_bytes(head_dim)
    }
}

/// Bits of a weight that is quantised as it is loaded, in blocks of 32 columns.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, SchemaRead, SchemaWrite,
)]
#[serde(rename_all = "lowercase")]
pub enum Quantize {
    /// `Q8_0`: a scale and 32 bytes, 8.5 bits a weight.
    Q8,
    /// `Q4_1`: a scale, a minimum and 32 nibbles, 5 bits a weight; embedding and output as `Q8`.
    Q4,
}

impl Quantize {
    pub fn name(self) -> &'static str {
        match self {
            Self::Q8 => "q8",
            Self::Q4 => "q4",
        }
    }

    /// What a tensor is packed as. Vectors, what has no whole blocks of columns and what is quantised in the file
    /// stay as they are.
    ///
    /// Of four bits `Q4_1` and not `Q4_0`, which takes a tenth less memory and is further off. The embedding and the
    /// output matrix keep eight: every token goes through both, and what the output is off by no later layer
    /// mends.
    pub(super) fn packed(self, role: TensorRole, tensor: &TensorEntry) -> DType {
        use TensorRole::{Embedding, Output};
        let blocks = match (self, role) {
            (Self::Q8, _) | (Self::Q4, Embedding | Output) => DType::Q8_0,
            (Self::Q4, _) => DType::Q4_1,
        };
        let whole = tensor
            .columns
            .is_multiple_of(blocks.block_elements() as u64);
        match role.is_matrix() && tensor.dtype.is_float() && whole {
            true => blocks,
            false => tensor.dtype,
        }
    }
}
