//! From a GGUF header's metadata to a model's settings.
//!
//! Keeps true: a key of the architecture that changes the arithmetic and that the model code does
//! not implement is refused by its name, never ignored. Keys are those of llama.cpp's conversions;
//! what they leave out is what llama.cpp has in its code.

use super::gguf::{Array, Gguf, Metadata, Value};
use super::header::shown;
use super::manifest::ManifestError;
use super::{
    Activation, Architecture, Mixture, ModelConfig, Rope, RopeDivisors, RopeScaling, RopeStyle,
    Window,
};
use crate::limits;

const ROPE_THETA_DEFAULT: f64 = 10_000.0;

/// Keys that are read, for every architecture, after its name and a dot.
const READ: [&str; 13] = [
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "vocab_size",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
    "attention.sliding_window",
];

/// LongRoPE's two lists of divisors are tensors; conversions of Phi-3 do not name its type.
pub(super) const LONG_FACTORS: &str = "rope_factors_long.weight";
pub(super) const SHORT_FACTORS: &str = "rope_factors_short.weight";

/// Keys of scaled RoPE, read where it is.
const SCALING: [&str; 6] = [
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
];

/// Keys that are read for the Gemmas.
const GEMMA: [&str; 4] = [
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "attention.sliding_window_pattern",
    "rope.freq_base_swa",
];

/// Keys of mixtures of experts.
const MIXTURE: [&str; 2] = ["expert_count", "expert_used_count"];
/// Columns of an expert, where `feed_forward_length` are not.
const EXPERT_FFN: &str = "expert_feed_forward_length";

/// Metadata under the architecture's prefix.
struct Keys<'a> {
    metadata: &'a Metadata,
    prefix: &'static str,
    has_long_factors: bool,
}

impl Keys<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.prefix)
    }

    fn count(&self, key: &str) -> Result<Option<u32>, ManifestError> {
        let key = self.key(key);
        match self.metadata.unsigned(&key)? {
            None => Ok(None),
            Some(n) => u32::try_from(n)
                .map(Some)
                .map_err(|_| self.metadata.error(format!("`{key}` is {n}: absurd"))),
        }
    }

    fn lacks(&self, key: &str) -> ManifestError {
        let key = self.key(key);
        self.metadata
            .error(format!("lacks the metadata key `{key}`"))
    }

    fn need(&self, key: &str) -> Result<u32, ManifestError> {
        self.count(key)?.ok_or_else(|| self.lacks(key))
    }

    fn float(&self, key: &str) -> Result<Option<f32>, ManifestError> {
        let found = self.metadata.float(&self.key(key))?;
        Ok(found.map(|x| x as f32))
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.metadata.get(&self.key(key))
    }

    fn refused(&self, key: &str) -> ManifestError {
        let name = self.key(key);
        let what = match self.metadata.get(&name) {
            Some(Value::String(s)) => format!("{} = {}", shown(&name), shown(s)),
            Some(Value::Unsigned(n)) => format!("{} = {n}", shown(&name)),
            Some(Value::Float(x)) => format!("{} = {x}", shown(&name)),
            Some(Value::Bool(b)) => format!("{} = {b}", shown(&name)),
            _ => shown(&name),
        };
        self.metadata.error(format!(
            "sets {what}, which this program does not implement; use a model without it"
        ))
    }
}

