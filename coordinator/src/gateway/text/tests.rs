//! The reference ids, round trips and streams.

use super::*;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::PathBuf;
use trireme_shared::model::DType;
use trireme_shared::model::random::{RandomModel, SplitMix};

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("trireme-text-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The real model, fetched as `cluster up` fetches it, into the same cache.
fn smollm2() -> ModelText {
    use trireme_shared::source::{ResolveOptions, resolve};
    let model = resolve("smollm2", &ResolveOptions::default(), &|_| {}).unwrap();
    ModelText::load(&model.path).unwrap()
}

fn golden(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    std::fs::read_to_string(root.join(name)).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

/// A made-up model's text, from its GGUF file and from its Hugging Face folder.
fn made_up(name: &str) -> [ModelText; 2] {
    let folder = Folder::new(name);
    let model = RandomModel::tiny(4);
    let gguf = folder.0.join("m.gguf");
    model.write_gguf(&gguf).unwrap();
    let hf = folder.0.join("hf");
    model.write_hf(&hf, DType::BF16, 1).unwrap();
    [&gguf, &hf].map(|path| ModelText::load(path).unwrap())
}

/// Any characters, the awkward ones often.
fn random_text(random: &mut SplitMix) -> String {
    let ranges = [
        (0x20, 0x7f),
        (0x00, 0x20),
        (0x80, 0x250),
        (0x300, 0x370),
        (0x600, 0x700),
        (0x4e00, 0x5000),
        (0x1f300, 0x1f700),
        (0x200b, 0x2010),
        (0xe000, 0xe010),
        (0x0, 0x11_0000),
    ];
    let length = random.below(80);
    (0..length)
        .filter_map(|_| {
            let (low, high) = ranges[random.below(ranges.len() as u64) as usize];
            char::from_u32(low + random.below(u64::from(high - low)) as u32)
        })
        .collect()
}

#[test]
fn every_reference_prompt_has_its_reference_ids() {
    let text = smollm2();
    for line in golden("smollm2.jsonl").lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        let (prompt, special) = match case["kind"].as_str() {
            Some("chat") => {
                let messages = case["messages"].as_array().unwrap();
                let rendered = text.render_chat(messages, true).unwrap();
                assert_eq!(rendered, case["rendered"].as_str().unwrap());
                (rendered, true)
            }
            _ => (case["prompt"].as_str().unwrap().to_owned(), false),
        };
        assert_eq!(
            text.encode(&prompt, special, true).unwrap(),
            ids(&case["prompt_tokens"])
        );
        assert_eq!(
            text.decode(&ids(&case["tokens"])),
            case["text"].as_str().unwrap()
        );
    }
    let passage: Value = serde_json::from_str(&golden("smollm2-perplexity.json")).unwrap();
    let encoded = text
        .encode(passage["text"].as_str().unwrap(), false, true)
        .unwrap();
    assert_eq!(encoded, ids(&passage["tokens"]));
    assert_eq!(text.stop_tokens(), [0, 2]);
    assert_eq!((text.vocab_size(), text.context()), (49_152, 8_192));
}

/// Bytes the vocabulary can write. SmolLM2's lacks 21: six control characters, and first bytes that
/// UTF-8 never uses or that only unassigned planes use. Its own tokeniser loses them too.
fn lone_bytes(text: &ModelText) -> BTreeSet<u8> {
    let all = (0..text.vocab_size()).map(|id| text.token_bytes(id));
    let known: BTreeSet<u8> = all.filter(|b| b.len() == 1).map(|b| b[0]).collect();
    assert!(known.len() >= 256 - 21, "{} bytes", known.len());
    known
}

#[test]
fn random_unicode_round_trips() {
    let mut models: Vec<ModelText> = made_up("unicode").into();
    models.push(smollm2());
    for text in &models {
        let mut random = SplitMix(21);
        let known = lone_bytes(text);
        for _ in 0..2_000 {
            let mut original = random_text(&mut random);
            original.retain(|c| c.to_string().bytes().all(|b| known.contains(&b)));
            let ids = text.encode(&original, false, false).unwrap();
            assert!(ids.iter().all(|id| *id < text.vocab_size()));
            assert_eq!(text.decode(&ids), original);
        }
    }
}

#[test]
fn a_stream_never_gives_half_a_character_and_ends_as_the_whole() {
    let mut models: Vec<ModelText> = made_up("stream").into();
    models.push(smollm2());
    for text in &models {
        let mut random = SplitMix(22);
        for round in 0..2_000 {
            // Real text, or any ids at all: their bytes often are no UTF-8.
            let ids = if round % 2 == 0 {
                text.encode(&random_text(&mut random), false, false)
                    .unwrap()
            } else {
                let vocab = u64::from(text.vocab_size());
                (0..random.below(40))
                    .map(|_| random.below(vocab) as u32)
                    .collect()
            };
            let bytes: Vec<u8> = ids
                .iter()
                .filter(|id| !text.pieces.is_special(**id))
                .flat_map(|id| text.token_bytes(*id))
                .collect();
            let mut stream = text.stream();
            let mut got = String::new();
            for id in &ids {
                got.push_str(&stream.push(*id));
                let whole = String::from_utf8_lossy(&bytes);
                assert!(whole.starts_with(&got));
            }
            got.push_str(&stream.finish());
            assert_eq!(got, String::from_utf8_lossy(&bytes));
            assert_eq!(got, text.decode(&ids));
        }
    }
}

#[test]
fn gguf_and_folder_give_the_same_ids_and_prompts() {
    let [gguf, folder] = made_up("same");
    let content = "Grüße <|im_end|> 1234\n";
    for special in [false, true] {
        let ids = gguf.encode(content, special, true).unwrap();
        assert_eq!(ids, folder.encode(content, special, true).unwrap());
        assert_eq!(ids.contains(&2), special);
    }
    let messages = [serde_json::json!({"role": "user", "content": "hi"})];
    let rendered = gguf.render_chat(&messages, true).unwrap();
    assert_eq!(
        rendered,
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    );
    assert_eq!(rendered, folder.render_chat(&messages, true).unwrap());
    for text in [&gguf, &folder] {
        assert_eq!(text.stop_tokens(), [0, 2]);
        assert_eq!((text.vocab_size(), text.context()), (272, 512));
        assert_eq!(text.decode(&[1, 3 + u32::from(b'a'), 2]), "a");
        assert_eq!(text.token_bytes(2), b"<|im_end|>");
        assert_eq!(text.token_bytes(3 + 0xff), [0xff]);
        assert!(text.token_bytes(u32::MAX).is_empty());
    }
}

#[test]
fn long_and_awkward_texts_are_encoded_without_panic() {
    let mut models: Vec<ModelText> = made_up("long").into();
    models.truncate(1);
    models.push(smollm2());
    for text in &models {
        for piece in [" ", "a", "\n", "1", "é", "<|im_start|>", "' "] {
            let long = piece.repeat(200_000 / piece.len());
            let ids = text.encode(&long, false, false).unwrap();
            assert_eq!(text.decode(&ids), long);
        }
    }
}

#[test]
fn a_model_without_its_words_is_refused_in_words() {
    let folder = Folder::new("none");
    let path = folder.0.join("m.gguf");
    let model = RandomModel {
        tokenizer: false,
        ..RandomModel::tiny(1)
    };
    model.write_gguf(&path).unwrap();
    let refused = ModelText::load(&path).err().unwrap().to_string();
    assert!(refused.contains("byte-level BPE"), "{refused}");
    let hf = folder.0.join("hf");
    model.write_hf(&hf, DType::F32, 1).unwrap();
    let refused = ModelText::load(&hf).err().unwrap().to_string();
    assert!(refused.contains("tokenizer.json"), "{refused}");
}
