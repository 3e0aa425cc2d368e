//! The tokeniser of a GGUF file, rebuilt from its vocabulary: byte-level BPE from its merges (kind
//! `gpt2`), SentencePiece's from its scores (kind `llama`).
//!
//! `tokenizer.ggml.pre` names how text is cut before byte-level merging; the patterns are those of
//! the models' own tokenizer.json files. One that is not known is refused: near-right ids make a
//! model worse in ways nobody notices. What a file leaves unsaid is what llama.cpp has in its code.

use super::pieces::{Pieces, Spelling, byte_of};
use super::sentence_piece::{Piece, SentencePiece};
use super::template::ChatTemplate;
use super::{END_TOKENS, Frame, Parts, TextError};
use std::path::Path;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer};
use trireme_shared::model::gguf::{Gguf, Metadata};
use trireme_shared::model::{Architecture, ManifestError};

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// What a token is (`tokenizer.ggml.token_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl Kind {
    fn new(number: i64, token: &str) -> Self {
        match number {
            2 => Self::Unknown,
            3 => Self::Control,
            // Some files call what ends a turn an ordinary word.
            4 if END_TOKENS.contains(&token) => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => Self::Normal,
        }
    }

    fn is_special(self) -> bool {
        matches!(self, Self::Unknown | Self::Control)
    }
}

