//! Writes models with random weights, for tests and benches: any shape and storage type, in both
//! file formats, the same numbers for the same seed.
//!
//! Keeps true: `write_gguf` and `write_hf` of one `RandomModel` hold the same model. Weights are
//! rounded to `dtype` once; the Hugging Face folder holds those rounded values (exactly in F32), in
//! its own row order of Q and K.

use super::byte_level::byte_to_char;
use super::config::{
    Activation, Architecture, Mixture, ModelConfig, Rope, RopeDivisors, RopeScaling, RopeStyle,
};
use super::gguf::ggml_type_number;
use super::roles::{Shape, TensorRole, expected};
use super::{DType, blocks, gguf_model, hf};
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

const GGUF_ALIGNMENT: u64 = 32;

/// Special tokens of the byte-level vocabulary, ids 0, 1 and 2; the 256 bytes follow.
pub const SPECIAL_TOKENS: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

/// ChatML, as the vocabulary's special tokens suggest.
pub const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] \
    + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt \
    %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// A model to make up. Start from [`RandomModel::tiny`] and change what the test is about.
#[derive(Clone, Debug)]
pub struct RandomModel {
    pub layers: u32,
    pub hidden: u32,
    pub heads: u32,
    pub kv_heads: u32,
    pub head_dim: u32,
    /// Of a mixture, of all its experts.
    pub ffn: u32,
    pub mixture: Option<Mixture>,
    pub vocab: u32,
    pub context: u32,
    pub rope_theta: f32,
    pub tied_embeddings: bool,
    /// Storage of the layers' matrices. Norms are F32.
    pub dtype: DType,
    /// Storage of the embedding and output matrices.
    pub embedding_dtype: DType,
    /// With a byte-level vocabulary and a chat template, so that a gateway can serve it. Needs a
    /// vocabulary of at least 259.
    pub tokenizer: bool,
    pub seed: u64,
}

impl RandomModel {
    /// Some 200,000 weights: 3 layers, 6 heads in 3 groups, tied embeddings, F32.
    pub fn tiny(seed: u64) -> Self {
        Self {
            layers: 3,
            hidden: 96,
            heads: 6,
            kv_heads: 3,
            head_dim: 16,
            ffn: 160,
            mixture: None,
            vocab: 272,
            context: 512,
            rope_theta: 10_000.0,
            tied_embeddings: true,
            dtype: DType::F32,
            embedding_dtype: DType::F32,
            tokenizer: true,
            seed,
        }
    }

    /// The configuration its GGUF file opens with.
    pub fn config(&self) -> ModelConfig {
        ModelConfig {
            architecture: Architecture::Llama,
            layers: self.layers,
            hidden: self.hidden,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            ffn: self.ffn,
            mixture: self.mixture,
            vocab: self.vocab,
            context: self.context,
            rope: Rope {
                theta: self.rope_theta,
                dims: self.head_dim,
                style: RopeStyle::Interleaved,
                scaling: RopeScaling::None,
            },
            rope_divisors: RopeDivisors::None,
            window: None,
            norm_eps: 1e-5,
            norm_offset: 0.0,
            embedding_scale: 1.0,
            attention_scale: 1.0 / (self.head_dim as f32).sqrt(),
            score_cap: None,
            logit_cap: None,
            activation: Activation::Silu,
            tied_embeddings: self.tied_embeddings,
        }
    }

    /// The rounded weights of one tensor, `rows x columns`, in Hugging Face's row order.
    pub fn weights(&self, role: TensorRole) -> Vec<f32> {
        blocks::decode(self.dtype_of(role), &self.stored(role))
    }

