//! The tokeniser of a GGUF file, rebuilt from its vocabulary and merges.
//!
//! `tokenizer.ggml.pre` names how text is cut before merging; the patterns are those of the models'
//! own tokenizer.json files. One that is not known is refused: near-right ids make a model worse in
//! ways nobody notices.

use super::pieces::{Pieces, Spelling};
use super::template::ChatTemplate;
use super::{Bos, Parts, TextError};
use std::path::Path;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer};
use trireme_shared::model::ManifestError;
use trireme_shared::model::gguf::{Gguf, Metadata};

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Token types of `tokenizer.ggml.token_type`.
const TYPE_UNKNOWN: i64 = 2;
const TYPE_CONTROL: i64 = 3;
const TYPE_USER_DEFINED: i64 = 4;
const TYPE_UNUSED: i64 = 5;

/// What a `tokenizer.ggml.pre` stands for.
struct Cut {
    pre_tokenizer: PreTokenizerWrapper,
    compose: bool,
    ignore_merges: bool,
    bos: bool,
}

pub(super) fn read(path: &Path) -> Result<Parts, TextError> {
    let metadata = Gguf::open(path)?.metadata;
    let kind = metadata.string("tokenizer.ggml.model")?;
    if kind != Some("gpt2") {
        return Err(TextError::Tokenizer(format!(
            "{} has a tokeniser of kind {:?}; only `gpt2` (byte-level BPE) can be built from a GGUF \
             file. Use the model's Hugging Face folder",
            path.display(),
            kind.unwrap_or("(none)")
        )));
    }
    let tokens = need(&metadata, "tokenizer.ggml.tokens")?;
    let merges = need(&metadata, "tokenizer.ggml.merges")?;
    let types = metadata.integers("tokenizer.ggml.token_type")?;
    if let Some(types) = &types
        && types.len() != tokens.len()
    {
        return Err(TextError::Tokenizer(format!(
            "{} tokens have {} types",
            tokens.len(),
            types.len()
        )));
    }
    let type_of = |id: usize| types.as_ref().map_or(1, |types| types[id]);
    let cut = cut(metadata.string("tokenizer.ggml.pre")?)?;

    let id_of = |key: &str| -> Result<Option<u32>, ManifestError> {
        let id = metadata
            .unsigned(key)?
            .and_then(|id| u32::try_from(id).ok());
        Ok(id.filter(|id| (*id as usize) < tokens.len()))
    };
    let name_of = |id: Option<u32>| id.map(|id| tokens[id as usize].clone());
    let bos = id_of("tokenizer.ggml.bos_token_id")?;
    let eos = id_of("tokenizer.ggml.eos_token_id")?;
    let unknown = id_of("tokenizer.ggml.unknown_token_id")?;
    let padding = id_of("tokenizer.ggml.padding_token_id")?;
    let mut ends: Vec<u32> = eos.into_iter().collect();
    ends.extend(id_of("tokenizer.ggml.eot_token_id")?);
    ends.extend(id_of("tokenizer.ggml.eom_token_id")?);

    let tokenizer = build(tokens, merges, type_of, cut.ignore_merges)?;
    let tokenizer = with_cut(tokenizer, &cut);
    let mut pieces = Pieces::new(Spelling::ByteLevel);
    for (id, token) in tokens.iter().enumerate() {
        match type_of(id) {
            TYPE_UNKNOWN | TYPE_CONTROL => pieces.push_literal(token, true),
            TYPE_USER_DEFINED | TYPE_UNUSED => pieces.push_literal(token, false),
            _ => pieces.push(token),
        }
    }
    let template = metadata
        .string("tokenizer.chat_template")?
        .map(|source| {
            let mut template = ChatTemplate::new(source)?;
            template.name_token("bos_token", name_of(bos));
            template.name_token("eos_token", name_of(eos));
            template.name_token("unk_token", name_of(unknown));
            template.name_token("pad_token", name_of(padding));
            Ok::<_, TextError>(template)
        })
        .transpose()?;
    let add_bos = metadata
        .bool("tokenizer.ggml.add_bos_token")?
        .unwrap_or(cut.bos);
    Ok(Parts {
        tokenizer,
        bos: bos.filter(|_| add_bos).map_or(Bos::None, Bos::Id),
        pieces,
        template,
        ends,
    })
}

fn need<'a>(metadata: &'a Metadata, key: &str) -> Result<&'a [String], TextError> {
    let list = metadata.strings(key)?;
    list.ok_or_else(|| TextError::Tokenizer(format!("the file lacks `{key}`")))
}

