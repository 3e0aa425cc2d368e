//! The transformer, written once against `Backend`.
//!
//! A [`RankModel`] is one rank's share with its weights packed and its KV pages allocated. It knows
//! nothing of requests: the engine gives it a [`Batch`] and gets hidden states or logits back.

use crate::parallel::{Abort, Collective, LinkError};
use trireme_shared::model::{Manifest, ModelConfig, RankShare};

/// Rows of one step, flattened over sequences. Row counts are in tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Token id of each row.
    pub tokens: Vec<u32>,
    pub sequences: Vec<SequenceSlice>,
    /// Rows whose logits are wanted, ascending.
    pub outputs: Vec<u32>,
}

/// One sequence's rows in a batch: `len` rows from `first`, at positions `context..context + len`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SequenceSlice {
    pub first: u32,
    pub len: u32,
    /// Tokens of this sequence already in the KV cache.
    pub context: u32,
    /// Physical KV pages in order, enough for `context + len` tokens.
    pub pages: Vec<u32>,
}

/// How a rank runs on this machine.
#[derive(Clone, Debug)]
pub struct Runtime {
    /// Compute threads of this rank, the calling thread included.
    pub threads: usize,
    pub isa: crate::backend::Isa,
    pub kv_pages: usize,
}

/// What a forward pass leaves on this rank.
pub enum Forward<'a> {
    /// Not the last stage: `rows x hidden`, equal on every rank of the stage.
    Hidden(&'a [f32]),
    /// Last stage: `outputs x vocab span of this rank`, row-major.
    Logits(&'a [f32]),
}

#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    #[error(transparent)]
    Link(#[from] LinkError),
}

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("cannot read {path}: {source}")]
    Io {
        path: String,
        source: std::io::Error,
    },
    #[error("the model cannot be loaded: {0}")]
    Unsupported(String),
    #[error("loading was stopped")]
    Aborted,
}

/// One rank's share of a model, ready to run.
pub struct RankModel {}

impl RankModel {
    /// Reads and packs exactly this share's bytes. `progress(done, total)` is called with bytes.
    pub fn load(
        _manifest: &Manifest,
        _share: &RankShare,
        _runtime: &Runtime,
        _progress: &(dyn Fn(u64, u64) + Sync),
        _abort: &Abort,
    ) -> Result<Self, LoadError> {
        Err(LoadError::Unsupported("not built yet".into()))
    }

    pub fn config(&self) -> &ModelConfig {
        unreachable!()
    }

    pub fn share(&self) -> &RankShare {
        unreachable!()
    }

    /// Runs `batch` through this rank's layers. `input` is `rows x hidden` from the previous stage,
    /// `None` on the first.
    pub fn forward(
        &mut self,
        _batch: &Batch,
        _input: Option<&[f32]>,
        _collective: &mut dyn Collective,
    ) -> Result<Forward<'_>, ForwardError> {
        unreachable!()
    }
}
