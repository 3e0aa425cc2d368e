//! A model's words: tokeniser, chat template, streaming detokeniser.

use std::path::Path;

#[derive(Debug, thiserror::Error)]
pub enum TextError {
    #[error("the tokeniser cannot be built: {0}")]
    Tokenizer(String),
    #[error("the chat template failed: {0}")]
    Template(String),
    #[error("this model has no chat template: use /v1/completions")]
    NoTemplate,
}

/// Tokeniser and template of one model. Immutable; share it with `Arc`.
pub struct ModelText {}

impl ModelText {
    /// From a resolved model: a .gguf file or a Hugging Face folder.
    pub fn load(_model: &Path) -> Result<Self, TextError> {
        Err(TextError::Tokenizer("not built yet".into()))
    }
    /// Ids of `text`. Special tokens written in the text are recognised only if `special`.
    /// `bos` adds the beginning-of-sequence token where the model asks for one.
    pub fn encode(&self, _text: &str, _special: bool, _bos: bool) -> Result<Vec<u32>, TextError> {
        unreachable!()
    }
    /// The whole text of some ids; special tokens are left out.
    pub fn decode(&self, _ids: &[u32]) -> String {
        unreachable!()
    }
    /// The bytes one id stands for (not always valid UTF-8 alone); special tokens give their name.
    pub fn token_bytes(&self, _id: u32) -> Vec<u8> {
        unreachable!()
    }
    /// The prompt for these messages (OpenAI's JSON objects, content already text).
    pub fn render_chat(
        &self,
        _messages: &[serde_json::Value],
        _add_generation_prompt: bool,
    ) -> Result<String, TextError> {
        unreachable!()
    }
    /// Tokens that end a turn or text.
    pub fn stop_tokens(&self) -> &[u32] {
        unreachable!()
    }
    pub fn vocab_size(&self) -> u32 {
        unreachable!()
    }
    /// The model's trained context, in tokens.
    pub fn context(&self) -> u32 {
        unreachable!()
    }
    /// A decoder for one stream.
    pub fn stream(&self) -> StreamDecoder<'_> {
        unreachable!()
    }
}

/// Turns a stream of ids into text without ever emitting half a character. `push` returns the text
/// that became certain; `finish` what is left (U+FFFD for bytes that never became a character).
pub struct StreamDecoder<'a> {
    _text: &'a ModelText,
}

impl StreamDecoder<'_> {
    pub fn push(&mut self, _id: u32) -> String {
        unreachable!()
    }
    pub fn finish(self) -> String {
        unreachable!()
    }
}
