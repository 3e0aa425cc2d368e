//! From a Hugging Face folder's config.json to a model's settings.
//!
//! Keeps true: a setting that changes the arithmetic and that the model code does not implement is
//! refused by its name. Names and defaults are those of transformers' configuration classes (4.53;
//! `rope_parameters` is where version 5 keeps what was in several places).

use super::header::shown;
use super::{
    Activation, Architecture, Mixture, ModelConfig, Rope, RopeDivisors, RopeScaling, RopeStyle,
    Window,
};
use crate::limits;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// The settings of all architectures; those that transformers saves always have no default here.
#[derive(Deserialize)]
pub(super) struct Config {
    #[serde(default)]
    architectures: Vec<String>,
    model_type: Option<String>,
    hidden_size: u32,
    num_hidden_layers: u32,
    num_attention_heads: u32,
    num_key_value_heads: Option<u32>,
    head_dim: Option<u32>,
    intermediate_size: u32,
    moe_intermediate_size: Option<u32>,
    num_experts: Option<u32>,
    num_local_experts: Option<u32>,
    num_experts_per_tok: Option<u32>,
    norm_topk_prob: Option<bool>,
    decoder_sparse_step: Option<u32>,
    mlp_only_layers: Option<Vec<u32>>,
    vocab_size: u32,
    max_position_embeddings: u32,
    original_max_position_embeddings: Option<u32>,
    rms_norm_eps: f32,
    rope_theta: Option<f32>,
    rope_local_base_freq: Option<f32>,
    tie_word_embeddings: Option<bool>,
    hidden_act: Option<String>,
    hidden_activation: Option<String>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    use_bidirectional_attention: Option<bool>,
    rope_interleaved: Option<bool>,
    partial_rotary_factor: Option<f32>,
    #[serde(default)]
    rope_scaling: Value,
    #[serde(default)]
    rope_parameters: Value,
    #[serde(default)]
    quantization_config: Value,
    #[serde(default, deserialize_with = "given")]
    sliding_window: Option<Option<u32>>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<u32>,
    sliding_window_pattern: Option<u32>,
    layer_types: Option<Vec<String>>,
    query_pre_attn_scalar: Option<f32>,
    #[serde(default, deserialize_with = "given")]
    attn_logit_softcapping: Option<Option<f32>>,
    #[serde(default, deserialize_with = "given")]
    final_logit_softcapping: Option<Option<f32>>,
}

/// Tells a setting that is null (`Some(None)`) from one that is absent.
fn given<'de, D, T>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Some)
}

fn refused<T>(setting: impl std::fmt::Display) -> Result<T, String> {
    Err(format!(
        "sets {setting}, which this program does not implement; use a model without it"
    ))
}

/// # Errors
/// Says in words, to be put after the file's name, what is not supported or makes no sense.
pub(super) fn model_config(config: Config) -> Result<ModelConfig, String> {
    let architecture = architecture(&config)?;
    refuse_settings(&config, architecture)?;
    let activation = activation(&config, architecture)?;
    if config.num_attention_heads == 0 {
        return Err("says `num_attention_heads` is 0".into());
    }
    if config.num_hidden_layers > limits::MODEL_LAYERS_MAX {
        return Err(format!(
            "says its layers are {}; 1 to {} is possible",
            config.num_hidden_layers,
            limits::MODEL_LAYERS_MAX
        ));
    }
    let head_dim = head_dim(&config, architecture)?;
    let (rope, local_rope) = ropes(&config, architecture, head_dim)?;
    let window = window(&config, architecture, local_rope)?;
    let (mixture, ffn) = mixture(&config, architecture);
    let is_gemma = architecture.is_gemma();
    let attention_dim = match config.query_pre_attn_scalar {
        Some(scalar) if is_gemma => scalar,
        None if is_gemma => 256.0,
        _ => head_dim as f32,
    };
    // Only Gemma 2 has caps unless it says otherwise.
    let cap = |given: Option<Option<f32>>, default: f32| match given {
        Some(cap) if is_gemma => cap,
        None if architecture == Architecture::Gemma2 => Some(default),
        _ => None,
    };
    Ok(ModelConfig {
        architecture,
        layers: config.num_hidden_layers,
        hidden: config.hidden_size,
        heads: config.num_attention_heads,
        kv_heads: config
            .num_key_value_heads
            .unwrap_or(config.num_attention_heads),
        head_dim,
        ffn,
        mixture,
        vocab: config.vocab_size,
        context: config.max_position_embeddings,
        rope,
        rope_divisors: rope_divisors(&config, rope)?,
        window,
        norm_eps: config.rms_norm_eps,
        norm_offset: if is_gemma { 1.0 } else { 0.0 },
        embedding_scale: if is_gemma {
            (config.hidden_size as f32).sqrt()
        } else {
            1.0
        },
        attention_scale: 1.0 / attention_dim.sqrt(),
        score_cap: cap(config.attn_logit_softcapping, 50.0),
        logit_cap: cap(config.final_logit_softcapping, 30.0),
        activation,
        // transformers leaves out what is its general default: tied.
        tied_embeddings: config.tie_word_embeddings.unwrap_or(is_gemma),
    })
}

