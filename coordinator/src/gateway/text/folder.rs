//! The tokeniser of a Hugging Face folder: tokenizer.json and the files beside it.

use super::pieces::{Pieces, Spelling};
use super::template::ChatTemplate;
use super::{Frame, Parts, TextError};
use serde_json::Value;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use tokenizers::Tokenizer;
use trireme_shared::limits;

pub(super) fn read(folder: &Path) -> Result<Parts, TextError> {
    let text = file(&folder.join("tokenizer.json"))?.ok_or_else(|| {
        TextError::Tokenizer(format!(
            "{} has no tokenizer.json; fetch it beside the weights",
            folder.display()
        ))
    })?;
    let failed = |e: &dyn std::fmt::Display| TextError::Tokenizer(format!("tokenizer.json: {e}"));
    let mut tokenizer = Tokenizer::from_bytes(&text).map_err(|e| failed(&e))?;
    // Some files carry the cut and padding their authors trained with.
    tokenizer.with_truncation(None).map_err(|e| failed(&e))?;
    tokenizer.with_padding(None);
    let description: Value = serde_json::from_slice(&text).map_err(|e| failed(&e))?;
    let spelling = spelling(&description["decoder"])?;

    let added = tokenizer.get_added_tokens_decoder();
    let mut words = vec![None; tokenizer.get_vocab_size(true)];
    for (word, id) in tokenizer.get_vocab(true) {
        let id = id as usize;
        if id >= limits::MODEL_VOCAB_MAX as usize {
            return Err(failed(&format_args!("it has the token id {id}")));
        }
        if id >= words.len() {
            words.resize(id + 1, None);
        }
        words[id] = Some(word);
    }
    let mut pieces = Pieces::new(spelling);
    for (id, word) in (0u32..).zip(&words) {
        match (added.get(&id), word) {
            (Some(token), _) => pieces.push_literal(&token.content, token.special),
            (None, Some(word)) => pieces.push(word),
            (None, None) => pieces.push_literal("", false),
        }
    }

    let settings = json(&folder.join("tokenizer_config.json"))?;
    let mut ends = Vec::new();
    for name in ["generation_config.json", "config.json"] {
        match &json(&folder.join(name))?["eos_token_id"] {
            Value::Array(list) => ends.extend(list.iter().filter_map(id)),
            value => ends.extend(id(value)),
        }
    }
    if let Some(eos) = token_name(&settings["eos_token"]) {
        ends.extend(tokenizer.token_to_id(&eos));
    }

    let template = match file(&folder.join("chat_template.jinja"))? {
        Some(text) => Some(
            String::from_utf8(text)
                .map_err(|_| TextError::Template("chat_template.jinja is not UTF-8".into()))?,
        ),
        None => template_of(&settings["chat_template"]),
    };
    let template = template
        .map(|source| {
            let mut template = ChatTemplate::new(&source)?;
            for name in ["bos_token", "eos_token", "unk_token", "pad_token"] {
                template.name_token(name, token_name(&settings[name]));
            }
            Ok::<_, TextError>(template)
        })
        .transpose()?;
    Ok(Parts {
        tokenizer,
        sentence_piece: None,
        frame: Frame::PostProcessor,
        pieces,
        template,
        ends,
    })
}

/// How the vocabulary writes bytes, from the tokenizer.json's decoder.
fn spelling(decoder: &Value) -> Result<Spelling, TextError> {
    let none = Vec::new();
    let parts: Vec<&Value> = match decoder["type"].as_str() {
        Some("Sequence") => decoder["decoders"]
            .as_array()
            .unwrap_or(&none)
            .iter()
            .collect(),
        _ => vec![decoder],
    };
    let has = |kind: &str| parts.iter().any(|part| part["type"] == kind);
    if has("ByteLevel") {
        Ok(Spelling::ByteLevel)
    } else if has("ByteFallback") || has("Metaspace") {
        Ok(Spelling::SentencePiece {
            drop_first_space: has("Strip") || has("Metaspace"),
        })
    } else {
        let kind = &decoder["type"];
        Err(TextError::Tokenizer(format!(
            "its decoder {kind} is not supported (ByteLevel and SentencePiece's are)"
        )))
    }
}

/// A chat template is one text, or a list of named ones.
fn template_of(setting: &Value) -> Option<String> {
    match setting {
        Value::String(text) => Some(text.clone()),
        Value::Array(list) => {
            let named = list.iter().find(|item| item["name"] == "default");
            named?["template"].as_str().map(str::to_owned)
        }
        _ => None,
    }
}

/// A token's name is a text, or an object that holds it.
fn token_name(setting: &Value) -> Option<String> {
    let name = setting.as_str().or_else(|| setting["content"].as_str());
    name.map(str::to_owned)
}

fn id(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok()
}

fn json(path: &Path) -> Result<Value, TextError> {
    let Some(text) = file(path)? else {
        return Ok(Value::Null);
    };
    serde_json::from_slice(&text)
        .map_err(|e| TextError::Tokenizer(format!("{}: {e}", path.display())))
}

/// A file's bytes, `None` where there is none.
fn file(path: &Path) -> Result<Option<Vec<u8>>, TextError> {
    let failed =
        |e: &dyn std::fmt::Display| TextError::Tokenizer(format!("{}: {e}", path.display()));
    let input = match File::open(path) {
        Ok(input) => input,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(&e)),
    };
    let mut text = Vec::new();
    input
        .take(limits::MODEL_JSON_BYTES_MAX + 1)
        .read_to_end(&mut text)
        .map_err(|e| failed(&e))?;
    if text.len() as u64 > limits::MODEL_JSON_BYTES_MAX {
        return Err(failed(&"it is too large"));
    }
    Ok(Some(text))
}