    /// The same as a GGUF file stores them, but for the order of rows.
    fn stored(&self, role: TensorRole) -> Vec<u8> {
        let Some((place, (_, rows, columns))) = expected(&self.config())
            .enumerate()
            .find(|(_, (r, ..))| *r == role)
        else {
            return Vec::new();
        };
        let mut random = SplitMix(self.seed ^ (place as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let count = (rows * columns) as usize;
        let dtype = self.dtype_of(role);
        let values: Vec<f32> = if role.is_norm() {
            (0..count).map(|_| 1.0 + 0.2 * random.uniform()).collect()
        } else {
            // Variance 1/columns keeps activations near 1; logits get a spread of about 3, so that
            // the best token usually stands out.
            let spread = if role.layer().is_some() { 1.0 } else { 3.0 };
            let scale = spread * (3.0 / columns as f32).sqrt();
            (0..count).map(|_| scale * random.uniform()).collect()
        };
        let mut bytes = Vec::new();
        blocks::encode(dtype, &values, &mut bytes);
        bytes
    }

    fn dtype_of(&self, role: TensorRole) -> DType {
        match role {
            // llama.cpp quantises no router.
            _ if role.is_norm() || matches!(role, TensorRole::Router(_)) => DType::F32,
            TensorRole::Embedding | TensorRole::Output => self.embedding_dtype,
            _ => self.dtype,
        }
    }

    /// Columns of the FFN, or of each expert.
    fn expert_ffn(&self) -> u32 {
        self.config().expert_ffn().unwrap_or(self.ffn)
    }

    /// Whose layout of tensors the folder has.
    fn hf_architecture(&self) -> Architecture {
        match self.mixture {
            Some(_) => Architecture::Mixtral,
            None => Architecture::Llama,
        }
    }

    fn check(&self) -> io::Result<()> {
        for (role, _, columns) in expected(&self.config()) {
            if self.dtype_of(role).bytes_of(columns).is_none() {
                return Err(io::Error::other(format!(
                    "{role:?} has {columns} columns, not whole blocks of {:?}",
                    self.dtype_of(role)
                )));
            }
        }
        if self.tokenizer && (self.vocab as usize) < 256 + SPECIAL_TOKENS.len() {
            return Err(io::Error::other("a byte vocabulary needs 259 tokens"));
        }
        Ok(())
    }

    fn tokens(&self) -> Vec<String> {
        let special = SPECIAL_TOKENS.iter().map(|s| (*s).to_owned());
        let bytes = (0..=255).map(|b| byte_to_char(b).to_string());
        let spare = (259..self.vocab).map(|n| format!("<unused_{n}>"));
        special.chain(bytes).chain(spare).collect()
    }

    /// Writes the model as one GGUF file of version 3.
    pub fn write_gguf(&self, path: &Path) -> io::Result<()> {
        self.check()?;
        let mut header = GgufHeader::default();
        header.string("general.architecture", "llama");
        header.string("general.name", "Random");
        header.u32("llama.block_count", self.layers);
        header.u32("llama.context_length", self.context);
        header.u32("llama.embedding_length", self.hidden);
        header.u32("llama.feed_forward_length", self.expert_ffn());
        if let Some(mixture) = self.mixture {
            header.u32("llama.expert_count", mixture.experts);
            header.u32("llama.expert_used_count", mixture.used);
        }
        header.u32("llama.attention.head_count", self.heads);
        header.u32("llama.attention.head_count_kv", self.kv_heads);
        header.u32("llama.attention.key_length", self.head_dim);
        header.u32("llama.attention.value_length", self.head_dim);
        header.u32("llama.rope.dimension_count", self.head_dim);
        header.u32("llama.vocab_size", self.vocab);
        header.f32("llama.rope.freq_base", self.rope_theta);
        header.f32("llama.attention.layer_norm_rms_epsilon", 1e-5);
        if self.tokenizer {
            let tokens = self.tokens();
            let kinds = (0..tokens.len()).map(|i| match i {
                0..3 => 3,
                3..259 => 1,
                _ => 5,
            });
            header.string("tokenizer.ggml.model", "gpt2");
            header.string("tokenizer.ggml.pre", "gpt-2");
            header.strings("tokenizer.ggml.tokens", &tokens);
            header.i32s("tokenizer.ggml.token_type", &kinds.collect::<Vec<i32>>());
            header.strings("tokenizer.ggml.merges", &[]);
            header.u32("tokenizer.ggml.bos_token_id", 1);
            header.u32("tokenizer.ggml.eos_token_id", 2);
            header.bool("tokenizer.ggml.add_bos_token", false);
            header.string("tokenizer.chat_template", CHAT_TEMPLATE);
        }

        let mut out = BufWriter::new(File::create(path)?);
        let mut index = Vec::new();
        let mut offset = 0u64;
        let mut count = 0u64;
        let shapes: Vec<Shape> = expected(&self.config()).collect();
        let config = self.config();
        let name = |shape: &Shape| gguf_model::name(shape.0, &config);
        // A layer's experts are one tensor.
        let tensors = || shapes.chunk_by(|a, b| name(a) == name(b));
        for tensor in tensors() {
            let (role, rows, columns) = tensor[0];
            let dtype = self.dtype_of(role);
            push_string(&mut index, &name(&tensor[0]));
            let dims = if role.is_norm() {
                vec![columns]
            } else if role.expert().is_some() {
                vec![columns, rows, tensor.len() as u64]
            } else {
                vec![columns, rows]
            };
            index.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|d| index.extend(d.to_le_bytes()));
            index.extend(ggml_type_number(dtype).to_le_bytes());
            index.extend(offset.to_le_bytes());
            let elements = dims.iter().product();
            let bytes = dtype.bytes_of(elements).unwrap_or(0);
            offset = (offset + bytes).next_multiple_of(GGUF_ALIGNMENT);
            count += 1;
        }
        out.write_all(b"GGUF")?;
        out.write_all(&3u32.to_le_bytes())?;
        out.write_all(&count.to_le_bytes())?;
        out.write_all(&header.count.to_le_bytes())?;
        out.write_all(&header.bytes)?;
        out.write_all(&index)?;
        pad(&mut out, 24 + (header.bytes.len() + index.len()) as u64)?;
        for tensor in tensors() {
            let mut written = 0;
            for &(role, _, columns) in tensor {
                let mut bytes = self.stored(role);
                if matches!(role, TensorRole::Query(_) | TensorRole::Key(_)) {
                    let row_bytes = self.dtype_of(role).bytes_of(columns).unwrap_or(0) as usize;
                    bytes = interleave(&bytes, row_bytes, self.head_dim as usize);
                }
                out.write_all(&bytes)?;
                written += bytes.len() as u64;
            }
            pad(&mut out, written)?;
        }
        out.flush()
    }

    /// Writes the model as a Hugging Face folder, its weights stored as `store` (F32, F16 or BF16)
    /// in `shards` files.
    pub fn write_hf(&self, folder: &Path, store: DType, shards: usize) -> io::Result<()> {
        self.check()?;
        std::fs::create_dir_all(folder)?;
        let (class, model_type) = self.hf_architecture().hf_names();
        let mut config = json!({
            "architectures": [class], "model_type": model_type,
            "hidden_size": self.hidden, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim, "intermediate_size": self.expert_ffn(),
            "vocab_size": self.vocab, "max_position_embeddings": self.context,
            "rms_norm_eps": 1e-5, "rope_theta": self.rope_theta, "hidden_act": "silu",
            "tie_word_embeddings": self.tied_embeddings, "rope_scaling": null,
            "bos_token_id": 1, "eos_token_id": 2,
        });
        if let Some(mixture) = self.mixture {
            config["num_local_experts"] = mixture.experts.into();
            config["num_experts_per_tok"] = mixture.used.into();
        }
        write_json(&folder.join("config.json"), &config)?;
        if self.tokenizer {
            self.write_hf_tokenizer(folder)?;
        }
        let roles: Vec<TensorRole> = expected(&self.config()).map(|(role, ..)| role).collect();
        let shards = shards.clamp(1, roles.len());
        let mut weight_map = Map::new();
        for (index, part) in roles.chunks(roles.len().div_ceil(shards)).enumerate() {
            let file = match shards {
                1 => "model.safetensors".to_owned(),
                _ => format!("model-{:05}-of-{shards:05}.safetensors", index + 1),
            };
            for role in part {
                let name = hf::name(*role, self.hf_architecture());
                weight_map.insert(name, Value::from(file.clone()));
            }
            self.write_safetensors(&folder.join(file), part, store)?;
        }
        if shards > 1 {
            let index = json!({"metadata": {}, "weight_map": weight_map});
            write_json(&folder.join("model.safetensors.index.json"), &index)?;
        }
        Ok(())
    }

    fn write_safetensors(&self, path: &Path, roles: &[TensorRole], store: DType) -> io::Result<()> {
        let mut header = Map::new();
        let mut data = Vec::new();
        let shapes: Vec<_> = expected(&self.config()).collect();
        for (role, rows, columns) in shapes.into_iter().filter(|(r, ..)| roles.contains(r)) {
            let begin = data.len();
            blocks::encode(store, &self.weights(role), &mut data);
            let shape = if role.is_norm() {
                vec![columns]
            } else {
                vec![rows, columns]
            };
            let entry = json!({
                "dtype": format!("{store:?}"), "shape": shape, "data_offsets": [begin, data.len()],
            });
            header.insert(hf::name(role, self.hf_architecture()), entry);
        }
        let header = serde_json::to_vec(&Value::Object(header))?;
        let mut out = BufWriter::new(File::create(path)?);
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        out.write_all(&data)?;
        out.flush()
    }

    fn write_hf_tokenizer(&self, folder: &Path) -> io::Result<()> {
        let tokens = self.tokens();
        let added: Vec<Value> = tokens
            .iter()
            .enumerate()
            .filter(|(i, _)| !(3..259).contains(i))
            .map(|(id, content)| {
                json!({
                    "id": id, "content": content, "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": false, "special": true,
                })
            })
            .collect();
        let vocab: Map<String, Value> = tokens
            .iter()
            .enumerate()
            .map(|(i, t)| (t.clone(), i.into()))
            .collect();
        let byte_level = json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
        });
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
            "normalizer": null, "pre_tokenizer": byte_level, "post_processor": null,
            "decoder": byte_level,
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null,
                "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
                "byte_fallback": false, "vocab": vocab, "merges": [],
            },
        });
        write_json(&folder.join("tokenizer.json"), &tokenizer)?;
        let config = json!({
            "bos_token": SPECIAL_TOKENS[1], "eos_token": SPECIAL_TOKENS[2],
            "chat_template": CHAT_TEMPLATE, "add_bos_token": false,
        });
        write_json(&folder.join("tokenizer_config.json"), &config)?;
        write_json(
            &folder.join("generation_config.json"),
            &json!({"eos_token_id": [2, 0]}),
        )
    }
}