fn architecture(config: &Config) -> Result<Architecture, String> {
    let class = config.architectures.first();
    let found = Architecture::ALL.into_iter().find(|a| {
        let (name, model_type) = a.hf_names();
        match class {
            Some(class) => class == name,
            None => config.model_type.as_deref() == Some(model_type),
        }
    });
    found.ok_or_else(|| {
        let name = class.or(config.model_type.as_ref());
        let supported = Architecture::ALL.map(|a| format!("`{}`", a.hf_names().0));
        format!(
            "is a model of architecture {}; supported are {}",
            name.map_or("(none given)".into(), |n| shown(n)),
            supported.join(", ")
        )
    })
}

fn refuse_settings(config: &Config, architecture: Architecture) -> Result<(), String> {
    let is_set = |flag: Option<bool>| flag == Some(true);
    let has_window = matches!(config.sliding_window, Some(Some(_)));
    let step = config.decoder_sparse_step;
    let dense_layers = config.mlp_only_layers.as_ref();
    let has_caps = matches!(config.attn_logit_softcapping, Some(Some(_)))
        || matches!(config.final_logit_softcapping, Some(Some(_)));
    for (name, set) in [
        ("attention_bias", is_set(config.attention_bias)),
        ("mlp_bias", is_set(config.mlp_bias)),
        (
            "use_bidirectional_attention",
            is_set(config.use_bidirectional_attention),
        ),
        ("rope_interleaved", is_set(config.rope_interleaved)),
        ("decoder_sparse_step", step.is_some_and(|n| n != 1)),
        (
            "mlp_only_layers",
            dense_layers.is_some_and(|layers| !layers.is_empty()),
        ),
        ("quantization_config", !config.quantization_config.is_null()),
        (
            "sliding_window",
            has_window && architecture == Architecture::Llama,
        ),
        (
            "attn_logit_softcapping` or `final_logit_softcapping",
            has_caps && !architecture.is_gemma(),
        ),
    ] {
        if set {
            return refused(format!("`{name}`"));
        }
    }
    Ok(())
}

/// The mixture, if the architecture is one, and the columns of the FFN.
fn mixture(config: &Config, architecture: Architecture) -> (Option<Mixture>, u32) {
    let used = config.num_experts_per_tok;
    let (mixture, columns) = match architecture {
        Architecture::Mixtral => {
            let mixture = Mixture {
                experts: config.num_local_experts.unwrap_or(8),
                used: used.unwrap_or(2),
                normalised: true,
            };
            (mixture, config.intermediate_size)
        }
        Architecture::Qwen3Moe => {
            let mixture = Mixture {
                experts: config.num_experts.unwrap_or(128),
                used: used.unwrap_or(8),
                normalised: config.norm_topk_prob.unwrap_or(false),
            };
            (mixture, config.moe_intermediate_size.unwrap_or(768))
        }
        _ => return (None, config.intermediate_size),
    };
    (Some(mixture), columns.saturating_mul(mixture.experts))
}

fn activation(config: &Config, architecture: Architecture) -> Result<Activation, String> {
    let (name, set, known, activation) = if architecture.is_gemma() {
        // `hidden_act` of older files says `gelu` where this one is meant; transformers ignores it.
        let known = "gelu_pytorch_tanh";
        let set = &config.hidden_activation;
        ("hidden_activation", set, known, Activation::GeluTanh)
    } else {
        ("hidden_act", &config.hidden_act, "silu", Activation::Silu)
    };
    match set.as_deref() {
        Some(other) if other != known => refused(format!("`{name}` to {}", shown(other))),
        _ => Ok(activation),
    }
}

fn head_dim(config: &Config, architecture: Architecture) -> Result<u32, String> {
    let (hidden, heads) = (config.hidden_size, config.num_attention_heads);
    match (config.head_dim, architecture) {
        (Some(n), _) => Ok(n),
        (None, Architecture::Qwen3) => Ok(128),
        (None, Architecture::Gemma2 | Architecture::Gemma3) => Ok(256),
        _ if hidden.is_multiple_of(heads) => Ok(hidden / heads),
        _ => Err("has a hidden size its heads do not divide, and no `head_dim`".into()),
    }
}

