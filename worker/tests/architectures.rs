//! Tiny models of every architecture against what Hugging Face transformers answered
//! (`tests/golden/architectures`; its README says how they were made): both file formats, whole and
//! split, the prompt in chunks and decoding token by token.

mod splitting;

use splitting::Split;
use std::path::{Path, PathBuf};
use trireme_shared::limits::PAGE_TOKENS;
use trireme_shared::model::{Architecture, Manifest, Quantize, TensorEntry, blocks};
use trireme_worker::backend::Isa;
use trireme_worker::loader;
use trireme_worker::model::{Batch, SequenceSlice};

/// Tokens of each case's prompt, and how many of its last have an answer.
const PROMPT: usize = 200;
const LAST: usize = 8;

/// Largest difference of a logit, as a part of the largest logit. The reference keeps keys and
/// values in f32, we in f16.
const TOLERANCE: f32 = 1e-3;

struct Case {
    name: &'static str,
    /// Of both formats.
    architectures: [Architecture; 2],
    /// Prompt and greedy continuation.
    tokens: Vec<u32>,
    /// Logits after the last prompt tokens and after each of the continuation.
    logits: Vec<Vec<f32>>,
}

fn folder(name: &str) -> PathBuf {
    let golden = "../tests/golden/architectures";
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(golden)
        .join(name)
}

fn cases() -> Vec<Case> {
    use Architecture::*;
    [
        ("llama-linear", [Llama, Llama]),
        ("llama-llama3", [Llama, Llama]),
        ("llama-yarn", [Llama, Llama]),
        ("qwen2", [Qwen2, Qwen2]),
        ("mistral", [Mistral, Llama]),
        ("qwen3", [Qwen3, Qwen3]),
        ("phi3", [Phi3, Phi3]),
        ("gemma2", [Gemma2, Gemma2]),
        ("gemma3", [Gemma3, Gemma3]),
        ("mixtral", [Mixtral, Llama]),
        ("qwen3moe", [Qwen3Moe, Qwen3Moe]),
        ("phi3-longrope", [Phi3, Phi3]),
    ]
    .into_iter()
    .map(|(name, architectures)| {
        let tokens = std::fs::read(folder(name).join("tokens.json")).unwrap();
        let tokens: Vec<u32> = serde_json::from_slice(&tokens).unwrap();
        let logits = std::fs::read(folder(name).join("logits.f32")).unwrap();
        let rows = LAST + tokens.len() - PROMPT;
        let floats = logits
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let floats: Vec<f32> = floats.collect();
        assert!(floats.len().is_multiple_of(rows), "{name}");
        let logits = floats.chunks(floats.len() / rows);
        Case {
            name,
            architectures,
            tokens,
            logits: logits.map(<[f32]>::to_vec).collect(),
        }
    })
    .collect()
}

/// The logits that the case has an answer for: a prompt in chunks (of which one reaches over the
/// window of those that have one), then each token of the continuation.
fn run(split: &mut Split, case: &Case) -> Vec<Vec<f32>> {
    let mut out = Vec::new();
    let mut context = 0;
    let chunks = [61, 7, 100, PROMPT - 168];
    let decoded = std::iter::repeat_n(1, case.tokens.len() - PROMPT);
    for len in chunks.into_iter().chain(decoded) {
        let positions = context..context + len;
        let wanted = positions.clone().filter(|&p| p + LAST >= PROMPT);
        let pages = (context + len).div_ceil(PAGE_TOKENS) as u32;
        let batch = Batch {
            tokens: case.tokens[positions].to_vec(),
            sequences: vec![SequenceSlice {
                first: 0,
                len: len as u32,
                context: context as u32,
                // In an order that is not memory's.
                pages: (0..pages).map(|p| (p * 7 + 3) % 20).collect(),
            }],
            outputs: wanted.map(|p| (p - context) as u32).collect(),
        };
        out.extend(split.logits(&batch));
        context += len;
    }
    out
}

/// How far the logits are from the answer, as a part of the largest.
fn off(got: &[Vec<f32>], case: &Case) -> f32 {
    assert_eq!(got.len(), case.logits.len(), "{}", case.name);
    let wanted = case.logits.iter().flatten();
    let size = wanted.clone().fold(0f32, |a, v| a.max(v.abs()));
    let got = got.iter().flatten();
    assert_eq!(got.clone().count(), wanted.clone().count(), "{}", case.name);
    got.zip(wanted).fold(0f32, |a, (g, w)| {
        let off = (g - w).abs();
        assert!(off.is_finite(), "{}: a logit is {g}", case.name);
        a.max(off)
    }) / size
}

/// Both of a case's files.
fn manifests(case: &Case) -> [Manifest; 2] {
    let folder = folder(case.name);
    let opened = [folder.clone(), folder.join("model.gguf")].map(|p| Manifest::open(&p).unwrap());
    let architectures = [0, 1].map(|i: usize| opened[i].config.architecture);
    assert_eq!(architectures, case.architectures, "{}", case.name);
    opened
}

