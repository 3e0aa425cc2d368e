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
    std::fs::read_to_string(golden_path(name)).unwrap()
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

fn golden_path(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join("../tests/golden").join(name)
}

/// SentencePiece vocabularies in GGUF files: Llama's, Phi-3's and Gemma's way.
const SENTENCE_PIECE: [&str; 3] = ["llama", "phi3", "gemma2"];

fn sentence_piece(name: &str) -> ModelText {
    ModelText::load(&golden_path(&format!("sentencepiece/{name}.gguf"))).unwrap()
}

/// One of each kind of vocabulary.
fn all_kinds(name: &str) -> Vec<ModelText> {
    let mut models: Vec<ModelText> = made_up(name).into();
    models.push(smollm2());
    models.extend(SENTENCE_PIECE.map(sentence_piece));
    models
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
    for text in &all_kinds("unicode") {
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
    for text in &all_kinds("stream") {
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
            let mut bytes: Vec<u8> = ids
                .iter()
                .filter(|id| !text.pieces.is_special(**id))
                .flat_map(|id| text.token_bytes(*id))
                .collect();
            if text.pieces.drops_first_space() && bytes.first() == Some(&b' ') {
                bytes.remove(0);
            }
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
    for text in &all_kinds("long")[1..] {
        for piece in [" ", "a", "\n", "1", "é", "<|im_start|>", "' "] {
            let long = piece.repeat(200_000 / piece.len());
            let ids = text.encode(&long, false, false).unwrap();
            assert_eq!(text.decode(&ids), long);
        }
    }
}

/// SentencePiece's own ids, and of texts with added tokens transformers' (tests/golden/sentencepiece).
#[test]
fn every_sentence_piece_vocabulary_has_its_reference_ids() {
    for name in SENTENCE_PIECE {
        let text = sentence_piece(name);
        let cases = golden(&format!("sentencepiece/{name}.jsonl"));
        assert!(cases.lines().count() > 250);
        for line in cases.lines() {
            let case: Value = serde_json::from_str(line).unwrap();
            let given = case["text"].as_str().unwrap();
            let plain = ids(&case["plain"]);
            assert_eq!(
                text.encode(given, false, false).unwrap(),
                plain,
                "{name}: {given:?}"
            );
            assert_eq!(
                text.encode(given, true, false).unwrap(),
                ids(&case["special"]),
                "{name}: {given:?} with its tokens"
            );
            assert_eq!(text.decode(&plain), case["decoded"].as_str().unwrap());
        }
    }
}

#[test]
fn a_sentence_piece_file_says_how_texts_begin_and_end() {
    let [llama, phi3, gemma2] = SENTENCE_PIECE.map(sentence_piece);
    for (text, before, ends, context) in [
        (&llama, &[1][..], &[2][..], 64),
        // Whatever it calls them, `</s>`, `<|end|>` and `<end_of_turn>` end a text.
        (&phi3, &[], &[2, 620, 622], 64),
        (&gemma2, &[2], &[1, 5], 64),
    ] {
        let mut wanted = before.to_vec();
        wanted.extend(text.encode("hello", true, false).unwrap());
        assert_eq!(text.encode("hello", true, true).unwrap(), wanted);
        assert_eq!(text.encode("", true, true).unwrap(), before);
        assert_eq!(text.stop_tokens(), ends);
        assert_eq!(text.context(), context);
    }
    let messages = [serde_json::json!({"role": "user", "content": "hi"})];
    assert_eq!(
        llama.render_chat(&messages, true).unwrap(),
        "<s>[INST] hi [/INST]"
    );

    // The keys that say so, turned round.
    let folder = Folder::new("framed");
    let path = folder.0.join("m.gguf");
    let mut bytes = std::fs::read(golden_path("sentencepiece/llama.gguf")).unwrap();
    for (key, value) in [("add_bos_token", 0), ("add_eos_token", 1)] {
        let at = after(&bytes, &format!("tokenizer.ggml.{key}"));
        bytes[at + 4] = value;
    }
    std::fs::write(&path, &bytes).unwrap();
    let turned = ModelText::load(&path).unwrap();
    let mut wanted = llama.encode("hello", true, false).unwrap();
    wanted.push(2);
    assert_eq!(turned.encode("hello", true, true).unwrap(), wanted);
}

/// Where `text` (with its length before it) ends in a GGUF file.
fn after(bytes: &[u8], text: &str) -> usize {
    let mut needle = (text.len() as u64).to_le_bytes().to_vec();
    needle.extend(text.as_bytes());
    let found = bytes.windows(needle.len()).position(|w| w == needle);
    found.unwrap_or_else(|| panic!("{text} is in the file")) + needle.len()
}

#[test]
fn a_damaged_sentence_piece_vocabulary_is_refused_by_name() {
    let whole = std::fs::read(golden_path("sentencepiece/llama.gguf")).unwrap();
    let at = |text: &str| after(&whole, text);
    let named = |from: &str, to: &str| {
        let mut bytes = whole.clone();
        let end = at(from);
        bytes[end - to.len()..end].copy_from_slice(to.as_bytes());
        bytes
    };
    // After a list's name stand its type, its elements' type and their count.
    let scores = at("tokenizer.ggml.scores") + 16;
    let types = at("tokenizer.ggml.token_type") + 16;
    let with = |at: usize, value: &[u8]| {
        let mut bytes = whole.clone();
        bytes[at..at + value.len()].copy_from_slice(value);
        bytes
    };
    let mut short = whole.clone();
    short[scores - 8..scores].copy_from_slice(&615u64.to_le_bytes());
    // So many that the tensors stay aligned.
    short.drain(scores..scores + 8 * 4);
    let mut long = whole.clone();
    let pad = at("[PAD2]");
    long[pad - 14..pad - 6].copy_from_slice(&(6 + 1_024u64).to_le_bytes());
    long.splice(pad..pad, [b'x'; 1_024]);
    let mut squeezed = whole.clone();
    let key = "tokenizer.ggml.remove_extra_whitespaces";
    let mut entry = (key.len() as u64).to_le_bytes().to_vec();
    entry.extend([key.as_bytes(), &7u32.to_le_bytes(), &[1]].concat());
    squeezed[16] += 1;
    squeezed.splice(24..24, entry);
    squeezed.extend([0; 64]);

    let folder = Folder::new("damaged");
    let path = folder.0.join("m.gguf");
    for (bytes, reason) in [
        (
            named("tokenizer.ggml.scores", "scoreX"),
            "lacks `tokenizer.ggml.scores`",
        ),
        (short, "623 tokens have 615 scores"),
        (
            with(scores + 4 * 300, &f32::NAN.to_le_bytes()),
            "the piece of token 300 has no finite score",
        ),
        (
            named("tokenizer.ggml.token_type", "typX"),
            "lacks the byte token <0x00>",
        ),
        (
            with(types + 4 * (3 + 0x41), &[3]),
            "lacks the byte token <0x41>",
        ),
        (named("<0x41>", "<0xZZ>"), "token 68 is of type byte"),
        (named("[PAD1]", "[PAD2]"), "token 622 is there twice"),
        (long, "token 622 is too long"),
        (squeezed, "remove_extra_whitespaces"),
        (
            with(at("tokenizer.ggml.model") + 4 + 8, b"bloom"),
            "of kind \"bloom\"",
        ),
    ] {
        std::fs::write(&path, &bytes).unwrap();
        let refused = ModelText::load(&path).err().expect(reason).to_string();
        assert!(refused.contains(reason), "{reason}: {refused}");
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
