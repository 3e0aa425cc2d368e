//! One layer's weights, and reading them.

use super::LoadError;
use crate::backend::{Backend, WeightView};
use crate::loader::{self, WeightFiles};
use crate::parallel::Abort;
use std::cell::Cell;
use trireme_shared::model::{Expert, Manifest, Mixture, RankShare, RopeDivisors, TensorRole};

/// A rank's part of a layer. What only some architectures have is optional.
pub(super) struct Layer<B: Backend> {
    /// Sees only the last tokens.
    pub(super) is_windowed: bool,
    pub(super) attn_norm: B::Vector,
    pub(super) query: B::Matrix,
    pub(super) key: B::Matrix,
    pub(super) value: B::Matrix,
    /// Of query, key and value.
    pub(super) biases: Option<[B::Vector; 3]>,
    /// Of each head of query and key.
    pub(super) head_norms: Option<[B::Vector; 2]>,
    pub(super) attn_output: B::Matrix,
    pub(super) attn_post_norm: Option<B::Vector>,
    pub(super) ffn_norm: B::Vector,
    pub(super) ffn: Ffn<B>,
    pub(super) ffn_post_norm: Option<B::Vector>,
}

pub(super) enum Ffn<B: Backend> {
    Dense { gate_up: B::Gated, down: B::Matrix },
    Mixture(B::Mixture),
}

impl<B: Backend> Layer<B> {
    pub(super) fn read(reader: &Reader<'_>, b: &mut B, l: u32) -> Result<Self, LoadError> {
        use TensorRole::*;
        let config = &reader.manifest.config;
        let architecture = config.architecture;
        let ffn_norm = reader.vector(b, FfnNorm(l))?;
        Ok(Self {
            is_windowed: config.is_windowed(l),
            attn_norm: reader.vector(b, AttnNorm(l))?,
            query: reader.matrix(b, Query(l))?,
            key: reader.matrix(b, Key(l))?,
            value: reader.matrix(b, Value(l))?,
            biases: if architecture.has_qkv_bias() {
                Some([
                    reader.vector(b, QueryBias(l))?,
                    reader.vector(b, KeyBias(l))?,
                    reader.vector(b, ValueBias(l))?,
                ])
            } else {
                None
            },
            head_norms: if architecture.has_head_norms() {
                Some([
                    reader.vector(b, QueryNorm(l))?,
                    reader.vector(b, KeyNorm(l))?,
                ])
            } else {
                None
            },
            attn_output: reader.matrix(b, AttnOutput(l))?,
            attn_post_norm: if architecture.is_gemma() {
                Some(reader.vector(b, AttnPostNorm(l))?)
            } else {
                None
            },
            ffn: match config.mixture {
                Some(mixture) => Ffn::Mixture(reader.mixture(b, l, mixture, &ffn_norm)?),
                None => Ffn::Dense {
                    gate_up: reader.gated(b, FfnGate(l), FfnUp(l))?,
                    down: reader.matrix(b, FfnDown(l))?,
                },
            },
            ffn_norm,
            ffn_post_norm: if architecture.is_gemma() {
                Some(reader.vector(b, FfnPostNorm(l))?)
            } else {
                None
            },
        })
    }
}

/// Reads a rank's tensors; counts bytes and looks at the abort flag before each.
pub(super) struct Reader<'a> {
    manifest: &'a Manifest,
    share: &'a RankShare,
    files: WeightFiles<'a>,
    abort: &'a Abort,
    progress: &'a (dyn Fn(u64, u64) + Sync),
    done: Cell<u64>,
    total: u64,
}

impl<'a> Reader<'a> {
    /// Opens the files, and tells `progress` (done, total) bytes: nothing yet.
    pub(super) fn new(
        manifest: &'a Manifest,
        share: &'a RankShare,
        abort: &'a Abort,
        progress: &'a (dyn Fn(u64, u64) + Sync),
    ) -> Result<Self, LoadError> {
        let mut total = 0;
        for role in loader::roles(manifest, share) {
            total += loader::part(manifest, share, role)?.bytes();
        }
        let reader = Self {
            manifest,
            share,
            files: WeightFiles::open(manifest)?,
            abort,
            progress,
            done: Cell::new(0),
            total,
        };
        progress(0, total);
        Ok(reader)
    }

    pub(super) fn read<T>(
        &self,
        role: TensorRole,
        pack: impl FnOnce(&WeightView<'_>) -> Result<T, LoadError>,
    ) -> Result<T, LoadError> {
        if self.abort.is_raised() {
            return Err(LoadError::Aborted);
        }
        let part = loader::part(self.manifest, self.share, role)?;
        let packed = pack(&self.files.view(&part)?)?;
        self.files.release(&part);
        self.done.set(self.done.get() + part.bytes());
        (self.progress)(self.done.get(), self.total);
        Ok(packed)
    }

    pub(super) fn matrix<B: Backend>(
        &self,
        backend: &mut B,
        role: TensorRole,
    ) -> Result<B::Matrix, LoadError> {
        self.read(role, |view| Ok(backend.matrix(view)?))
    }

    fn gated<B: Backend>(
        &self,
        backend: &mut B,
        gate: TensorRole,
        up: TensorRole,
    ) -> Result<B::Gated, LoadError> {
        self.read(gate, |gate| {
            self.read(up, |up| Ok(backend.gated(gate, up)?))
        })
    }

    /// This rank's experts of layer `l`, and the router of all.
    fn mixture<B: Backend>(
        &self,
        backend: &mut B,
        l: u32,
        mixture: Mixture,
        norm: &B::Vector,
    ) -> Result<B::Mixture, LoadError> {
        use TensorRole::*;
        let held = self.manifest.config.experts_in(self.share.ffn);
        let experts = (held.start..held.end).map(|e| {
            let e = Expert(e);
            let gate_up = self.gated(backend, ExpertGate(l, e), ExpertUp(l, e))?;
            Ok((gate_up, self.matrix(backend, ExpertDown(l, e))?))
        });
        let experts = experts.collect::<Result<Vec<_>, LoadError>>()?;
        self.read(Router(l), |router| {
            Ok(backend.mixture(mixture, router, norm, held, experts)?)
        })
    }

    pub(super) fn vector<B: Backend>(
        &self,
        backend: &mut B,
        role: TensorRole,
    ) -> Result<B::Vector, LoadError> {
        let offset = if role.is_norm() {
            self.manifest.config.norm_offset
        } else {
            0.0
        };
        self.read(role, |view| Ok(backend.vector(view, offset)?))
    }

    /// The divisors of RoPE's frequencies, where the model has them.
    pub(super) fn rope_divisors(&self) -> Result<Option<Vec<f32>>, LoadError> {
        match &self.manifest.config.rope_divisors {
            RopeDivisors::None => return Ok(None),
            RopeDivisors::Given(divisors) => return Ok(Some(divisors.clone())),
            RopeDivisors::Tensor => {}
        }
        let divisors = self.read(TensorRole::RopeFactors, |view| Ok(view.row_f32(0)))?;
        if let Some(odd) = divisors.iter().find(|d| !(d.is_finite() && **d > 0.0)) {
            return Err(LoadError::Unsupported(format!(
                "the file divides a RoPE frequency by {odd}: it is damaged"
            )));
        }
        Ok(Some(divisors))
    }
}