/// Hugging Face's order of a head's rows (all first halves of the rotated pairs, then all second
/// ones) to GGUF's (pair by pair), as llama.cpp's converter does.
fn interleave(rows: &[u8], row_bytes: usize, head_dim: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(rows.len());
    for head in rows.chunks_exact(head_dim * row_bytes) {
        for pair in 0..head_dim / 2 {
            for half in 0..2 {
                let row = half * head_dim / 2 + pair;
                out.extend_from_slice(&head[row * row_bytes..(row + 1) * row_bytes]);
            }
        }
    }
    out
}

fn write_json(path: &Path, value: &Value) -> io::Result<()> {
    std::fs::write(path, serde_json::to_vec_pretty(value)?)
}

fn pad(out: &mut impl Write, written: u64) -> io::Result<()> {
    let zeros = written.next_multiple_of(GGUF_ALIGNMENT) - written;
    out.write_all(&[0; GGUF_ALIGNMENT as usize][..zeros as usize])
}

fn push_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// Metadata being written.
#[derive(Default)]
struct GgufHeader {
    bytes: Vec<u8>,
    count: u64,
}

impl GgufHeader {
    fn key(&mut self, key: &str, kind: u32) {
        push_string(&mut self.bytes, key);
        self.bytes.extend(kind.to_le_bytes());
        self.count += 1;
    }
    fn u32(&mut self, key: &str, value: u32) {
        self.key(key, 4);
        self.bytes.extend(value.to_le_bytes());
    }
    fn f32(&mut self, key: &str, value: f32) {
        self.key(key, 6);
        self.bytes.extend(value.to_le_bytes());
    }
    fn bool(&mut self, key: &str, value: bool) {
        self.key(key, 7);
        self.bytes.push(value.into());
    }
    fn string(&mut self, key: &str, value: &str) {
        self.key(key, 8);
        push_string(&mut self.bytes, value);
    }
    fn list(&mut self, key: &str, kind: u32, count: usize) {
        self.key(key, 9);
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend((count as u64).to_le_bytes());
    }
    fn strings(&mut self, key: &str, values: &[String]) {
        self.list(key, 8, values.len());
        values.iter().for_each(|v| push_string(&mut self.bytes, v));
    }
    fn i32s(&mut self, key: &str, values: &[i32]) {
        self.list(key, 5, values.len());
        values
            .iter()
            .for_each(|v| self.bytes.extend(v.to_le_bytes()));
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014): enough for test weights, the same everywhere.
pub struct SplitMix(pub u64);

impl SplitMix {
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Evenly in -1..1.
    pub fn uniform(&mut self) -> f32 {
        (self.next_u64() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// Evenly in 0..bound (the bias is below 2^-32 for bounds under 2^32).
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound.max(1)
    }
}
