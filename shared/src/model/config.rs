//! The numbers that define a transformer. Differences between architectures are data here, so that
//! the model code is written once.

use super::Span;
use serde::Serialize;

/// Whose layout of settings and tensors a model has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Architecture {
    /// Llama 2/3 and everything laid out like it (SmolLM2, TinyLlama; Mistral as GGUF).
    Llama,
    Mistral,
    /// Mistral with a mixture of experts; as GGUF, Llama with one.
    Mixtral,
    /// Qwen 2 and 2.5.
    Qwen2,
    Qwen3,
    Qwen3Moe,
    /// Phi-3 and what is laid out like it (Phi-4).
    Phi3,
    Gemma2,
    /// The text model only.
    Gemma3,
}

impl Architecture {
    pub const ALL: [Self; 9] = [
        Self::Llama,
        Self::Mistral,
        Self::Mixtral,
        Self::Qwen2,
        Self::Qwen3,
        Self::Qwen3Moe,
        Self::Phi3,
        Self::Gemma2,
        Self::Gemma3,
    ];

    /// transformers' class and `model_type`.
    pub fn hf_names(self) -> (&'static str, &'static str) {
        match self {
            Self::Llama => ("LlamaForCausalLM", "llama"),
            Self::Mistral => ("MistralForCausalLM", "mistral"),
            Self::Mixtral => ("MixtralForCausalLM", "mixtral"),
            Self::Qwen2 => ("Qwen2ForCausalLM", "qwen2"),
            Self::Qwen3 => ("Qwen3ForCausalLM", "qwen3"),
            Self::Qwen3Moe => ("Qwen3MoeForCausalLM", "qwen3_moe"),
            Self::Phi3 => ("Phi3ForCausalLM", "phi3"),
            Self::Gemma2 => ("Gemma2ForCausalLM", "gemma2"),
            Self::Gemma3 => ("Gemma3ForCausalLM", "gemma3_text"),
        }
    }

    /// llama.cpp's name, which is also the prefix of its metadata keys. None where it converts
    /// such models to another architecture's files.
    pub fn gguf_name(self) -> Option<&'static str> {
        match self {
            Self::Llama => Some("llama"),
            Self::Mistral | Self::Mixtral => None,
            Self::Qwen2 => Some("qwen2"),
            Self::Qwen3 => Some("qwen3"),
            Self::Qwen3Moe => Some("qwen3moe"),
            Self::Phi3 => Some("phi3"),
            Self::Gemma2 => Some("gemma2"),
            Self::Gemma3 => Some("gemma3"),
        }
    }

    /// Both Gemmas: norms after attention and FFN too, a scaled embedding, GELU.
    pub fn is_gemma(self) -> bool {
        matches!(self, Self::Gemma2 | Self::Gemma3)
    }

    /// Q, K and V have biases.
    pub fn has_qkv_bias(self) -> bool {
        self == Self::Qwen2
    }

    /// Each head of Q and K is normalised before it is rotated.
    pub fn has_head_norms(self) -> bool {
        matches!(self, Self::Qwen3 | Self::Qwen3Moe | Self::Gemma3)
    }
}

/// Which pairs of a head's dimensions RoPE rotates together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum RopeStyle {
    /// (0,1), (2,3), ...: GGUF `llama` files, whose Q and K rows llama.cpp's converter permuted.
    Interleaved,
    /// (0,d/2), (1,d/2+1), ...: Hugging Face's own layout, and every other GGUF.
    Halves,
}

/// How RoPE's frequencies are changed, so that a model reaches beyond the context it was first
/// trained for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum RopeScaling {
    None,
    /// Every frequency is divided (Chen et al. 2023, "Extending Context Window of Large Language
    /// Models via Positional Interpolation").
    Linear {
        factor: f32,
    },
    /// Low frequencies are divided, high ones kept, those between blended (Llama 3.1's).
    Llama3 {
        factor: f32,
        low_freq_factor: f32,
        high_freq_factor: f32,
        /// Tokens.
        original_context: u32,
    },
    /// Blended by the turns a pair makes in the original context (Peng et al. 2023, "YaRN").
    Yarn {
        factor: f32,
        beta_fast: f32,
        beta_slow: f32,
        /// Tokens.
        original_context: u32,
        /// What rotated queries and keys are multiplied by.
        attention_factor: f32,
    },
    /// Each is divided by a factor of its own, out of one of two lists (Ding et al. 2024,
    /// "LongRoPE"): see [`RopeScaling::is_long`].
    LongRope {
        /// Tokens.
        original_context: u32,
        /// What rotated queries and keys are multiplied by.
        attention_factor: f32,
    },
}