/// What makes ids of text, and how they are written.
struct Scheme {
    tokenizer: Tokenizer,
    sentence_piece: Option<SentencePiece>,
    spelling: Spelling,
    /// Whether a text begins with a token for that, where the file does not say.
    adds_bos: bool,
    /// Ids of beginning, end and unknown, where the file does not say.
    ids: [Option<u32>; 3],
}

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
    let build = match kind {
        Some("gpt2") => byte_level,
        Some("llama") => sentence_piece,
        _ => {
            return Err(TextError::Tokenizer(format!(
                "{} has a tokeniser of kind {:?}; only `gpt2` (byte-level BPE) and `llama` \
                 (SentencePiece) can be built from a GGUF file. Use the model's Hugging Face folder",
                path.display(),
                kind.unwrap_or("(none)")
            )));
        }
    };
    let tokens = need(metadata.strings("tokenizer.ggml.tokens")?, "tokens")?;
    let types = match metadata.integers("tokenizer.ggml.token_type")? {
        Some(types) => same_length(types, tokens, "types")?,
        None => vec![1; tokens.len()],
    };
    let kinds = types.into_iter().zip(tokens);
    let kinds: Vec<Kind> = kinds.map(|(number, t)| Kind::new(number, t)).collect();
    let scheme = build(&metadata, tokens, &kinds)?;

    let id_of = |key: &str| -> Result<Option<u32>, ManifestError> {
        let id = metadata.unsigned(&format!("tokenizer.ggml.{key}_token_id"))?;
        let id = id.and_then(|id| u32::try_from(id).ok());
        Ok(id.filter(|id| (*id as usize) < tokens.len()))
    };
    let name_of = |id: Option<u32>| id.map(|id| tokens[id as usize].clone());
    let bos = id_of("bos")?.or(scheme.ids[0]);
    let eos = id_of("eos")?.or(scheme.ids[1]);
    let unknown = id_of("unknown")?.or(scheme.ids[2]);
    let padding = id_of("padding")?;
    let mut ends: Vec<u32> = eos.into_iter().collect();
    ends.extend(id_of("eot")?);
    ends.extend(id_of("eom")?);

    let mut pieces = Pieces::new(scheme.spelling);
    for (token, kind) in tokens.iter().zip(&kinds) {
        match kind {
            Kind::Normal | Kind::Byte => pieces.push(token),
            _ => pieces.push_literal(token, kind.is_special()),
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
    let adds = |key: &str| metadata.bool(&format!("tokenizer.ggml.add_{key}_token"));
    let adds_bos = adds("bos")?.unwrap_or(scheme.adds_bos);
    let adds_eos = adds("eos")?.unwrap_or(false);
    Ok(Parts {
        tokenizer: scheme.tokenizer,
        sentence_piece: scheme.sentence_piece,
        frame: Frame::Ids {
            before: bos.filter(|_| adds_bos),
            after: eos.filter(|_| adds_eos),
        },
        pieces,
        template,
        ends,
    })
}

fn need<T>(found: Option<T>, name: &str) -> Result<T, TextError> {
    found.ok_or_else(|| TextError::Tokenizer(format!("the file lacks `tokenizer.ggml.{name}`")))
}

fn same_length<T>(list: Vec<T>, tokens: &[String], what: &str) -> Result<Vec<T>, TextError> {
    if list.len() == tokens.len() {
        return Ok(list);
    }
    Err(TextError::Tokenizer(format!(
        "{} tokens have {} {what}",
        tokens.len(),
        list.len()
    )))
}

fn byte_level(metadata: &Metadata, tokens: &[String], kinds: &[Kind]) -> Result<Scheme, TextError> {
    let cut = cut(metadata.string("tokenizer.ggml.pre")?)?;
    let merges = need(metadata.strings("tokenizer.ggml.merges")?, "merges")?;
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
    let vocab = tokens.iter().cloned().zip(0..).collect();
    let tokenizer = tokenizer(vocab, merges, cut.ignore_merges, added(tokens, kinds))?;
    Ok(Scheme {
        tokenizer: with_cut(tokenizer, &cut),
        sentence_piece: None,
        spelling: Spelling::ByteLevel,
        adds_bos: cut.bos,
        ids: [None; 3],
    })
}

fn sentence_piece(
    metadata: &Metadata,
    tokens: &[String],
    kinds: &[Kind],
) -> Result<Scheme, TextError> {
    // Vocabularies of this kind are known to take text as it is.
    let squeezes = metadata.bool("tokenizer.ggml.remove_extra_whitespaces")?;
    let maps = metadata.get("tokenizer.ggml.precompiled_charsmap");
    if squeezes == Some(true) || maps.is_some() {
        let key = if maps.is_some() {
            "precompiled_charsmap"
        } else {
            "remove_extra_whitespaces"
        };
        return Err(TextError::Tokenizer(format!(
            "the file sets `tokenizer.ggml.{key}`, which is not supported; use the model's Hugging \
             Face folder"
        )));
    }
    let scores = need(metadata.floats("tokenizer.ggml.scores")?, "scores")?;
    let scores = same_length(scores, tokens, "scores")?;
    let mut bytes = [None; 256];
    let mut pieces = Vec::new();
    for (id, ((token, kind), score)) in (0..).zip(tokens.iter().zip(kinds).zip(scores)) {
        match (kind, byte_of(token)) {
            (Kind::Byte, Some(byte)) => bytes[usize::from(byte)] = Some(id),
            (Kind::Byte, None) => {
                return Err(TextError::Tokenizer(format!(
                    "token {id} is of type byte, but not written as one is"
                )));
            }
            (Kind::Normal | Kind::Unused, _) if !token.is_empty() => {
                let piece = Piece {
                    id,
                    score: score as f32,
                    is_unused: *kind == Kind::Unused,
                };
                pieces.push((token.clone(), piece));
            }
            _ => {}
        }
    }
    let mut byte_ids = [0; 256];
    for (byte, (found, id)) in bytes.into_iter().zip(&mut byte_ids).enumerate() {
        *id = found.ok_or_else(|| {
            TextError::Tokenizer(format!(
                "the vocabulary lacks the byte token <0x{byte:02X}>, which texts outside it need"
            ))
        })?;
    }
    let space_prefix = metadata.bool("tokenizer.ggml.add_space_prefix")?;
    let space_prefix = space_prefix.unwrap_or(true);

    let mut added = added(tokens, kinds);
    if metadata.string("general.architecture")? == Architecture::Phi3.gguf_name() {
        // Phi-3's own added tokens take the white space after them, and no key tells.
        for (_, token) in &mut added {
            let ends_texts = ["<unk>", "<s>", "<|endoftext|>"].contains(&token.content.as_str());
            token.rstrip = !ends_texts;
        }
    }
    let vocab = added.iter().map(|(id, t)| (t.content.clone(), *id));
    Ok(Scheme {
        tokenizer: tokenizer(vocab.collect(), Merges::new(), false, added)?,
        sentence_piece: Some(SentencePiece::new(pieces, byte_ids, space_prefix)?),
        spelling: Spelling::SentencePiece {
            drop_first_space: space_prefix,
        },
        adds_bos: true,
        ids: [1, 2, 0].map(|id: u32| Some(id).filter(|id| (*id as usize) < tokens.len())),
    })
}

/// The tokens that are found in a text as a whole, with their ids.
fn added(tokens: &[String], kinds: &[Kind]) -> Vec<(u32, AddedToken)> {
    let all = (0..).zip(tokens.iter().zip(kinds));
    let added = all.filter(|(_, (_, kind))| kind.is_special() || **kind == Kind::UserDefined);
    added
        .map(|(id, (token, kind))| {
            let token = AddedToken::from(token.clone(), kind.is_special());
            (id, token.normalized(false))
        })
        .collect()
}

fn tokenizer(
    vocab: Vocab,
    merges: Merges,
    ignore_merges: bool,
    added: Vec<(u32, AddedToken)>,
) -> Result<Tokenizer, TextError> {
    // No unknown token: bytes that a vocabulary lacks (SmolLM2 has some) are left out, as llama.cpp
    // does. The unknown token of most files is end-of-text, which no user's text should put in.
    let builder = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .ignore_merges(ignore_merges);
    let bpe = builder
        .build()
        .map_err(|e| TextError::Tokenizer(e.to_string()))?;
    let mut tokenizer = Tokenizer::new(bpe);
    let added = added.into_iter().map(|(_, token)| token);
    let (special, plain): (Vec<_>, Vec<_>) = added.partition(|token| token.special);
    tokenizer.add_special_tokens(&special);
    tokenizer.add_tokens(&plain);
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
