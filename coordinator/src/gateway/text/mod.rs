//! A model's words: tokeniser, chat template, streaming detokeniser.
//!
//! Keeps true: ids are those of the model's own tokeniser (GGUF vocabularies are rebuilt as the
//! original's), every id has bytes, and text decoded in pieces equals text decoded at once.
//! `gguf` and `folder` read the two kinds of model; `sentence_piece` encodes where the tokenizers
//! crate would not do it exactly; `pieces` holds what each id stands for; `template` renders chats;
//! `stream` decodes a stream. Nothing here logs text.

mod folder;
mod gguf;
mod pieces;
mod sentence_piece;
mod stream;
mod template;

pub use stream::StreamDecoder;

use pieces::Pieces;
use sentence_piece::SentencePiece;
use std::path::Path;
use template::ChatTemplate;
use tokenizers::Tokenizer;
use trireme_shared::model::{Manifest, ManifestError};

#[derive(Debug, thiserror::Error)]
pub enum TextError {
    #[error("the tokeniser cannot be built: {0}")]
    Tokenizer(String),
    #[error("the chat template failed: {0}")]
    Template(String),
    #[error("this model has no chat template: use /v1/completions")]
    NoTemplate,
    #[error(transparent)]
    Model(#[from] ManifestError),
}

/// Tokeniser and template of one model. Immutable; share it with `Arc`.
pub struct ModelText {
    /// Takes special tokens in the text for what they are.
    special: Tokenizer,
    /// Takes them for ordinary text.
    plain: Tokenizer,
    /// Encodes what stands between added tokens, where those two only find them.
    sentence_piece: Option<SentencePiece>,
    frame: Frame,
    pieces: Pieces,
    template: Option<ChatTemplate>,
    stop_tokens: Vec<u32>,
    vocab_size: u32,
    context: u32,
}

/// How the tokens come to a text that say where it begins and ends.
enum Frame {
    /// These are put there.
    Ids {
        before: Option<u32>,
        after: Option<u32>,
    },
    /// The tokeniser's own post-processor knows.
    PostProcessor,
}

/// What the two readers hand over.
struct Parts {
    tokenizer: Tokenizer,
    sentence_piece: Option<SentencePiece>,
    frame: Frame,
    pieces: Pieces,
    template: Option<ChatTemplate>,
    /// Ids the model's files name as ends.
    ends: Vec<u32>,
}

/// Tokens that end a turn or a text in the vocabularies we know, whatever the model's files say:
/// files often name only one of them.
const END_TOKENS: [&str; 9] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|end|>",
    "<end_of_turn>",
    "<|eot|>",
    "</s>",
];

impl ModelText {
    /// From a resolved model: a .gguf file or a Hugging Face folder.
    pub fn load(model: &Path) -> Result<Self, TextError> {
        let config = Manifest::open(model)?.config;
        let parts = if model.is_dir() {
            folder::read(model)?
        } else {
            gguf::read(model)?
        };
        let mut stop_tokens = parts.ends;
        for name in END_TOKENS {
            stop_tokens.extend(parts.pieces.special_named(name));
        }
        stop_tokens.retain(|id| *id < config.vocab);
        stop_tokens.sort_unstable();
        stop_tokens.dedup();

        let special = parts.tokenizer;
        let mut plain = special.clone();
        plain.set_encode_special_tokens(true);
        Ok(Self {
            special,
            plain,
            sentence_piece: parts.sentence_piece,
            frame: parts.frame,
            pieces: parts.pieces,
            template: parts.template,
            stop_tokens,
            vocab_size: config.vocab,
            context: config.context,
        })
    }

    /// Ids of `text`. Special tokens written in the text are recognised only if `special`.
    /// `frame` adds the beginning- and the end-of-sequence token where the model asks for them.
    pub fn encode(&self, text: &str, special: bool, frame: bool) -> Result<Vec<u32>, TextError> {
        let tokenizer = if special { &self.special } else { &self.plain };
        let (before, after) = match self.frame {
            Frame::Ids { before, after } if frame => (before, after),
            _ => (None, None),
        };
        let mut ids: Vec<u32> = before.into_iter().collect();
        match &self.sentence_piece {
            Some(pieces) => pieces.encode(tokenizer.get_added_vocabulary(), text, &mut ids),
            None => {
                let process = frame && matches!(self.frame, Frame::PostProcessor);
                let encoding = tokenizer
                    .encode_fast(text, process)
                    .map_err(|e| TextError::Tokenizer(e.to_string()))?;
                ids.extend_from_slice(encoding.get_ids());
            }
        }
        ids.extend(after);
        Ok(ids)
    }

    /// The whole text of some ids; special tokens are left out.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut stream = self.stream();
        let mut text = String::new();
        ids.iter().for_each(|id| text.push_str(&stream.push(*id)));
        text.push_str(&stream.finish());
        text
    }

    /// The bytes one id stands for (not always valid UTF-8 alone); special tokens give their name.
    /// Empty for an id beyond the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        self.pieces.bytes(id).to_vec()
    }

    /// The prompt for these messages (OpenAI's JSON objects, content already text). The template
    /// writes the beginning-of-sequence token itself: encode the result with `special`, not `frame`.
    pub fn render_chat(
        &self,
        messages: &[serde_json::Value],
        add_generation_prompt: bool,
    ) -> Result<String, TextError> {
        let template = self.template.as_ref().ok_or(TextError::NoTemplate)?;
        template.render(messages, add_generation_prompt)
    }

    /// Tokens that end a turn or text, ascending.
    pub fn stop_tokens(&self) -> &[u32] {
        &self.stop_tokens
    }

    /// Rows of the embedding matrix: every valid id is below it.
    pub fn vocab_size(&self) -> u32 {
        self.vocab_size
    }

    /// The model's trained context, in tokens.
    pub fn context(&self) -> u32 {
        self.context
    }

    /// A decoder for one stream.
    pub fn stream(&self) -> StreamDecoder<'_> {
        StreamDecoder::new(&self.pieces)
    }
}

#[cfg(test)]
mod tests;