/// RoPE of the layers that see everything, and of the others.
fn ropes(
    config: &Config,
    architecture: Architecture,
    head_dim: u32,
) -> Result<(Rope, Rope), String> {
    let (mut full, mut local) = (&config.rope_parameters, &config.rope_parameters);
    if architecture == Architecture::Gemma3 && full.get("full_attention").is_some() {
        full = &config.rope_parameters["full_attention"];
        local = &config.rope_parameters["sliding_attention"];
    }
    let theta_of = |parameters: &Value| {
        let theta = parameters.get("rope_theta").and_then(Value::as_f64);
        theta.map(|t| t as f32)
    };
    let part_of = |parameters: &Value| {
        let part = parameters
            .get("partial_rotary_factor")
            .and_then(Value::as_f64);
        part.map(|p| p as f32)
    };
    let part = config.partial_rotary_factor.or(part_of(full));
    let dims = match part {
        None => head_dim,
        Some(1.0) => head_dim,
        // As transformers cuts it.
        Some(part) if architecture == Architecture::Phi3 => (head_dim as f32 * part) as u32,
        Some(part) => return refused(format!("`partial_rotary_factor` to {part}")),
    };
    let theta_default = match architecture {
        Architecture::Gemma3 | Architecture::Mixtral => 1_000_000.0,
        _ => 10_000.0,
    };
    let mut scaling = RopeScaling::None;
    for (name, value) in [
        ("rope_scaling", &config.rope_scaling),
        ("rope_parameters", full),
    ] {
        match self::scaling(name, value, config, architecture)? {
            RopeScaling::None => {}
            found => scaling = found,
        }
    }
    let rope = Rope {
        theta: config
            .rope_theta
            .or(theta_of(full))
            .unwrap_or(theta_default),
        dims,
        style: RopeStyle::Halves,
        scaling,
    };
    if architecture != Architecture::Gemma3 {
        return Ok((rope, rope));
    }
    let local_theta = config.rope_local_base_freq.or_else(|| {
        let own = local != full;
        own.then(|| theta_of(local)).flatten()
    });
    let local_scaling = if local == full {
        RopeScaling::None
    } else {
        self::scaling("rope_parameters", local, config, architecture)?
    };
    let local = Rope {
        theta: local_theta.unwrap_or(10_000.0),
        scaling: local_scaling,
        ..rope
    };
    Ok((rope, local))
}

/// What a `rope_scaling` or `rope_parameters` says.
fn scaling(
    name: &str,
    value: &Value,
    config: &Config,
    architecture: Architecture,
) -> Result<RopeScaling, String> {
    const KNOWN: [&str; 16] = [
        "type",
        "rope_type",
        "rope_theta",
        "partial_rotary_factor",
        "factor",
        "original_max_position_embeddings",
        "low_freq_factor",
        "high_freq_factor",
        "beta_fast",
        "beta_slow",
        "attention_factor",
        "mscale",
        "mscale_all_dim",
        "truncate",
        "short_factor",
        "long_factor",
    ];
    if value.is_null() {
        return Ok(RopeScaling::None);
    }
    let kind = match value.get("rope_type").or_else(|| value.get("type")) {
        Some(Value::String(kind)) => kind.as_str(),
        None if value.is_object() && value.get("factor").is_none() => "default",
        _ => return refused(format!("`{name}` without a type")),
    };
    let is_known = match kind {
        // The second is its older name.
        "default" | "longrope" | "su" => true,
        "linear" | "llama3" | "yarn" => architecture != Architecture::Phi3,
        _ => false,
    };
    if !is_known {
        return refused(format!("`{name}` of type {}", shown(kind)));
    }
    let unknown = value
        .as_object()
        .and_then(|o| o.keys().find(|k| !KNOWN.contains(&k.as_str())));
    if let Some(key) = unknown {
        return refused(format!("{} in `{name}`", shown(key)));
    }
    let number = |key: &str| match value.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(n) => match n.as_f64() {
            Some(n) => Ok(Some(n as f32)),
            None => Err(format!("has a `{key}` in `{name}` that is no number")),
        },
    };
    let need = |key: &str| {
        number(key)?
            .ok_or_else(|| format!("has a `{name}` of type {} without `{key}`", shown(kind)))
    };
    let original = number("original_max_position_embeddings")?.map(|n| n as u32);
    match kind {
        "linear" => Ok(RopeScaling::Linear {
            factor: need("factor")?,
        }),
        "llama3" => Ok(RopeScaling::Llama3 {
            factor: need("factor")?,
            low_freq_factor: need("low_freq_factor")?,
            high_freq_factor: need("high_freq_factor")?,
            original_context: need("original_max_position_embeddings")? as u32,
        }),
        "yarn" => {
            if value
                .get("truncate")
                .is_some_and(|t| t != &Value::Bool(true))
            {
                return refused(format!("`truncate` in `{name}`"));
            }
            let factor = need("factor")?;
            // How much attention is sharpened, of Peng et al. 2023, section 3.4.
            let sharpened = |by: f32| {
                if factor > 1.0 {
                    0.1 * by * factor.ln() + 1.0
                } else {
                    1.0
                }
            };
            let of_two = match (number("mscale")?, number("mscale_all_dim")?) {
                (Some(a), Some(b)) if a != 0.0 && b != 0.0 => sharpened(a) / sharpened(b),
                _ => sharpened(1.0),
            };
            Ok(RopeScaling::Yarn {
                factor,
                beta_fast: number("beta_fast")?.unwrap_or(32.0),
                beta_slow: number("beta_slow")?.unwrap_or(1.0),
                original_context: original.unwrap_or(config.max_position_embeddings),
                attention_factor: number("attention_factor")?.unwrap_or(of_two),
            })
        }
        "longrope" | "su" => {
            // What transformers' Phi3Config has where a file leaves it out.
            let default = (architecture == Architecture::Phi3).then_some(4_096);
            let own = config.original_max_position_embeddings;
            let Some(original_context) = own.or(original).or(default) else {
                need("original_max_position_embeddings")?;
                return Ok(RopeScaling::None);
            };
            let times = f64::from(config.max_position_embeddings) / f64::from(original_context);
            if let Some(factor) = number("factor")?
                && factor != times as f32
            {
                return refused(format!(
                    "`factor` in `{name}` to {factor} where the contexts make it {times}"
                ));
            }
            // Ding et al. 2024, section 4.
            let spread = if times > 1.0 {
                (1.0 + times.ln() / f64::from(original_context).ln()).sqrt()
            } else {
                1.0
            };
            Ok(RopeScaling::LongRope {
                original_context,
                attention_factor: number("attention_factor")?.unwrap_or(spread as f32),
            })
        }
        _ => Ok(RopeScaling::None),
    }
}