pub(super) fn config(gguf: &Gguf) -> Result<ModelConfig, ManifestError> {
    let metadata = &gguf.metadata;
    let (architecture, prefix) = architecture(metadata)?;
    let has = |name: &str| gguf.tensors.iter().any(|t| t.name == name);
    let keys = Keys {
        metadata,
        prefix,
        has_long_factors: has(LONG_FACTORS),
    };
    for key in metadata.keys() {
        if let Some(key) = key.strip_prefix(prefix).and_then(|k| k.strip_prefix('.')) {
            check_key(&keys, architecture, key)?;
        }
    }
    let layers = keys.need("block_count")?;
    if layers > limits::MODEL_LAYERS_MAX {
        return Err(metadata.error(format!(
            "says its layers are {layers}; 1 to {} is possible",
            limits::MODEL_LAYERS_MAX
        )));
    }
    let hidden = keys.need("embedding_length")?;
    let heads = keys.need("attention.head_count")?;
    if heads == 0 {
        return Err(metadata.error(format!("`{}` is 0", keys.key("attention.head_count"))));
    }
    let head_dim = head_dim(&keys, hidden, heads)?;
    let rope = Rope {
        theta: keys
            .float("rope.freq_base")?
            .unwrap_or(ROPE_THETA_DEFAULT as f32),
        dims: keys.count("rope.dimension_count")?.unwrap_or(head_dim),
        style: if architecture == Architecture::Llama {
            RopeStyle::Interleaved
        } else {
            RopeStyle::Halves
        },
        scaling: scaling(&keys)?,
    };
    let mixture = mixture(&keys, architecture)?;
    let ffn = keys.need(match architecture {
        Architecture::Qwen3Moe => EXPERT_FFN,
        _ => "feed_forward_length",
    })?;
    let ffn = mixture.map_or(ffn, |m| ffn.saturating_mul(m.experts));
    let is_gemma = architecture.is_gemma();
    // The largest of each Gemma has another scale, by its shape, and no key tells.
    let attention_dim = match (architecture, layers) {
        (Architecture::Gemma2, 46) | (Architecture::Gemma3, 62) => hidden as f32 / heads as f32,
        _ => head_dim as f32,
    };
    Ok(ModelConfig {
        architecture,
        layers,
        hidden,
        heads,
        kv_heads: keys.count("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        ffn,
        mixture,
        vocab: vocab(gguf, &keys)?,
        context: keys.need("context_length")?,
        rope,
        rope_divisors: if has("rope_freqs.weight") || has(LONG_FACTORS) {
            RopeDivisors::Tensor
        } else {
            RopeDivisors::None
        },
        window: window(&keys, architecture, layers, rope)?,
        norm_eps: keys
            .float("attention.layer_norm_rms_epsilon")?
            .ok_or_else(|| keys.lacks("attention.layer_norm_rms_epsilon"))?,
        // Gemma's conversions have added it.
        norm_offset: 0.0,
        embedding_scale: if is_gemma {
            (hidden as f32).sqrt()
        } else {
            1.0
        },
        attention_scale: 1.0 / attention_dim.sqrt(),
        score_cap: keys.float("attn_logit_softcapping")?,
        logit_cap: keys.float("final_logit_softcapping")?,
        activation: if is_gemma {
            Activation::GeluTanh
        } else {
            Activation::Silu
        },
        tied_embeddings: !has("output.weight"),
    })
}

fn architecture(metadata: &Metadata) -> Result<(Architecture, &'static str), ManifestError> {
    let Some(name) = metadata.string("general.architecture")? else {
        return Err(metadata.error("does not say its `general.architecture`"));
    };
    let mut all = Architecture::ALL
        .into_iter()
        .filter_map(|a| Some((a, a.gguf_name()?)));
    all.clone().find(|(_, n)| *n == name).ok_or_else(|| {
        let supported: Vec<String> = all.by_ref().map(|(_, n)| format!("`{n}`")).collect();
        metadata.error(format!(
            "is a model of architecture {}; supported are {}",
            shown(name),
            supported.join(", ")
        ))
    })
}

fn head_dim(keys: &Keys<'_>, hidden: u32, heads: u32) -> Result<u32, ManifestError> {
    let head_dim = match keys.count("attention.key_length")? {
        Some(n) => n,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            return Err(keys.metadata.error(format!(
                "hidden size {hidden} does not divide by {heads} heads, and `{}` is absent",
                keys.key("attention.key_length")
            )));
        }
    };
    match keys.count("attention.value_length")? {
        Some(value) if value != head_dim => Err(keys.metadata.error(format!(
            "`{}` is {value}, not the key length {head_dim}; that is not supported",
            keys.key("attention.value_length")
        ))),
        _ => Ok(head_dim),
    }
}

/// The mixture of those architectures that may be, or are, one.
fn mixture(keys: &Keys<'_>, architecture: Architecture) -> Result<Option<Mixture>, ManifestError> {
    let experts = match architecture {
        Architecture::Llama => keys.count("expert_count")?.filter(|n| *n > 0),
        Architecture::Qwen3Moe => Some(keys.need("expert_count")?),
        _ => None,
    };
    let Some(experts) = experts else {
        return Ok(None);
    };
    Ok(Some(Mixture {
        experts,
        used: keys.need("expert_used_count")?,
        // llama.cpp does so for both, and no key tells.
        normalised: true,
    }))
}

fn vocab(gguf: &Gguf, keys: &Keys<'_>) -> Result<u32, ManifestError> {
    let words = keys.metadata.strings("tokenizer.ggml.tokens")?;
    let embedding = gguf.tensors.iter().find(|t| t.name == "token_embd.weight");
    let rows = embedding.and_then(|t| t.dims.get(1).copied()).unwrap_or(0);
    let vocab = match keys.count("vocab_size")? {
        Some(n) => n,
        None => u32::try_from(rows).unwrap_or(u32::MAX),
    };
    match words.map(<[_]>::len) {
        Some(words) if words as u64 > u64::from(vocab) => Err(keys.metadata.error(format!(
            "has {words} tokens in its vocabulary but embeddings for {vocab}"
        ))),
        _ => Ok(vocab),
    }
}

/// The kind of scaling, unless it is none.
fn scaling_kind<'a>(keys: &'a Keys<'_>) -> Option<&'a str> {
    match keys.value("rope.scaling.type") {
        Some(Value::String(kind)) if kind != "none" => Some(kind),
        _ => keys.has_long_factors.then_some("longrope"),
    }
}

