//! Both formats open to the same model; every kind of damage or hostility is refused in words.

use super::*;
use crate::model::gguf::{Gguf, ggml_type_name};
use crate::model::random::{RandomModel, SplitMix};
use crate::model::{Architecture, RopeStyle, blocks};
use crate::test_folder::TestFolder;
use std::os::unix::fs::FileExt;

fn read(manifest: &Manifest, role: TensorRole) -> Vec<f32> {
    let tensor = &manifest.tensors[&role];
    let mut bytes = vec![0; tensor.bytes as usize];
    let file = std::fs::File::open(&manifest.files[tensor.file]).unwrap();
    file.read_exact_at(&mut bytes, tensor.offset).unwrap();
    blocks::decode(tensor.dtype, &bytes)
}

#[test]
fn gguf_and_hugging_face_folders_open_to_the_same_model() {
    let folder = TestFolder::new();
    let model = RandomModel {
        dtype: DType::Q4_1,
        embedding_dtype: DType::Q8_0,
        tied_embeddings: false,
        ..RandomModel::tiny(1)
    };
    let gguf_path = folder.path().join("m.gguf");
    model.write_gguf(&gguf_path).unwrap();
    let gguf = Manifest::open(&gguf_path).unwrap();
    assert_eq!(gguf.config, model.config());
    assert_eq!(gguf.name.as_deref(), Some("Random"));
    for shards in [1, 3] {
        let path = folder.path().join(format!("hf{shards}"));
        model.write_hf(&path, DType::F32, shards).unwrap();
        let hf = Manifest::open(&path).unwrap();
        assert_eq!(hf.files.len(), shards);
        assert_eq!(hf.config.rope.style, RopeStyle::Halves);
        assert_eq!(hf.config.hidden, gguf.config.hidden);
        for (role, tensor) in &gguf.tensors {
            let (a, b) = (read(&gguf, *role), read(&hf, *role));
            assert_eq!(b, model.weights(*role));
            if let TensorRole::Query(_) | TensorRole::Key(_) = role {
                // Row 1 of a GGUF head is the partner of row 0: the first of the second half here.
                let n = tensor.columns as usize;
                assert_eq!(a[n..2 * n], b[8 * n..9 * n]);
            } else {
                assert_eq!(a, b, "{role:?}");
            }
        }
    }
    // BF16 storage opens too.
    let path = folder.path().join("bf16");
    model.write_hf(&path, DType::BF16, 1).unwrap();
    assert_eq!(
        Manifest::open(&path).unwrap().tensors[&TensorRole::Output].dtype,
        DType::BF16
    );
}

/// A GGUF written by hand, to be bent.
#[derive(Clone)]
struct Bent {
    bytes: Vec<u8>,
}