/// LongRoPE's divisors, as the settings list them.
fn rope_divisors(config: &Config, rope: Rope) -> Result<RopeDivisors, String> {
    let name = match rope.scaling.is_long(config.max_position_embeddings) {
        None => return Ok(RopeDivisors::None),
        Some(true) => "long_factor",
        Some(false) => "short_factor",
    };
    let settings = [&config.rope_scaling, &config.rope_parameters];
    let list = settings.iter().find_map(|s| s.get(name)?.as_array());
    let numbers = list.into_iter().flatten().map(|n| n.as_f64());
    let numbers = numbers.map(|n| n.map(|n| n as f32).filter(|n| n.is_finite() && *n > 0.0));
    match numbers.collect::<Option<Vec<f32>>>() {
        Some(factors) if factors.len() == rope.dims as usize / 2 => {
            Ok(RopeDivisors::Given(factors))
        }
        _ => Err(format!(
            "must list {} positive numbers as RoPE's `{name}`",
            rope.dims / 2
        )),
    }
}

/// Which layers see how much.
fn window(
    config: &Config,
    architecture: Architecture,
    rope: Rope,
) -> Result<Option<Window>, String> {
    use Architecture::*;
    let count = config.num_hidden_layers;
    let tokens = match (architecture, config.sliding_window) {
        (Llama, _) => None,
        (Qwen2 | Qwen3 | Qwen3Moe, _) if config.use_sliding_window != Some(true) => None,
        (_, Some(tokens)) => tokens,
        (Phi3 | Mixtral, None) => None,
        (_, None) => Some(4_096),
    };
    let Some(tokens) = tokens else {
        return Ok(None);
    };
    let every = |nth: u32| (0..count).map(|n| nth == 0 || (n + 1) % nth != 0).collect();
    let layers: Vec<bool> = match (&config.layer_types, architecture) {
        (Some(types), _) => types
            .iter()
            .map(|kind| match kind.as_str() {
                "sliding_attention" => Ok(true),
                "full_attention" => Ok(false),
                other => refused(format!("{} in `layer_types`", shown(other))),
            })
            .collect::<Result<_, _>>()?,
        (None, Qwen2 | Qwen3) => {
            let first = config.max_window_layers.unwrap_or(28);
            (0..count).map(|n| n >= first).collect()
        }
        (None, Gemma2) => every(2),
        (None, Gemma3) => every(config.sliding_window_pattern.unwrap_or(6)),
        (None, _) => vec![true; count as usize],
    };
    Ok(Some(Window {
        tokens,
        layers,
        rope,
    }))
}