#[test]
fn every_architecture_answers_as_transformers_does_from_both_formats_on_every_isa() {
    for case in cases() {
        for (manifest, format) in manifests(&case).iter().zip(["safetensors", "GGUF"]) {
            for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
                let mut split = Split::load_on(manifest, &[vec![1]], 2, isa);
                let off = off(&run(&mut split, &case), &case);
                eprintln!("{} {format} {isa:?}: off by {off:.6}", case.name);
                assert!(off <= TOLERANCE, "{} {format} {isa:?}: {off}", case.name);
            }
        }
    }
}

#[test]
fn every_architecture_answers_the_same_however_it_is_split() {
    for case in cases() {
        for (manifest, format) in manifests(&case).iter().zip(["safetensors", "GGUF"]) {
            let kv_heads = manifest.config.kv_heads;
            let mut splits = vec![vec![vec![1], vec![1]]];
            if kv_heads >= 2 {
                splits.extend([vec![vec![1, 1]], vec![vec![3, 1], vec![1, 1]]]);
            }
            if kv_heads >= 3 {
                splits.extend([vec![vec![2, 1]], vec![vec![1, 1, 1]]]);
            }
            let whole = run(&mut Split::load(manifest, &[vec![1]], 1), &case);
            for weights in splits {
                let got = run(&mut Split::load(manifest, &weights, 2), &case);
                // These cut whole KV groups and whole FFN segments or experts: not a bit changes.
                assert_eq!(got, whole, "{} {format} {weights:?}", case.name);
            }
        }
    }
}

/// The model with what a rank would quantise quantised already, by the encoder that writes test models, in a
/// file of its own.
fn encoded(manifest: &Manifest, path: &Path) -> Manifest {
    let (mut encoded, mut bytes) = (manifest.clone(), Vec::new());
    for tensor in encoded.tensors.values_mut() {
        if tensor.packed == tensor.dtype {
            continue;
        }
        let file = std::fs::read(&manifest.files[tensor.file]).unwrap();
        let floats = &file[tensor.offset as usize..][..tensor.bytes as usize];
        let offset = bytes.len();
        blocks::encode(
            tensor.packed,
            &blocks::decode(tensor.dtype, floats),
            &mut bytes,
        );
        *tensor = TensorEntry {
            dtype: tensor.packed,
            file: manifest.files.len(),
            offset: offset as u64,
            bytes: (bytes.len() - offset) as u64,
            ..*tensor
        };
    }
    assert!(!bytes.is_empty());
    std::fs::write(path, bytes).unwrap();
    encoded.files.push(path.to_owned());
    encoded
}

/// Largest difference of a logit as above, of weights quantised as they are loaded. (32 wide, these models
/// have one block a row: of real ones errors average out.)
const QUANTISED: [(Quantize, f32); 2] = [(Quantize::Q8, 0.03), (Quantize::Q4, 0.3)];

#[test]
fn quantised_as_they_are_loaded_models_are_as_quantised_before_however_they_are_split() {
    let path = std::env::temp_dir().join(format!("trireme-encoded-{}", std::process::id()));
    for case in cases() {
        for (manifest, format) in manifests(&case).into_iter().zip(["safetensors", "GGUF"]) {
            let plain = run(&mut Split::load(&manifest, &[vec![1]], 2), &case);
            for (quantize, tolerance) in QUANTISED {
                let what = format!("{} {format} {}", case.name, quantize.name());
                let manifest = manifest.clone().quantised(Some(quantize));
                let before = encoded(&manifest, &path);
                let want = run(&mut Split::load(&before, &[vec![1]], 2), &case);
                let off = off(&want, &case);
                eprintln!("{what}: off by {off:.4}");
                assert!(want != plain, "{what}");
                // A route may turn to another expert, whose output is another altogether.
                let is_mixture = manifest.config.mixture.is_some();
                assert!(is_mixture || off <= tolerance, "{what}: {off}");
                let mut splits = vec![vec![vec![1]], vec![vec![1], vec![1]]];
                // Heads that share a KV head have columns that are cut together.
                let cut = (manifest.config.group() * manifest.config.head_dim).is_multiple_of(32);
                match manifest.config.kv_heads {
                    3 if cut => splits.extend([vec![vec![2, 1]], vec![vec![1, 2], vec![1, 1]]]),
                    2 if cut => splits.push(vec![vec![1, 1]]),
                    1 => {}
                    _ => assert!(manifest.shares(&[vec![1, 1]]).is_err(), "{what}"),
                }
                for weights in splits {
                    let got = run(&mut Split::load(&manifest, &weights, 2), &case);
                    assert_eq!(got, want, "{what} {weights:?}");
                }
            }
        }
    }
    std::fs::remove_file(&path).unwrap();
}

