//! Mixtures of experts: both formats open to the same model, ranks hold whole experts, and what is
//! not implemented or makes no sense is refused by its name.

use super::random::RandomModel;
use super::{DType, Expert, Manifest, Mixture, Span, TensorRole, blocks};
use crate::limits;
use crate::test_folder::TestFolder;
use serde_json::{Value, json};
use std::os::unix::fs::FileExt;
use std::path::Path;

fn model(experts: u32, used: u32) -> RandomModel {
    RandomModel {
        layers: 2,
        ffn: 64 * experts,
        mixture: Some(Mixture {
            experts,
            used,
            normalised: true,
        }),
        dtype: DType::Q4_1,
        embedding_dtype: DType::Q8_0,
        ..RandomModel::tiny(9)
    }
}

fn read(manifest: &Manifest, role: TensorRole) -> Vec<f32> {
    let tensor = &manifest.tensors[&role];
    let mut bytes = vec![0; tensor.bytes as usize];
    let file = std::fs::File::open(&manifest.files[tensor.file]).unwrap();
    file.read_exact_at(&mut bytes, tensor.offset).unwrap();
    blocks::decode(tensor.dtype, &bytes)
}

fn refusal(path: &Path) -> String {
    match Manifest::open(path) {
        Err(e) => e.to_string(),
        Ok(manifest) => panic!("was opened: {:?}", manifest.config),
    }
}

#[test]
fn both_formats_open_to_the_same_experts() {
    let folder = TestFolder::new();
    let model = model(3, 2);
    let path = folder.path().join("m.gguf");
    model.write_gguf(&path).unwrap();
    let gguf = Manifest::open(&path).unwrap();
    assert_eq!(gguf.config, model.config());
    assert_eq!(gguf.config.expert_ffn(), Some(64));
    for shards in [1, 4] {
        let path = folder.path().join(format!("hf{shards}"));
        model.write_hf(&path, DType::F32, shards).unwrap();
        let hf = Manifest::open(&path).unwrap();
        assert_eq!(hf.config.mixture, gguf.config.mixture);
        assert_eq!(hf.config.ffn, gguf.config.ffn);
        for layer in 0..2 {
            let mut roles = vec![TensorRole::Router(layer)];
            for e in (0..3).map(Expert) {
                roles.push(TensorRole::ExpertGate(layer, e));
                roles.push(TensorRole::ExpertUp(layer, e));
                roles.push(TensorRole::ExpertDown(layer, e));
            }
            for role in roles {
                let weights = model.weights(role);
                assert_eq!(read(&gguf, role), weights, "{role:?}");
                assert_eq!(read(&hf, role), weights, "{role:?}");
            }
        }
    }
}

#[test]
fn ranks_hold_whole_experts_and_all_of_them_once() {
    let folder = TestFolder::new();
    let path = folder.path().join("m.gguf");
    model(5, 2).write_gguf(&path).unwrap();
    let manifest = Manifest::open(&path).unwrap();
    for (weights, experts) in [
        (&[2, 1][..], &[3, 2][..]),
        (&[1, 1, 1], &[2, 2, 1]),
        (&[9, 1, 1], &[3, 1, 1]),
    ] {
        let shares = manifest.shares(&[weights.to_vec()]).unwrap();
        let held: Vec<Span> = shares
            .iter()
            .map(|share| manifest.config.experts_in(share.ffn))
            .collect();
        let counts: Vec<u32> = held.iter().map(|span| span.len()).collect();
        assert_eq!(counts, experts, "{weights:?}");
        for (share, held) in shares.iter().zip(&held) {
            assert_eq!(share.ffn, Span::new(held.start * 64, held.end * 64));
        }
        let read: u64 = shares.iter().map(|s| manifest.share_bytes(s)).sum();
        let on_every_rank =
            |role: &TensorRole| role.is_norm() || matches!(role, TensorRole::Router(_));
        let again: u64 = manifest
            .tensors
            .iter()
            .filter(|(role, _)| on_every_rank(role))
            .map(|(_, tensor)| tensor.bytes * (shares.len() as u64 - 1))
            .sum();
        assert_eq!(read, manifest.total_bytes() + again);
    }

    // Fewer experts than KV heads.
    model(2, 1).write_gguf(&path).unwrap();
    let manifest = Manifest::open(&path).unwrap();
    assert!(manifest.shares(&[vec![1, 1]]).is_ok());
    let refused = manifest.shares(&[vec![1; 3]]).unwrap_err().to_string();
    assert!(refused.contains("tp can be 1 to 2"), "{refused}");
}

/// Experts are what layers weigh, and stages are balanced by that.
#[test]
fn experts_count_in_the_balance_of_stages() {
    let folder = TestFolder::new();
    let path = folder.path().join("m.gguf");
    let layers = |experts: u32| -> Vec<u32> {
        let model = RandomModel {
            layers: 12,
            vocab: 2_048,
            ..model(experts, 1)
        };
        model.write_gguf(&path).unwrap();
        let manifest = Manifest::open(&path).unwrap();
        let shares = manifest.shares(&[vec![1], vec![1]]).unwrap();
        shares.iter().map(|share| share.layers.len()).collect()
    };
    // The output matrix weighs as much as 7 layers of one expert, or as 1.3 of twelve.
    assert_eq!(layers(1), [10, 2]);
    assert_eq!(layers(12), [7, 5]);
}

