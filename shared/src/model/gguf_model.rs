//! From a GGUF header to a manifest: the tensors. Neighbour: `gguf_config` reads the settings.
//!
//! Keeps true: every tensor has a known use. Names are those of llama.cpp's conversions.

use super::gguf::{Gguf, GgufTensor};
use super::header::shown;
use super::manifest::{self, Manifest, ManifestError, TensorEntry, TensorRole};
use super::{Architecture, Expert, ModelConfig, gguf_config};
use std::collections::BTreeMap;
use std::path::Path;

pub(super) fn open(path: &Path) -> Result<Manifest, ManifestError> {
    let gguf = Gguf::open(path)?;
    let config = gguf_config::config(&gguf)?;
    manifest::check_config(&config).map_err(|reason| gguf.metadata.error(reason))?;
    let mut tensors = BTreeMap::new();
    for tensor in &gguf.tensors {
        let Some(roles) = roles(&tensor.name, &config) else {
            return Err(gguf.metadata.error(format!(
                "has the tensor {}, which this program does not know how to use",
                shown(&tensor.name)
            )));
        };
        let entry = entry(tensor).ok_or_else(|| {
            gguf.metadata.error(format!(
                "tensor {} has more than three dimensions",
                shown(&tensor.name)
            ))
        })?;
        if roles.is_empty() {
            continue;
        }
        manifest::place(&mut tensors, &config, &roles, entry, &tensor.name)
            .map_err(|reason| gguf.metadata.error(reason))?;
    }
    let name = |role| name(role, &config);
    manifest::check(&config, &tensors, name).map_err(|reason| gguf.metadata.error(reason))?;
    let title = gguf.metadata.string("general.name")?.map(str::to_owned);
    Ok(Manifest {
        config,
        files: vec![path.to_owned()],
        tensors,
        name: title,
    })
}

fn entry(tensor: &GgufTensor) -> Option<TensorEntry> {
    let (rows, columns) = match tensor.dims[..] {
        [columns] => (1, columns),
        [columns, rows] => (rows, columns),
        // Matrices on top of each other.
        [columns, rows, matrices] => (rows.checked_mul(matrices)?, columns),
        _ => return None,
    };
    Some(TensorEntry {
        dtype: tensor.dtype,
        packed: tensor.dtype,
        rows,
        columns,
        file: 0,
        offset: tensor.offset,
        bytes: tensor.bytes,
    })
}

/// llama.cpp's name of the tensor that holds a role.
pub(super) fn name(role: TensorRole, config: &ModelConfig) -> String {
    let layer = |n: u32, part: &str| format!("blk.{n}.{part}");
    let weight = |n: u32, part: &str| layer(n, &format!("{part}.weight"));
    let is_fused = config.architecture == Architecture::Phi3;
    match role {
        TensorRole::Embedding => "token_embd.weight".into(),
        TensorRole::OutputNorm => "output_norm.weight".into(),
        TensorRole::Output => "output.weight".into(),
        TensorRole::RopeFactors => rope_factors(config).into(),
        TensorRole::AttnNorm(n) => weight(n, "attn_norm"),
        TensorRole::Query(n) | TensorRole::Key(n) | TensorRole::Value(n) if is_fused => {
            weight(n, "attn_qkv")
        }
        TensorRole::Query(n) => weight(n, "attn_q"),
        TensorRole::Key(n) => weight(n, "attn_k"),
        TensorRole::Value(n) => weight(n, "attn_v"),
        TensorRole::QueryBias(n) => layer(n, "attn_q.bias"),
        TensorRole::KeyBias(n) => layer(n, "attn_k.bias"),
        TensorRole::ValueBias(n) => layer(n, "attn_v.bias"),
        TensorRole::QueryNorm(n) => weight(n, "attn_q_norm"),
        TensorRole::KeyNorm(n) => weight(n, "attn_k_norm"),
        TensorRole::AttnOutput(n) => weight(n, "attn_output"),
        TensorRole::AttnPostNorm(n) => weight(n, "post_attention_norm"),
        TensorRole::FfnNorm(n) => weight(n, "ffn_norm"),
        TensorRole::FfnGate(n) if is_fused => weight(n, "ffn_up"),
        TensorRole::FfnGate(n) => weight(n, "ffn_gate"),
        TensorRole::FfnUp(n) => weight(n, "ffn_up"),
        TensorRole::FfnDown(n) => weight(n, "ffn_down"),
        TensorRole::Router(n) => weight(n, "ffn_gate_inp"),
        TensorRole::ExpertGate(n, _) => weight(n, "ffn_gate_exps"),
        TensorRole::ExpertUp(n, _) => weight(n, "ffn_up_exps"),
        TensorRole::ExpertDown(n, _) => weight(n, "ffn_down_exps"),
        TensorRole::FfnPostNorm(n) => weight(n, "post_ffw_norm"),
    }
}

/// The tensor of RoPE's divisors, of several the one that this model's context takes.
fn rope_factors(config: &ModelConfig) -> &'static str {
    match config.rope.scaling.is_long(config.context) {
        None => "rope_freqs.weight",
        Some(true) => gguf_config::LONG_FACTORS,
        Some(false) => gguf_config::SHORT_FACTORS,
    }
}

/// The roles whose rows a tensor holds, of top to bottom: no role if this model does without it,
/// nothing if no model here has such a one.
fn roles(name: &str, config: &ModelConfig) -> Option<Vec<TensorRole>> {
    use TensorRole::*;
    match name {
        "token_embd.weight" => return Some(vec![Embedding]),
        "output_norm.weight" => return Some(vec![OutputNorm]),
        "output.weight" => return Some(vec![Output]),
        name if name == rope_factors(config) => return Some(vec![RopeFactors]),
        gguf_config::LONG_FACTORS | gguf_config::SHORT_FACTORS
            if config.rope.scaling.is_long(config.context).is_some() =>
        {
            return Some(vec![]);
        }
        _ => {}
    }
    let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
    let n: u32 = layer.parse().ok()?;
    let experts = |role: fn(u32, Expert) -> TensorRole| {
        let mixture = config.mixture?;
        Some((0..mixture.experts).map(|e| role(n, Expert(e))).collect())
    };
    let one = match part {
        "attn_norm.weight" => AttnNorm(n),
        "attn_q.weight" => Query(n),
        "attn_k.weight" => Key(n),
        "attn_v.weight" => Value(n),
        "attn_q.bias" => QueryBias(n),
        "attn_k.bias" => KeyBias(n),
        "attn_v.bias" => ValueBias(n),
        "attn_q_norm.weight" => QueryNorm(n),
        "attn_k_norm.weight" => KeyNorm(n),
        "attn_qkv.weight" => return Some(vec![Query(n), Key(n), Value(n)]),
        "attn_output.weight" => AttnOutput(n),
        "post_attention_norm.weight" => AttnPostNorm(n),
        "ffn_norm.weight" => FfnNorm(n),
        "ffn_gate.weight" => FfnGate(n),
        // The gate on top of it.
        "ffn_up.weight" if config.architecture == Architecture::Phi3 => {
            return Some(vec![FfnGate(n), FfnUp(n)]);
        }
        "ffn_up.weight" => FfnUp(n),
        "ffn_down.weight" => FfnDown(n),
        "ffn_gate_inp.weight" => Router(n),
        "ffn_gate_exps.weight" => return experts(ExpertGate),
        "ffn_up_exps.weight" => return experts(ExpertUp),
        "ffn_down_exps.weight" => return experts(ExpertDown),
        "post_ffw_norm.weight" => FfnPostNorm(n),
        _ => return None,
    };
    Some(vec![one])
}