/// What plans are made by is what ranks read, biases, norms and parts of fused tensors included.
#[test]
fn a_share_is_as_large_as_the_plan_says() {
    for case in cases() {
        let plain = manifests(&case);
        let quantised = plain.clone().map(|m| m.quantised(Some(Quantize::Q4)));
        for manifest in plain.into_iter().chain(quantised) {
            let ranks = manifest.config.kv_heads as usize;
            let ranks = match manifest.shares(&[vec![1; ranks]]) {
                Ok(_) => ranks,
                Err(_) => 1,
            };
            for weights in [
                vec![vec![1]],
                vec![vec![1], vec![1]],
                vec![vec![1; ranks]; 2],
            ] {
                for share in manifest.shares(&weights).unwrap() {
                    let roles = loader::roles(&manifest, &share).into_iter();
                    let read: u64 = roles
                        .map(|role| loader::part(&manifest, &share, role).unwrap().bytes())
                        .sum();
                    let planned = manifest.share_bytes(&share);
                    assert_eq!(read, planned, "{} {share:?}", case.name);
                }
            }
        }
    }
}

/// A model is what its settings say: each of them, left out, gives another answer. So no comparison
/// above holds by chance.
#[test]
fn what_a_setting_says_shows_in_the_answer() {
    use trireme_shared::model::{Activation, ModelConfig, RopeDivisors, RopeScaling};
    type Spoil = fn(&mut ModelConfig);
    let spoils: [(&str, &str, Spoil); 17] = [
        ("llama-linear", "scaling", |c| {
            c.rope.scaling = RopeScaling::None
        }),
        ("llama-llama3", "scaling", |c| {
            c.rope.scaling = RopeScaling::None
        }),
        ("llama-yarn", "attention factor", |c| {
            let RopeScaling::Yarn {
                attention_factor, ..
            } = &mut c.rope.scaling
            else {
                panic!("{:?}", c.rope.scaling);
            };
            *attention_factor = 1.0;
        }),
        ("mistral", "window", |c| c.window = None),
        ("mistral", "window by one", |c| {
            c.window.as_mut().unwrap().tokens += 1
        }),
        ("phi3", "window", |c| c.window = None),
        ("phi3", "rotated part", |c| {
            c.window.as_mut().unwrap().rope.dims *= 2;
        }),
        ("gemma2", "score cap", |c| c.score_cap = None),
        ("gemma2", "logit cap", |c| c.logit_cap = None),
        ("gemma2", "embedding scale", |c| c.embedding_scale = 1.0),
        ("gemma2", "activation", |c| c.activation = Activation::Silu),
        ("gemma2", "every layer windowed", |c| {
            c.window.as_mut().unwrap().layers.fill(true);
        }),
        ("gemma3", "one RoPE for all", |c| {
            c.window.as_mut().unwrap().rope = c.rope
        }),
        ("mixtral", "second expert", |c| {
            c.mixture.as_mut().unwrap().used = 1;
        }),
        ("qwen3moe", "normalisation", |c| {
            c.mixture.as_mut().unwrap().normalised = false;
        }),
        ("phi3-longrope", "long factors", |c| {
            // The short ones.
            c.rope_divisors = RopeDivisors::Given(vec![1.0, 1.05, 1.1, 1.2, 1.4, 1.5]);
        }),
        ("phi3-longrope", "attention factor", |c| {
            c.rope.scaling = RopeScaling::None
        }),
    ];
    let cases = cases();
    for (name, what, spoil) in spoils {
        let case = cases.iter().find(|c| c.name == name).unwrap();
        let [mut manifest, _] = manifests(case);
        spoil(&mut manifest.config);
        let off = off(&run(&mut Split::load(&manifest, &[vec![1]], 2), case), case);
        eprintln!("{name} without its {what}: off by {off:.4}");
        assert!(
            off > 5.0 * TOLERANCE,
            "{name}: the {what} does not matter: {off}"
        );
    }
}

/// transformers 5 writes the same settings in other places.
#[test]
fn settings_of_transformers_5_open_to_the_same_model() {
    use serde_json::{Value, json};
    let folder_5 = std::env::temp_dir().join(format!("trireme-arch-{}", std::process::id()));
    std::fs::create_dir_all(&folder_5).unwrap();
    for (name, gone, parameters) in [
        (
            "gemma3",
            &["rope_theta", "rope_scaling", "rope_local_base_freq"][..],
            json!({
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            }),
        ),
        (
            "phi3",
            &["rope_theta", "partial_rotary_factor"],
            json!({
                "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5,
            }),
        ),
        (
            "llama-yarn",
            &["rope_theta", "rope_scaling"],
            json!({
                "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64,
                "rope_theta": 10000.0,
            }),
        ),
    ] {
        let old = Manifest::open(&folder(name)).unwrap();
        let config = std::fs::read(folder(name).join("config.json")).unwrap();
        let mut config: Value = serde_json::from_slice(&config).unwrap();
        for key in gone {
            config.as_object_mut().unwrap().remove(*key).unwrap();
        }
        config["rope_parameters"] = parameters;
        std::fs::write(folder_5.join("config.json"), config.to_string()).unwrap();
        let weights = "model.safetensors";
        std::fs::copy(folder(name).join(weights), folder_5.join(weights)).unwrap();
        assert_eq!(
            Manifest::open(&folder_5).unwrap().config,
            old.config,
            "{name}"
        );
    }
    std::fs::remove_dir_all(&folder_5).unwrap();
}