/// A GGUF file with one more number among its metadata.
fn with_key(path: &Path, key: &str, value: u32) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[16] += 1;
    let mut entry = (key.len() as u64).to_le_bytes().to_vec();
    entry.extend(key.as_bytes());
    entry.extend(4u32.to_le_bytes());
    entry.extend(value.to_le_bytes());
    bytes.splice(24..24, entry);
    // The data's alignment may have moved its end.
    bytes.extend([0; 32]);
    std::fs::write(path, bytes).unwrap();
}

/// Puts `to` over the end of `from`, and `value` into what it names.
fn bend(path: &Path, from: &str, to: &str, value: u32) {
    assert_eq!(from.len(), to.len());
    let mut bytes = std::fs::read(path).unwrap();
    let found = bytes.windows(from.len()).position(|w| w == from.as_bytes());
    let at = found.unwrap_or_else(|| panic!("{from} is in the file"));
    let end = at + from.len();
    bytes[at..end].copy_from_slice(to.as_bytes());
    bytes[end + 4..end + 8].copy_from_slice(&value.to_le_bytes());
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn gguf_settings_that_make_no_sense_or_are_not_implemented_are_refused() {
    let folder = TestFolder::new();
    let path = folder.path().join("m.gguf");
    let golden = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/golden/architectures/qwen3moe/model.gguf"
    );
    let used = "llama.expert_used_count";
    let count = "llama.expert_count";
    let size = "qwen3moe.expert_feed_forward_length";
    let cases: [(&str, &dyn Fn(), &str); 9] = [
        ("more than all", &|| bend(&path, used, used, 4), "4 of 3"),
        ("none used", &|| bend(&path, used, used, 0), "0 of 3"),
        (
            "too many",
            &|| bend(&path, count, count, u32::MAX),
            "4294967295 experts",
        ),
        (
            "another number",
            &|| bend(&path, count, count, 2),
            "`blk.0.ffn_gate_exps.weight`",
        ),
        (
            "none",
            &|| bend(&path, count, count, 0),
            "`blk.0.ffn_gate_exps.weight`, which this program does not know",
        ),
        (
            "how many are used is missing",
            &|| bend(&path, used, "lllll.expert_used_count", 2),
            "lacks the metadata key `llama.expert_used_count`",
        ),
        (
            "shared experts",
            &|| with_key(&path, "llama.expert_shared_count", 1),
            "`llama.expert_shared_count` = 1",
        ),
        (
            "groups of experts",
            &|| with_key(&path, "llama.expert_group_count", 2),
            "`llama.expert_group_count` = 2",
        ),
        (
            "sizes are missing",
            &|| {
                std::fs::copy(golden, &path).unwrap();
                bend(&path, size, &size.replace("qwen", "gwen"), 48);
            },
            "lacks the metadata key `qwen3moe.expert_feed_forward_length`",
        ),
    ];
    for (case, spoil, reason) in cases {
        model(3, 2).write_gguf(&path).unwrap();
        spoil();
        let refused = refusal(&path);
        assert!(refused.contains(reason), "{case}: {refused}");
    }
}

#[test]
fn hugging_face_settings_that_make_no_sense_or_are_not_implemented_are_refused() {
    let folder = TestFolder::new();
    model(3, 2).write_hf(folder.path(), DType::F32, 1).unwrap();
    let path = folder.path().join("config.json");
    let settings: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let all = format!("{} experts", limits::MODEL_EXPERTS_MAX + 1);
    for (name, value, reason) in [
        ("num_experts_per_tok", json!(4), "4 of 3"),
        ("num_experts_per_tok", json!(0), "0 of 3"),
        ("num_local_experts", json!(0), "0 experts"),
        (
            "num_local_experts",
            json!(limits::MODEL_EXPERTS_MAX + 1),
            all.as_str(),
        ),
        ("num_local_experts", json!(4), "make it 4 x 96"),
        ("num_local_experts", json!(2), "make it 2 x 96"),
        ("intermediate_size", json!(32), "32 x 96"),
        ("intermediate_size", json!(u32::MAX), "FFN size"),
        ("decoder_sparse_step", json!(2), "`decoder_sparse_step`"),
        ("mlp_only_layers", json!([1]), "`mlp_only_layers`"),
        (
            "architectures",
            json!(["Qwen2MoeForCausalLM"]),
            "`Qwen2MoeForCausalLM`",
        ),
        (
            "architectures",
            json!(["LlamaForCausalLM"]),
            "block_sparse_moe",
        ),
    ] {
        let mut settings = settings.clone();
        settings[name] = value.clone();
        std::fs::write(&path, settings.to_string()).unwrap();
        let refused = refusal(folder.path());
        assert!(refused.contains(reason), "{name} = {value}: {refused}");
    }
    std::fs::write(&path, settings.to_string()).unwrap();
    Manifest::open(folder.path()).unwrap();
}

/// transformers leaves out what is the default of the class.
#[test]
fn settings_that_are_left_out_are_the_architectures_own() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/architectures");
    for (name, defaults) in [("mixtral", (8, 2, true)), ("qwen3moe", (128, 8, false))] {
        let config = std::fs::read(golden.join(name).join("config.json")).unwrap();
        let mut config: Value = serde_json::from_slice(&config).unwrap();
        for key in [
            "num_local_experts",
            "num_experts",
            "num_experts_per_tok",
            "norm_topk_prob",
        ] {
            config.as_object_mut().unwrap().remove(key);
        }
        let config = serde_json::from_value(config).unwrap();
        let config = super::hf_config::model_config(config).unwrap();
        let mixture = config.mixture.unwrap();
        let found = (mixture.experts, mixture.used, mixture.normalised);
        assert_eq!(found, defaults, "{name}");
    }
}