fn scaling(keys: &Keys<'_>) -> Result<RopeScaling, ManifestError> {
    let factor = keys.float("rope.scaling.factor")?;
    let attention_factor = keys.float("rope.scaling.attn_factor")?.unwrap_or(1.0);
    let original_context = match keys.count("rope.scaling.original_context_length")? {
        Some(n) => n,
        None => keys.need("context_length")?,
    };
    match scaling_kind(keys) {
        None => Ok(RopeScaling::None),
        Some("longrope") if keys.has_long_factors => match factor {
            None | Some(1.0) => Ok(RopeScaling::LongRope {
                original_context,
                attention_factor,
            }),
            _ => Err(keys.refused("rope.scaling.factor")),
        },
        Some(_) if keys.has_long_factors => Err(keys.refused("rope.scaling.type")),
        Some("linear") if attention_factor != 1.0 => Err(keys.refused("rope.scaling.attn_factor")),
        Some("linear") => Ok(RopeScaling::Linear {
            factor: factor.ok_or_else(|| keys.lacks("rope.scaling.factor"))?,
        }),
        Some("yarn") => {
            let factor = factor.ok_or_else(|| keys.lacks("rope.scaling.factor"))?;
            // How much attention is sharpened, of Peng et al. 2023, section 3.4; the key multiplies it.
            let sharpened = 0.1 * factor.max(1.0).ln() + 1.0;
            Ok(RopeScaling::Yarn {
                factor,
                beta_fast: keys.float("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
                beta_slow: keys.float("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
                original_context,
                attention_factor: sharpened * attention_factor,
            })
        }
        Some(_) => Err(keys.refused("rope.scaling.type")),
    }
}

fn window(
    keys: &Keys<'_>,
    architecture: Architecture,
    layers: u32,
    rope: Rope,
) -> Result<Option<Window>, ManifestError> {
    let Some(tokens) = keys.count("attention.sliding_window")?.filter(|n| *n > 0) else {
        return Ok(None);
    };
    const PATTERN: &str = "attention.sliding_window_pattern";
    // Every so many layers one sees everything; 0: none does.
    let nth = match architecture {
        Architecture::Gemma2 => 2,
        Architecture::Gemma3 => 6,
        _ => 0,
    };
    let every = |nth: u32| {
        (0..layers)
            .map(|n| nth == 0 || (n + 1) % nth != 0)
            .collect()
    };
    let windowed: Vec<bool> = match keys.value(PATTERN) {
        Some(Value::Array(Array::Bool(each))) => each.clone(),
        Some(_) => every(keys.need(PATTERN)?),
        None => every(nth),
    };
    let rope = match architecture {
        Architecture::Gemma3 => Rope {
            theta: keys
                .float("rope.freq_base_swa")?
                .unwrap_or(ROPE_THETA_DEFAULT as f32),
            scaling: RopeScaling::None,
            ..rope
        },
        _ => rope,
    };
    Ok(Some(Window {
        tokens,
        layers: windowed,
        rope,
    }))
}

/// Refuses a key of the architecture whose meaning the model code does not implement.
fn check_key(keys: &Keys<'_>, architecture: Architecture, key: &str) -> Result<(), ManifestError> {
    use Architecture::{Llama, Qwen2, Qwen3, Qwen3Moe};
    let has_scaling = scaling_kind(keys).is_some();
    let is_read = READ.contains(&key)
        || (SCALING.contains(&key) && has_scaling)
        || (GEMMA.contains(&key) && architecture.is_gemma())
        || (MIXTURE.contains(&key) && matches!(architecture, Llama | Qwen3Moe))
        || (key == EXPERT_FFN && architecture == Qwen3Moe);
    let harmless = match (key, keys.value(key)) {
        ("attention.sliding_window", Some(Value::Unsigned(n)))
            if matches!(architecture, Qwen2 | Qwen3 | Qwen3Moe) =>
        {
            *n == 0
        }
        _ if is_read => true,
        // Known to change nothing in a file whose tensors passed the checks.
        ("tensor_data_layout" | "attention.layer_norm_epsilon", _) => true,
        ("rope.scaling.type", Some(Value::String(s))) => s == "none",
        // Says how the model was made.
        ("rope.scaling.finetuned", Some(Value::Bool(_))) => true,
        (r, Some(Value::Float(x))) if r.starts_with("rope.scal") || r.ends_with("scale") => {
            *x == 1.0
        }
        (r, Some(Value::Unsigned(n))) if r.starts_with("expert_") => *n == 0,
        ("rope.scaling.original_context_length", Some(Value::Unsigned(n))) => {
            keys.count("context_length")?.map(u64::from) == Some(*n)
        }
        ("attention.causal", Some(Value::Bool(b))) => *b,
        ("use_parallel_residual", Some(Value::Bool(b))) => !b,
        _ => false,
    };
    if harmless {
        return Ok(());
    }
    Err(keys.refused(key))
}