impl Bent {
    fn whole() -> Self {
        let folder = TestFolder::new();
        let path = folder.path().join("m.gguf");
        RandomModel::tiny(5).write_gguf(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        Self { bytes }
    }

    /// Where `text` (with its length before it) ends.
    fn after(&self, text: &str) -> usize {
        let mut needle = (text.len() as u64).to_le_bytes().to_vec();
        needle.extend(text.as_bytes());
        let found = self.bytes.windows(needle.len()).position(|w| w == needle);
        found.unwrap_or_else(|| panic!("{text} is in the file")) + needle.len()
    }

    fn put(mut self, at: usize, bytes: &[u8]) -> Self {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    fn rename(self, from: &str, to: &str) -> Self {
        assert_eq!(from.len(), to.len());
        let at = self.after(from) - from.len();
        self.put(at, to.as_bytes())
    }
}

#[test]
fn hostile_and_damaged_gguf_files_are_refused_with_their_reason() {
    let whole = Bent::whole();
    let bend = || whole.clone();
    let cut = |n: usize| Bent {
        bytes: whole.bytes[..n].to_vec(),
    };
    let u64s = |n: u64| n.to_le_bytes();
    // A 2-D tensor's entry: dims count (4), columns (8), rows (8), type (4), offset (8).
    let q = whole.after("blk.1.attn_q.weight");
    let k = whole.after("blk.1.attn_k.weight");
    let offset_of_k = whole.bytes[k + 24..k + 32].to_vec();
    let blocks = whole.after("llama.block_count");
    let tokens = whole.after("tokenizer.ggml.tokens");
    let arch = whole.after("general.architecture");
    let header_of_q = whole.bytes.len() - 1;
    let cases: Vec<(&str, Bent, &str)> = vec![
        ("empty", cut(0), "too short"),
        ("cut in the header", cut(700), "cut short"),
        ("cut in the index", cut(q), "cut short"),
        ("cut in the data", cut(header_of_q), "cut short"),
        ("bad magic", bend().put(0, b"GGML"), "not a GGUF file"),
        ("version 1", bend().put(4, &[1]), "version 1"),
        ("version 9", bend().put(4, &[9]), "version 9"),
        ("big-endian", bend().put(4, &[0, 0, 0, 3]), "big-endian"),
        ("tensors", bend().put(8, &u64s(u64::MAX)), "tensors"),
        (
            "tensors beyond the file",
            bend().put(8, &u64s(60_000)),
            "bytes can hold",
        ),
        ("keys", bend().put(16, &u64s(1 << 60)), "metadata keys"),
        ("key length", bend().put(24, &u64s(u64::MAX)), "bytes long"),
        (
            "key length beyond",
            bend().put(24, &u64s(16 << 20)),
            "cut short",
        ),
        ("not UTF-8", bend().put(32, &[0xff]), "UTF-8"),
        ("value type", bend().put(blocks, &[77]), "value type 77"),
        (
            "list in list",
            bend().put(tokens + 4, &[9]),
            "list of lists",
        ),
        (
            "list count",
            bend().put(tokens + 8, &u64s(1 << 40)),
            "list elements",
        ),
        (
            "list beyond",
            bend().put(tokens + 8, &u64s(4_000_000)),
            "bytes can hold",
        ),
        ("architecture", bend().put(arch + 12, b"lamma"), "`lamma`"),
        ("layers", bend().put(blocks + 4, &[0xff; 4]), "layers"),
        (
            "fewer layers",
            bend().put(blocks + 4, &[2, 0, 0, 0]),
            "says it has 2 layers",
        ),
        (
            "more layers",
            bend().put(blocks + 4, &[4, 0, 0, 0]),
            "lacks the tensor `blk.3",
        ),
        (
            "key twice",
            bend().rename(
                "llama.attention.value_length",
                "llama.rope.dimension_count__",
            ),
            "llama.rope.dimension_count__",
        ),
        (
            "same key",
            bend().rename(
                "llama.attention.value_length",
                "llama.attention.head_count_k",
            ),
            "head_count_k",
        ),
        (
            "tensor twice",
            bend().rename("blk.1.attn_q.weight", "blk.0.attn_q.weight"),
            "twice",
        ),
        (
            "unknown tensor",
            bend().rename("blk.1.attn_q.weight", "blk.1.attn_q.biasss"),
            "biasss",
        ),
        ("dims", bend().put(q, &[0; 4]), "0 dimensions"),
        ("many dims", bend().put(q, &[200]), "200 dimensions"),
        ("zero rows", bend().put(q + 12, &u64s(0)), "absurd shape"),
        (
            "rows overflow",
            bend().put(q + 12, &u64s(u64::MAX)),
            "absurd shape",
        ),
        ("rows", bend().put(k + 12, &u64s(16)), "is 16 x 96"),
        (
            "out of range",
            bend().put(q + 24, &u64s(1 << 40)),
            "beyond the end",
        ),
        (
            "offset overflows",
            bend().put(q + 24, &u64s(u64::MAX - 31)),
            "beyond the end",
        ),
        (
            "unaligned",
            bend().put(q + 24, &u64s(8)),
            "not a multiple of 32",
        ),
        ("overlap", bend().put(q + 24, &offset_of_k), "overlap"),
        (
            "IQ2_XXS",
            bend().put(q + 20, &[16]),
            "`blk.1.attn_q.weight` is stored as IQ2_XXS",
        ),
        ("no such type", bend().put(q + 20, &[99]), "type number 99"),
        (
            "split blocks",
            bend().put(q + 4, &u64s(48)).put(q + 20, &[8]),
            "whole blocks of Q8_0",
        ),
    ];
    let folder = TestFolder::new();
    for (case, bent, reason) in cases {
        let path = folder.path().join("bent.gguf");
        std::fs::write(&path, &bent.bytes).unwrap();
        let refused = match Manifest::open(&path) {
            Err(e) => e.to_string(),
            Ok(_) => panic!("{case}: was opened"),
        };
        assert!(refused.contains("bent.gguf: "), "{case}: {refused}");
        assert!(refused.contains(reason), "{case}: {refused}");
    }
}

#[test]
fn settings_that_are_not_implemented_are_refused_by_name() {
    let whole = Bent::whole();
    let folder = TestFolder::new();
    let path = folder.path().join("m.gguf");
    let mut extended = whole.bytes.clone();
    extended[16] += 1;
    let key = "llama.rope.scaling.type";
    let mut entry = (key.len() as u64).to_le_bytes().to_vec();
    entry.extend(key.as_bytes());
    entry.extend(8u32.to_le_bytes());
    entry.extend(8u64.to_le_bytes());
    entry.extend(b"longrope");
    extended.splice(24..24, entry);
    std::fs::write(&path, extended).unwrap();
    let refused = Manifest::open(&path).unwrap_err().to_string();
    assert!(
        refused.contains("`llama.rope.scaling.type` = `longrope`"),
        "{refused}"
    );

    let hf = folder.path().join("hf");
    RandomModel::tiny(1).write_hf(&hf, DType::F32, 2).unwrap();
    let config = std::fs::read_to_string(hf.join("config.json")).unwrap();
    let mut settings: serde_json::Value = serde_json::from_str(&config).unwrap();
    let json = |text: &str| -> serde_json::Value { serde_json::from_str(text).unwrap() };
    for (name, value, reason) in [
        (
            "rope_scaling",
            r#"{"rope_type": "llama3", "factor": 8.0}"#,
            "`llama3`",
        ),
        ("rope_scaling", r#"{"factor": 8.0}"#, "`rope_scaling`"),
        ("attention_bias", "true", "`attention_bias`"),
        ("mlp_bias", "true", "`mlp_bias`"),
        ("hidden_act", r#""gelu""#, "`gelu`"),
        (
            "rope_scaling",
            r#"{"rope_type": "dynamic", "factor": 8.0}"#,
            "`dynamic`",
        ),
        (
            "rope_scaling",
            r#"{"type": "linear", "factor": 8.0, "surprise": 1}"#,
            "`surprise` in `rope_scaling`",
        ),
        (
            "rope_scaling",
            r#"{"type": "linear", "factor": 0.0}"#,
            "makes no sense",
        ),
        (
            "rope_scaling",
            r#"{"type": "yarn", "factor": 2.0, "truncate": false}"#,
            "`truncate`",
        ),
        ("sliding_window", "4096", "`sliding_window`"),
        (
            "final_logit_softcapping",
            "30.0",
            "`final_logit_softcapping`",
        ),
        ("partial_rotary_factor", "0.5", "`partial_rotary_factor`"),
        (
            "architectures",
            r#"["Qwen2MoeForCausalLM"]"#,
            "`Qwen2MoeForCausalLM`",
        ),
        (
            "architectures",
            r#"["Gemma3ForConditionalGeneration"]"#,
            "`Gemma3ForConditionalGeneration`",
        ),
        // Another's settings do not make it another's model.
        ("architectures", r#"["Qwen3ForCausalLM"]"#, "q_norm"),
        ("head_dim", "12", "make it 72 x 96"),
        ("num_key_value_heads", "4", "4 KV heads"),
        ("num_attention_heads", "0", "`num_attention_heads`"),
        ("vocab_size", "-1", "config.json"),
    ] {
        let before = settings[name].take();
        settings[name] = json(value);
        std::fs::write(hf.join("config.json"), settings.to_string()).unwrap();
        let refused = Manifest::open(&hf).unwrap_err().to_string();
        assert!(refused.contains(reason), "{name} = {value}: {refused}");
        settings[name] = before;
    }
    std::fs::write(hf.join("config.json"), settings.to_string()).unwrap();
    Manifest::open(&hf).unwrap();

    // Of the same folder as a Mistral: which layers have a window, and how wide it is.
    settings["architectures"] = json(r#"["MistralForCausalLM"]"#);
    for (window, types, tokens, layers) in [
        ("8", "null", Some(8), [true; 3]),
        ("null", "null", None, [false; 3]),
        (
            "8",
            r#"["sliding_attention", "full_attention", "sliding_attention"]"#,
            Some(8),
            [true, false, true],
        ),
    ] {
        settings["sliding_window"] = json(window);
        settings["layer_types"] = json(types);
        std::fs::write(hf.join("config.json"), settings.to_string()).unwrap();
        let config = Manifest::open(&hf).unwrap().config;
        assert_eq!(config.window.as_ref().map(|w| w.tokens), tokens);
        assert_eq!([0, 1, 2].map(|l| config.is_windowed(l)), layers);
    }
    for (window, types, reason) in [
        ("8", r#"["sliding_attention"]"#, "for 1 of 3 layers"),
        ("8", r#"["chunked_attention"]"#, "`chunked_attention`"),
        ("0", "null", "0 tokens"),
    ] {
        settings["sliding_window"] = json(window);
        settings["layer_types"] = json(types);
        std::fs::write(hf.join("config.json"), settings.to_string()).unwrap();
        let refused = Manifest::open(&hf).unwrap_err().to_string();
        assert!(refused.contains(reason), "{types}: {refused}");
    }
    // transformers' default where the setting is absent.
    let object = settings.as_object_mut().unwrap();
    object.remove("sliding_window");
    object.remove("layer_types");
    std::fs::write(hf.join("config.json"), settings.to_string()).unwrap();
    let window = Manifest::open(&hf).unwrap().config.window.unwrap();
    assert_eq!(window.tokens, 4_096);
}

/// The long ones where it is beyond the original context, in both formats.
#[test]
fn longrope_takes_the_factors_of_the_models_own_context() {
    use crate::model::{RopeDivisors, RopeScaling};
    let folder = TestFolder::new();
    let hf = folder.path().join("hf");
    RandomModel::tiny(1).write_hf(&hf, DType::F32, 1).unwrap();
    let config = std::fs::read(hf.join("config.json")).unwrap();
    let mut settings: serde_json::Value = serde_json::from_slice(&config).unwrap();
    let mut open = |scaling: serde_json::Value| {
        settings["rope_scaling"] = scaling;
        std::fs::write(hf.join("config.json"), settings.to_string()).unwrap();
        Manifest::open(&hf).map(|m| m.config)
    };
    let scaling = |kind: &str, original: u32| {
        serde_json::json!({
            "type": kind, "original_max_position_embeddings": original,
            "short_factor": vec![1.5; 8], "long_factor": vec![3.0; 8],
        })
    };
    let doubled = (1.0 + 1.0 / 8f32).sqrt();
    for (kind, original, factor, attention) in [
        ("longrope", 256, 3.0, doubled),
        ("su", 256, 3.0, doubled),
        ("longrope", 512, 1.5, 1.0),
    ] {
        let config = open(scaling(kind, original)).unwrap();
        assert_eq!(config.rope_divisors, RopeDivisors::Given(vec![factor; 8]));
        assert_eq!(
            config.rope.scaling,
            RopeScaling::LongRope {
                original_context: original,
                attention_factor: attention
            }
        );
    }
    for (key, value, reason) in [
        (
            "long_factor",
            serde_json::json!([1.0]),
            "8 positive numbers",
        ),
        (
            "long_factor",
            serde_json::json!(vec![-1.0; 8]),
            "`long_factor`",
        ),
        ("long_factor", serde_json::json!(null), "`long_factor`"),
        (
            "factor",
            serde_json::json!(4.0),
            "`factor` in `rope_scaling`",
        ),
        ("attention_factor", serde_json::json!(0.0), "makes no sense"),
        ("long_mscale", serde_json::json!(1.2), "`long_mscale`"),
        (
            "original_max_position_embeddings",
            serde_json::json!(null),
            "without `original_max_position_embeddings`",
        ),
    ] {
        let mut bent = scaling("longrope", 256);
        bent[key] = value;
        let refused = open(bent).unwrap_err().to_string();
        assert!(refused.contains(reason), "{key}: {refused}");
    }

    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/architectures");
    let golden = golden.join("phi3-longrope/model.gguf");
    let long = Manifest::open(&golden).unwrap();
    assert_eq!(read(&long, TensorRole::RopeFactors)[5], 9.0);
    let mut bent = Bent {
        bytes: std::fs::read(&golden).unwrap(),
    };
    let context = bent.after("phi3.context_length") + 4;
    bent = bent.put(context, &64u32.to_le_bytes());
    let path = folder.path().join("short.gguf");
    std::fs::write(&path, &bent.bytes).unwrap();
    let short = Manifest::open(&path).unwrap();
    assert_eq!(read(&short, TensorRole::RopeFactors)[5], 1.5);
    // What needs them, without them.
    let bent = bent.rename("rope_factors_short.weight", "rope_factors_long_.weight");
    std::fs::write(&path, &bent.bytes).unwrap();
    let refused = Manifest::open(&path).unwrap_err().to_string();
    assert!(refused.contains("`rope_factors_long_.weight`"), "{refused}");
}

#[test]
fn hostile_safetensors_are_refused() {
    let folder = TestFolder::new();
    let hf = folder.path().join("hf");
    let model = RandomModel::tiny(1);
    model.write_hf(&hf, DType::F32, 1).unwrap();
    let weights = hf.join("model.safetensors");
    let whole = std::fs::read(&weights).unwrap();
    let length = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let header = String::from_utf8(whole[8..8 + length].to_vec()).unwrap();
    let with = |header: &str| {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(&whole[8 + length..]);
        bytes
    };
    let bent = |from: &str, to: &str| {
        assert!(header.contains(from), "{from}");
        with(&header.replacen(from, to, 1))
    };
    let entry = r#""lm_head.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"#;
    let cases = [
        ("empty", Vec::new(), "cut short"),
        ("cut", whole[..whole.len() - 1].to_vec(), "beyond the end"),
        ("cut header", whole[..length].to_vec(), "cut short"),
        (
            "huge header",
            [&[0xff; 8], &whole[8..]].concat(),
            "claims a header",
        ),
        ("not JSON", with("{"), "not valid"),
        ("deep", with(&"[".repeat(100_000)), "not valid"),
        ("negative", bent("[0,", "[-1,"), "not valid"),
        ("type", bent("F32", "I8"), "`I8`"),
        (
            "twice",
            bent("{", &format!("{{{}{}", entry, entry)),
            "twice",
        ),
        ("overlap", bent("{", &format!("{{{entry}")), "overlap"),
        ("shape", bent("[96]", "[95]"), "does not fit"),
        (
            "overflow",
            bent("[96]", "[18446744073709551615,2]"),
            "absurd",
        ),
    ];
    for (case, bytes, reason) in cases {
        std::fs::write(&weights, bytes).unwrap();
        let refused = match Manifest::open(&hf) {
            Err(e) => e.to_string(),
            Ok(_) => panic!("{case}: was opened"),
        };
        assert!(refused.contains(reason), "{case}: {refused}");
    }

    // An index that points outside the folder, or at a tensor that is not there.
    std::fs::write(&weights, &whole).unwrap();
    let index = hf.join("model.safetensors.index.json");
    for (file, reason) in [
        ("../model.safetensors", "plain file name"),
        ("model.safetensors", "promises"),
    ] {
        std::fs::write(
            &index,
            format!(r#"{{"weight_map": {{"nothing": "{file}"}}}}"#),
        )
        .unwrap();
        let refused = Manifest::open(&hf).unwrap_err().to_string();
        assert!(refused.contains(reason), "{refused}");
    }
}

#[test]
fn random_damage_never_panics() {
    let whole = Bent::whole();
    let header = whole.after("blk.2.ffn_down.weight") + 64;
    let mut random = SplitMix(11);
    for _ in 0..3_000 {
        let mut bytes = whole.bytes.clone();
        for _ in 0..1 + random.below(4) {
            let at = random.below(header as u64) as usize;
            bytes[at] = random.next_u64() as u8;
        }
        // Only that it returns matters: some damage (a token's letter) is no error.
        let _ = Gguf::read(bytes.as_slice(), bytes.len() as u64, Path::new("damaged"));
    }
}

#[test]
fn missing_paths_and_folders_say_what_is_missing() {
    let folder = TestFolder::new();
    let missing = Manifest::open(&folder.path().join("none.gguf")).unwrap_err();
    assert!(missing.to_string().contains("no such file"));
    let empty = Manifest::open(folder.path()).unwrap_err();
    assert!(empty.to_string().contains("config.json"), "{empty}");
    assert_eq!(ggml_type_name(12), Some("Q4_K"));
    assert_eq!(ggml_type_name(30), Some("BF16"));
    assert_eq!(ggml_type_name(39), Some("MXFP4"));
}

/// The real model's header says what is known of it.
#[test]
fn smollm2_opens() {
    use crate::source::{ResolveOptions, resolve};
    let model = resolve("smollm2", &ResolveOptions::default(), &|_| {}).unwrap();
    let manifest = Manifest::open(&model.path).unwrap();
    let config = &manifest.config;
    assert_eq!(config.architecture, Architecture::Llama);
    assert_eq!(
        (config.layers, config.hidden, config.vocab),
        (30, 576, 49_152)
    );
    assert_eq!((config.heads, config.kv_heads, config.head_dim), (9, 3, 64));
    assert!(config.tied_embeddings);
    assert_eq!(manifest.column_unit(), 32);
    let two = manifest.shares(&[vec![1], vec![1]]).unwrap();
    assert_eq!(two[0].layers.len(), 22);
}