fn build(
    tokens: &[String],
    merges: &[String],
    type_of: impl Fn(usize) -> i64,
    ignore_merges: bool,
) -> Result<Tokenizer, TextError> {
    let vocab: Vocab = tokens.iter().cloned().zip(0..).collect();
    let merges: Merges = merges
        .iter()
        .map(|merge| {
            let pair = merge.split_once(' ');
            let (a, b) = pair.ok_or_else(|| {
                TextError::Tokenizer(format!("the merge {merge:?} is not two tokens"))
            })?;
            Ok((a.to_owned(), b.to_owned()))
        })
        .collect::<Result<_, TextError>>()?;
    // No unknown token: bytes that a vocabulary lacks (SmolLM2 has some) are left out, as llama.cpp
    // does. The unknown token of most files is end-of-text, which no user's text should put in.
    let builder = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .ignore_merges(ignore_merges);
    let bpe = builder
        .build()
        .map_err(|e| TextError::Tokenizer(e.to_string()))?;
    let mut tokenizer = Tokenizer::new(bpe);
    let of_type = |special: bool| -> Vec<AddedToken> {
        let wanted = |id: &usize| match type_of(*id) {
            TYPE_UNKNOWN | TYPE_CONTROL => special,
            TYPE_USER_DEFINED => !special,
            _ => false,
        };
        let ids = (0..tokens.len()).filter(wanted);
        ids.map(|id| AddedToken::from(tokens[id].clone(), special).normalized(false))
            .collect()
    };
    tokenizer.add_special_tokens(&of_type(true));
    tokenizer.add_tokens(&of_type(false));
    Ok(tokenizer)
}

fn with_cut(mut tokenizer: Tokenizer, cut: &Cut) -> Tokenizer {
    tokenizer.with_pre_tokenizer(Some(cut.pre_tokenizer.clone()));
    if cut.compose {
        tokenizer.with_normalizer(Some(NFC));
    }
    tokenizer
}

fn cut(pre: Option<&str>) -> Result<Cut, TextError> {
    let gpt2 = ByteLevel::new(false, true, true);
    let bytes_only = ByteLevel::new(false, true, false);
    let by_pattern = |pattern: &str| -> Result<PreTokenizerWrapper, TextError> {
        let pattern = SplitPattern::Regex(pattern.to_owned());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
            .map_err(|e| TextError::Tokenizer(e.to_string()))?;
        Ok(Sequence::new(vec![split.into(), bytes_only.into()]).into())
    };
    let plain = |pre_tokenizer: PreTokenizerWrapper| Cut {
        pre_tokenizer,
        compose: false,
        ignore_merges: false,
        bos: false,
    };
    match pre {
        None | Some("gpt-2" | "gpt2" | "default") => Ok(plain(gpt2.into())),
        Some("smollm") => {
            let digits = Digits::new(true);
            let parts = vec![digits.into(), gpt2.into()];
            Ok(plain(Sequence::new(parts).into()))
        }
        Some("llama-bpe" | "llama3" | "llama-v3") => Ok(Cut {
            ignore_merges: true,
            bos: true,
            ..plain(by_pattern(LLAMA3)?)
        }),
        Some("qwen2") => Ok(Cut {
            compose: true,
            ..plain(by_pattern(QWEN2)?)
        }),
        Some(other) => Err(TextError::Tokenizer(format!(
            "it cuts text by `{other}`, which is not known here (smollm, gpt-2, llama-bpe and qwen2 \
             are); use the model's Hugging Face folder"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    fn pieces(pre: &str, text: &str) -> Vec<String> {
        let mut string = PreTokenizedString::from(text);
        cut(Some(pre))
            .unwrap()
            .pre_tokenizer
            .pre_tokenize(&mut string)
            .unwrap();
        let splits = string.get_splits(OffsetReferential::Original, OffsetType::Byte);
        splits
            .into_iter()
            .map(|(_, at, _)| text[at.0..at.1].to_owned())
            .collect()
    }

    #[test]
    fn each_known_way_cuts_numbers_spaces_and_endings_as_its_models_do() {
        let text = "I'LL pay 1234  euros\n\n ok";
        assert_eq!(
            pieces("smollm", text),
            [
                "I", "'", "LL", " pay", " ", "1", "2", "3", "4", " ", " euros", "\n\n", " ok"
            ]
        );
        assert_eq!(
            pieces("gpt-2", text),
            [
                "I", "'", "LL", " pay", " 1234", " ", " euros", "\n\n", " ok"
            ]
        );
        assert_eq!(
            pieces("llama-bpe", text),
            [
                "I", "'LL", " pay", " ", "123", "4", " ", " euros", "\n\n", " ok"
            ]
        );
        assert_eq!(
            pieces("qwen2", text),
            [
                "I", "'LL", " pay", " ", "1", "2", "3", "4", " ", " euros", "\n\n", " ok"
            ]
        );
        assert!(cut(Some("tekken")).is_err_and(|e| e.to_string().contains("`tekken`")));
    }
}
