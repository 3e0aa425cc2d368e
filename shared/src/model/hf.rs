//! From a Hugging Face folder (config.json and safetensors, one file or shards) to a manifest.
//!
//! Keeps true: every tensor has a known use. Shards are plain names inside the folder, so no index
//! can point elsewhere. Neighbour: `hf_config` reads the settings.

use super::header::shown;
use super::manifest::{self, Manifest, ManifestError, TensorEntry, TensorRole};
use super::{Architecture, DType, Expert, hf_config, safetensors};
use crate::limits;
use half::{bf16, f16};
use serde::{Deserialize, de::DeserializeOwned};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

pub(super) fn open(folder: &Path) -> Result<Manifest, ManifestError> {
    let config_path = folder.join("config.json");
    let mut config = hf_config::model_config(json(&config_path)?)
        .map_err(|reason| ManifestError::new(&config_path, reason))?;
    manifest::check_config(&config).map_err(|reason| ManifestError::new(&config_path, reason))?;

    let (files, wanted) = files(folder)?;
    let mut tensors = BTreeMap::new();
    let mut found = BTreeSet::new();
    for (index, path) in files.iter().enumerate() {
        let fail = |reason: String| ManifestError::new(path, reason);
        for tensor in safetensors::open(path)? {
            if let Some(wanted) = &wanted {
                // Some shards hold copies the index does not point at.
                match wanted.get(&tensor.name) {
                    Some(file) if path.file_name().is_some_and(|f| f == file.as_str()) => {}
                    _ => continue,
                }
            }
            found.insert(tensor.name.clone());
            let roles = match roles(&tensor.name, config.architecture) {
                Some(roles) if roles == [TensorRole::Output] && config.tied_embeddings => continue,
                Some(roles) => roles,
                // Computed, not trained: old checkpoints carry it.
                None if tensor.name.ends_with("rotary_emb.inv_freq") => continue,
                None => {
                    return Err(fail(format!(
                        "has the tensor {}, which this program does not know how to use",
                        shown(&tensor.name)
                    )));
                }
            };
            let dtype = tensor.dtype.ok_or_else(|| {
                fail(format!(
                    "tensor {} is stored as {}, which is not supported; use F32, F16 or BF16",
                    shown(&tensor.name),
                    shown(&tensor.type_name)
                ))
            })?;
            let (rows, columns) = match tensor.shape[..] {
                [columns] => (1, columns),
                [rows, columns] => (rows, columns),
                _ => {
                    return Err(fail(format!(
                        "tensor {} has {} dimensions; 1 or 2 are possible",
                        shown(&tensor.name),
                        tensor.shape.len()
                    )));
                }
            };
            let entry = TensorEntry {
                dtype,
                packed: dtype,
                rows,
                columns,
                file: index,
                offset: tensor.offset,
                bytes: tensor.bytes,
            };
            manifest::place(&mut tensors, &config, &roles, entry, &tensor.name).map_err(fail)?;
        }
    }
    if let Some(wanted) = &wanted
        && let Some((name, file)) = wanted.iter().find(|(name, _)| !found.contains(*name))
    {
        return Err(ManifestError::new(
            &folder.join(file),
            format!("lacks the tensor {} that the index promises", shown(name)),
        ));
    }
    let name = |role| name(role, config.architecture);
    manifest::check(&config, &tensors, name).map_err(|r| ManifestError::new(folder, r))?;
    if let Some(embedding) = tensors.get(&TensorRole::Embedding) {
        config.embedding_scale = rounded_to(embedding.dtype, config.embedding_scale);
    }
    let name = folder.file_name().map(|n| n.to_string_lossy().into_owned());
    Ok(Manifest {
        config,
        files,
        tensors,
        name,
    })
}

/// What an embedding is multiplied by, as transformers has it: in the embedding's own type.
fn rounded_to(dtype: DType, scale: f32) -> f32 {
    match dtype {
        DType::BF16 => bf16::from_f32(scale).to_f32(),
        DType::F16 => f16::from_f32(scale).to_f32(),
        _ => scale,
    }
}

type WeightMap = BTreeMap<String, String>;