impl RopeScaling {
    /// Of LongRoPE, whether a model of this context uses the list of long factors, and not that of
    /// short ones.
    ///
    /// It is the model's own context that decides, once for all texts: long if it is beyond the
    /// original one. transformers changes lists when a text grows beyond it, but a key that is
    /// cached, or shared as a prefix, must not depend on what comes after it. A plan's context does
    /// not decide either: replicas may differ in it, and a stream goes on with another's. Who
    /// serves short texts only gets the short factors by lowering the context in config.json.
    pub fn is_long(self, context: u32) -> Option<bool> {
        match self {
            Self::LongRope {
                original_context, ..
            } => Some(context > original_context),
            _ => None,
        }
    }
}

/// Divisors of each of RoPE's frequencies, `rope.dims / 2` of them.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RopeDivisors {
    None,
    /// The file has a tensor of them.
    Tensor,
    /// The settings list them.
    Given(Vec<f32>),
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Rope {
    pub theta: f32,
    /// Rotated dimensions of each head, from its first on; `head_dim` for most models.
    pub dims: u32,
    pub style: RopeStyle,
    pub scaling: RopeScaling,
}

/// Layers that see only the last tokens.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Window {
    /// Tokens a query sees, its own included.
    pub tokens: u32,
    /// Of each layer of the model, whether it is such a one.
    pub layers: Vec<bool>,
    /// Their RoPE: Gemma 3 has another for them.
    pub rope: Rope,
}

/// What the gate of the FFN goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// x / (1 + e^-x)
    Silu,
    /// GELU in its tanh form (Hendrycks and Gimpel 2016).
    GeluTanh,
}

/// A feed-forward network that is a mixture of experts: many small ones, of which each token goes
/// through a few (Shazeer et al. 2017, "Outrageously Large Neural Networks").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Mixture {
    /// Experts of a layer.
    pub experts: u32,
    /// Of which each token goes through so many: those with the largest softmax of the router.
    pub used: u32,
    /// Theirs are then divided by their sum.
    pub normalised: bool,
}

/// A transformer's shape. Every count is of the whole model, not of a rank.
///
/// Made anew from the model's files by every process that needs it, and never sent or stored: its
/// fields may change with any release.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelConfig {
    pub architecture: Architecture,
    pub layers: u32,
    pub hidden: u32,
    pub heads: u32,
    /// Key/value heads; `heads / kv_heads` query heads share each.
    pub kv_heads: u32,
    pub head_dim: u32,
    /// Columns of the feed-forward network; of a mixture, of all its experts.
    pub ffn: u32,
    pub mixture: Option<Mixture>,
    pub vocab: u32,
    /// Longest context the model was trained for, in tokens.
    pub context: u32,
    /// RoPE of the layers that see everything.
    pub rope: Rope,
    /// Of `rope`'s frequencies.
    pub rope_divisors: RopeDivisors,
    pub window: Option<Window>,
    pub norm_eps: f32,
    /// Added to the norms' weights as the files have them: 1 for Gemma's safetensors.
    pub norm_offset: f32,
    /// What an embedding is multiplied by.
    pub embedding_scale: f32,
    /// What the product of a query and a key is multiplied by.
    pub attention_scale: f32,
    /// Soft caps c, applied as c * tanh(x / c): of the scores before the softmax, of the logits.
    pub score_cap: Option<f32>,
    pub logit_cap: Option<f32>,
    pub activation: Activation,
    /// The output matrix is the embedding matrix.
    pub tied_embeddings: bool,
}

impl ModelConfig {
    /// Query heads that share one key/value head.
    pub fn group(&self) -> u32 {
        self.heads / self.kv_heads
    }

    /// Columns of one expert of a mixture.
    pub fn expert_ffn(&self) -> Option<u32> {
        let mixture = self.mixture?;
        Some(self.ffn / mixture.experts.max(1))
    }

    /// The experts whose columns are `ffn`, which cuts none; none if this is no mixture.
    pub fn experts_in(&self, ffn: Span) -> Span {
        let columns = self.expert_ffn().filter(|n| *n > 0);
        columns.map_or(Span::default(), |n| Span::new(ffn.start / n, ffn.end / n))
    }

    /// Whether `layer` sees only the last tokens.
    pub fn is_windowed(&self, layer: u32) -> bool {
        let layers = self.window.as_ref().map(|w| &w.layers);
        layers.is_some_and(|l| l.get(layer as usize).copied().unwrap_or(false))
    }
}
