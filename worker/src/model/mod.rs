//! The transformer, written once against `Backend`.
//!
//! A [`RankModel`] is one rank's share with its weights packed and its KV pages allocated. It knows
//! nothing of requests: the engine gives it a [`Batch`] and gets hidden states or logits back.
//! Neighbours: `loader` says which bytes of the files are this rank's, `backend` computes,
//! `parallel` sums over ranks.

mod batch;
mod layer;
mod rope;
mod transformer;

pub use batch::{Batch, SequenceSlice};

use crate::backend::BackendError;
use crate::backend::cpu::Cpu;
use crate::parallel::{Abort, Collective, LinkError};
pub(crate) use transformer::Transformer;
use trireme_shared::model::{ActivationFormat, KvFormat, Manifest, ModelConfig, RankShare};

/// How a rank runs on this machine.
#[derive(Clone, Debug)]
pub struct Runtime {
    /// Compute threads of this rank, the calling thread included.
    pub threads: usize,
    pub isa: crate::backend::Isa,
    pub kv_pages: usize,
    pub activations: ActivationFormat,
    pub kv: KvFormat,
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
    /// A defect of the caller, caught before it could reach memory.
    #[error("the batch is not valid: {0}")]
    Batch(String),
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
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error("loading was stopped")]
    Aborted,
}

/// One rank's share of a model, ready to run.
pub struct RankModel {
    inner: Transformer<Cpu>,
}

impl RankModel {
    /// Reads and packs exactly this share's bytes. `progress(done, total)` is called with bytes.
    pub fn load(
        manifest: &Manifest,
        share: &RankShare,
        runtime: &Runtime,
        progress: &(dyn Fn(u64, u64) + Sync),
        abort: &Abort,
    ) -> Result<Self, LoadError> {
        let backend = Cpu::new(runtime.isa, runtime.threads, runtime.activations)?;
        let kv = (runtime.kv_pages, runtime.kv);
        let inner = Transformer::load(backend, manifest, share, kv, progress, abort)?;
        Ok(Self { inner })
    }

    pub fn config(&self) -> &ModelConfig {
        self.inner.config()
    }

    pub fn share(&self) -> &RankShare {
        self.inner.share()
    }

    /// Runs `batch` through this rank's layers. `input` is `rows x hidden` from the previous stage,
    /// `None` on the first.
    ///
    /// After a `Link` error the epoch is over: ranks may disagree about what the KV cache holds.
    pub fn forward(
        &mut self,
        batch: &Batch,
        input: Option<&[f32]>,
        collective: &mut dyn Collective,
    ) -> Result<Forward<'_>, ForwardError> {
        self.inner.forward(batch, input, collective)
    }
}