/// The weight files, and which tensor the index says is in which.
fn files(folder: &Path) -> Result<(Vec<PathBuf>, Option<WeightMap>), ManifestError> {
    let index_path = folder.join("model.safetensors.index.json");
    let single = folder.join("model.safetensors");
    if !index_path.exists() {
        return if single.exists() {
            Ok((vec![single], None))
        } else {
            Err(ManifestError::new(
                folder,
                "has neither model.safetensors nor model.safetensors.index.json; fetch the model's \
                 safetensors files into it",
            ))
        };
    }
    let index: Index = json(&index_path)?;
    let names: BTreeSet<&String> = index.weight_map.values().collect();
    let fail = |reason: String| ManifestError::new(&index_path, reason);
    if names.is_empty() || names.len() > limits::SAFETENSORS_SHARDS_MAX {
        return Err(fail(format!("names {} files", names.len())));
    }
    for name in &names {
        if !is_plain_name(name) {
            return Err(fail(format!(
                "names the file {}, which is not a plain file name",
                shown(name)
            )));
        }
    }
    let files = names.iter().map(|name| folder.join(name)).collect();
    Ok((files, Some(index.weight_map)))
}

/// A name that stays inside its folder on every system.
pub(crate) fn is_plain_name(name: &str) -> bool {
    let odd = |c: char| matches!(c, '/' | '\\' | ':') || c.is_control();
    !name.is_empty() && !name.starts_with('.') && name.len() <= 255 && !name.contains(odd)
}

/// Shard names an index text points at, for the fetcher.
pub(crate) fn shards_of_index(path: &Path) -> Result<Vec<String>, ManifestError> {
    let index: Index = json(path)?;
    let names: BTreeSet<String> = index.weight_map.into_values().collect();
    if names.len() > limits::SAFETENSORS_SHARDS_MAX || !names.iter().all(|n| is_plain_name(n)) {
        return Err(ManifestError::new(
            path,
            "is not a sensible index of shards",
        ));
    }
    Ok(names.into_iter().collect())
}

fn json<T: DeserializeOwned>(path: &Path) -> Result<T, ManifestError> {
    let fail = |reason: String| ManifestError::new(path, reason);
    let file = File::open(path).map_err(|e| fail(format!("cannot be opened: {e}")))?;
    let mut text = Vec::new();
    file.take(limits::MODEL_JSON_BYTES_MAX + 1)
        .read_to_end(&mut text)
        .map_err(|e| fail(format!("cannot be read: {e}")))?;
    if text.len() as u64 > limits::MODEL_JSON_BYTES_MAX {
        return Err(fail("is too large".into()));
    }
    serde_json::from_slice(&text).map_err(|e| fail(format!("is not what it should be: {e}")))
}

/// transformers' name of the tensor that holds a role.
pub(super) fn name(role: TensorRole, architecture: Architecture) -> String {
    let layer = |n: u32, part: &str| format!("model.layers.{n}.{part}");
    let weight = |n: u32, part: &str| layer(n, &format!("{part}.weight"));
    let is_fused = architecture == Architecture::Phi3;
    let (mixture, [gate, up, down]) = match architecture {
        Architecture::Mixtral => ("block_sparse_moe", ["w1", "w3", "w2"]),
        _ => ("mlp", ["gate_proj", "up_proj", "down_proj"]),
    };
    let expert =
        |n: u32, e: Expert, part: &str| weight(n, &format!("{mixture}.experts.{}.{part}", e.0));
    match role {
        TensorRole::Embedding => "model.embed_tokens.weight".into(),
        TensorRole::OutputNorm => "model.norm.weight".into(),
        TensorRole::Output => "lm_head.weight".into(),
        // Safetensors have none: the settings say how frequencies are scaled.
        TensorRole::RopeFactors => "rope_freqs.weight".into(),
        TensorRole::AttnNorm(n) => weight(n, "input_layernorm"),
        TensorRole::Query(n) | TensorRole::Key(n) | TensorRole::Value(n) if is_fused => {
            weight(n, "self_attn.qkv_proj")
        }
        TensorRole::Query(n) => weight(n, "self_attn.q_proj"),
        TensorRole::Key(n) => weight(n, "self_attn.k_proj"),
        TensorRole::Value(n) => weight(n, "self_attn.v_proj"),
        TensorRole::QueryBias(n) => layer(n, "self_attn.q_proj.bias"),
        TensorRole::KeyBias(n) => layer(n, "self_attn.k_proj.bias"),
        TensorRole::ValueBias(n) => layer(n, "self_attn.v_proj.bias"),
        TensorRole::QueryNorm(n) => weight(n, "self_attn.q_norm"),
        TensorRole::KeyNorm(n) => weight(n, "self_attn.k_norm"),
        TensorRole::AttnOutput(n) => weight(n, "self_attn.o_proj"),
        TensorRole::AttnPostNorm(n) => weight(n, "post_attention_layernorm"),
        TensorRole::FfnNorm(n) if architecture.is_gemma() => weight(n, "pre_feedforward_layernorm"),
        // Named after what is before it.
        TensorRole::FfnNorm(n) => weight(n, "post_attention_layernorm"),
        TensorRole::FfnGate(n) | TensorRole::FfnUp(n) if is_fused => weight(n, "mlp.gate_up_proj"),
        TensorRole::FfnGate(n) => weight(n, "mlp.gate_proj"),
        TensorRole::FfnUp(n) => weight(n, "mlp.up_proj"),
        TensorRole::FfnDown(n) => weight(n, "mlp.down_proj"),
        TensorRole::Router(n) => weight(n, &format!("{mixture}.gate")),
        TensorRole::ExpertGate(n, e) => expert(n, e, gate),
        TensorRole::ExpertUp(n, e) => expert(n, e, up),
        TensorRole::ExpertDown(n, e) => expert(n, e, down),
        TensorRole::FfnPostNorm(n) => weight(n, "post_feedforward_layernorm"),
    }
}

/// The roles whose rows a tensor holds, of top to bottom; none if no model here has such a one.
fn roles(name: &str, architecture: Architecture) -> Option<Vec<TensorRole>> {
    use TensorRole::*;
    match name {
        "model.embed_tokens.weight" => return Some(vec![Embedding]),
        "model.norm.weight" => return Some(vec![OutputNorm]),
        "lm_head.weight" => return Some(vec![Output]),
        _ => {}
    }
    let (layer, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let n: u32 = layer.parse().ok()?;
    let of_mixture = match architecture {
        Architecture::Mixtral => part.strip_prefix("block_sparse_moe."),
        Architecture::Qwen3Moe => part.strip_prefix("mlp."),
        _ => None,
    };
    if let Some(part) = of_mixture {
        return Some(vec![mixture_role(n, part)?]);
    }
    let one = match part {
        "input_layernorm.weight" => AttnNorm(n),
        "self_attn.q_proj.weight" => Query(n),
        "self_attn.k_proj.weight" => Key(n),
        "self_attn.v_proj.weight" => Value(n),
        "self_attn.q_proj.bias" => QueryBias(n),
        "self_attn.k_proj.bias" => KeyBias(n),
        "self_attn.v_proj.bias" => ValueBias(n),
        "self_attn.q_norm.weight" => QueryNorm(n),
        "self_attn.k_norm.weight" => KeyNorm(n),
        "self_attn.qkv_proj.weight" => return Some(vec![Query(n), Key(n), Value(n)]),
        "self_attn.o_proj.weight" => AttnOutput(n),
        "post_attention_layernorm.weight" if architecture.is_gemma() => AttnPostNorm(n),
        "post_attention_layernorm.weight" | "pre_feedforward_layernorm.weight" => FfnNorm(n),
        "mlp.gate_proj.weight" => FfnGate(n),
        "mlp.up_proj.weight" => FfnUp(n),
        "mlp.gate_up_proj.weight" => return Some(vec![FfnGate(n), FfnUp(n)]),
        "mlp.down_proj.weight" => FfnDown(n),
        "post_feedforward_layernorm.weight" => FfnPostNorm(n),
        _ => return None,
    };
    Some(vec![one])
}

/// The role of a mixture's tensor in layer `n`, by the end of its name.
fn mixture_role(n: u32, part: &str) -> Option<TensorRole> {
    if part == "gate.weight" {
        return Some(TensorRole::Router(n));
    }
    let (expert, part) = part.strip_prefix("experts.")?.split_once('.')?;
    let expert = Expert(expert.parse().ok()?);
    match part {
        "gate_proj.weight" | "w1.weight" => Some(TensorRole::ExpertGate(n, expert)),
        "up_proj.weight" | "w3.weight" => Some(TensorRole::ExpertUp(n, expert)),
        "down_proj.weight" | "w2.weight" => Some(TensorRole::ExpertDown(n, expert)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_embedding_scale_is_rounded_to_the_type_of_the_embedding() {
        // Gemma 2B's: the root of 2,304 is exact, that of 3,072 becomes 55.5.
        for (hidden, dtype, scale) in [
            (2_304f32, DType::BF16, 48.0),
            (3_072.0, DType::BF16, 55.5),
            (3_072.0, DType::F16, 55.4375),
            (3_072.0, DType::F32, 3_072f32.sqrt()),
        ] {
            assert_eq!(rounded_to(dtype, hidden.sqrt()), scale, "{dtype:?}");
        }
    }
}
