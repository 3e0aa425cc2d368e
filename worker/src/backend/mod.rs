//! Where the arithmetic runs.
//!
//! The model is written once against [`Backend`], whose operations are a layer's parts rather than
//! single kernels, so that a backend can fuse and place them as suits it. [`cpu`] is the one that
//! always exists.

pub mod cpu;
pub mod weights;

pub use weights::WeightView;

use crate::model::SequenceSlice;
use trireme_shared::model::{Activation, ActivationFormat, KvFormat, Mixture, Rope, Span};

/// Which CPU kernels run. Detected at start; each can be forced (`--isa`), and tests force each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Plain Rust the compiler vectorises (also the path on ARM).
    Portable,
    /// AVX2 + FMA + F16C.
    Avx2,
    /// AVX-512 F/BW/VL + VNNI.
    Avx512Vnni,
    /// The same, and AMX tiles of bf16 for products of several rows.
    Amx,
}

impl Isa {
    /// Every path, best first.
    pub const ALL: [Self; 4] = [Self::Amx, Self::Avx512Vnni, Self::Avx2, Self::Portable];

    /// Whether this machine can run it.
    pub fn available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => {
                Self::Avx2.available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            Self::Amx => Self::Avx512Vnni.available() && cpu::amx_available(),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// The best this machine has: of those it can run the first, AMX only where it is measured to
    /// be faster.
    pub fn detect() -> Self {
        Self::ALL
            .into_iter()
            .find(|&isa| {
                isa.available()
                    && (isa != Self::Amx || cpu::amx_rows_min(ActivationFormat::Int16).is_some())
            })
            .unwrap_or(Self::Portable)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512Vnni => "avx512-vnni",
            Self::Amx => "amx",
        }
    }
}

/// Why a backend could not take weights or memory.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    #[error("{0}")]
    Unsupported(String),
    #[error(
        "out of memory for {what} ({bytes} bytes): {source}; offer less memory or another split"
    )]
    Memory {
        what: &'static str,
        bytes: usize,
        source: std::io::Error,
    },
    #[error("cannot start compute threads: {0}")]
    Threads(std::io::Error),
}

/// The shape of a rank's KV cache. Pages hold `limits::PAGE_TOKENS` tokens of every layer and head.
#[derive(Clone, Copy, Debug)]
pub struct KvShape {
    pub layers: usize,
    pub pages: usize,
    /// KV heads of this rank.
    pub heads: usize,
    pub head_dim: usize,
    pub format: KvFormat,
}

/// What a step's operations need to know of its rows and of the kind of layer: checked by the model
/// against the KV shape, so that kernels need not.
#[derive(Clone, Copy)]
pub struct Step<'a> {
    /// Slices in order of `first`, covering every row once.
    pub sequences: &'a [SequenceSlice],
    /// Per row, `rope.dims / 2` cosines and as many sines.
    pub cosines: &'a [f32],
    pub sines: &'a [f32],
    pub rope: Rope,
    /// Query heads per KV head.
    pub group: usize,
    /// What the product of a query and a key is multiplied by.
    pub scale: f32,
    /// Scores become `cap * tanh(score / cap)`.
    pub score_cap: Option<f32>,
    /// Tokens a query sees, its own included (at least one); all if none.
    pub window: Option<usize>,
}

/// RMS norms of each head, before it is rotated: `head_dim` weights each.
pub struct HeadNorms<'a, V> {
    pub query: &'a V,
    pub key: &'a V,
    pub eps: f32,
}

/// What goes into a mixture of experts.
pub struct MixtureInput<'a, R> {
    /// The hidden state, by which experts are chosen.
    pub x: &'a R,
    /// Of its norm.
    pub eps: f32,
    /// `x`, normalised: what the experts get.
    pub normed: &'a mut R,
}

/// Layer-sized operations. Matrices are `[outputs, inputs]`; activations are rows of f32.
///
/// Operations are called by one thread, in order; shapes that do not fit each other are a defect
/// of the caller and panic.
pub trait Backend {
    type Matrix;
    /// Gate and up projections of a gated FFN, of equal shape.
    type Gated;
    /// A mixture's router, and one rank's experts.
    type Mixture;
    type Vector;
    /// `rows x width` of f32, resized by the operation that fills it.
    type Rows;
    /// `rows x width` of f64: one rank's part of a sum over ranks. Wide, so that however the parts
    /// are cut and added, the sum rounds to the same f32 (but for one case in some hundred million).
    type Partial;
    type Kv;

    fn matrix(&mut self, view: &WeightView<'_>) -> Result<Self::Matrix, BackendError>;
    fn gated(
        &mut self,
        gate: &WeightView<'_>,
        up: &WeightView<'_>,
    ) -> Result<Self::Gated, BackendError>;
    /// `router` is `[experts, hidden]` of the whole mixture, `norm` the weights of the norm before it;
    /// of the experts `held` are given, each gate and up and then down.
    fn mixture(
        &mut self,
        mixture: Mixture,
        router: &WeightView<'_>,
        norm: &Self::Vector,
        held: Span,
        experts: Vec<(Self::Gated, Self::Matrix)>,
    ) -> Result<Self::Mixture, BackendError>;
    /// All of the view's values, each with `offset` added.
    fn vector(&mut self, view: &WeightView<'_>, offset: f32) -> Result<Self::Vector, BackendError>;
    fn kv(&mut self, shape: KvShape) -> Result<Self::Kv, BackendError>;
    /// An empty buffer.
    fn rows(&self) -> Self::Rows;
    fn partial(&self) -> Self::Partial;

    /// Fills `out` from the host.
    fn upload(&mut self, values: &[f32], width: usize, out: &mut Self::Rows);
    /// The values on the host, to exchange with other ranks in place.
    fn values<'a>(&mut self, rows: &'a mut Self::Rows) -> &'a mut [f32];
    fn partial_values<'a>(&mut self, partial: &'a mut Self::Partial) -> &'a mut [f64];

    /// Row `token - vocab.start` of `table` for each token inside `vocab`, zeroes for the others.
    fn embed(&mut self, table: &Self::Matrix, vocab: Span, tokens: &[u32], out: &mut Self::Partial);
    /// `out = x / rms(x) * weight`
    fn rms_norm(&mut self, x: &Self::Rows, weight: &Self::Vector, eps: f32, out: &mut Self::Rows);
    /// `out_i = x * matrix_i^T`, of one input, together.
    fn linear(&mut self, x: &mut Self::Rows, outputs: &mut [(&Self::Matrix, &mut Self::Rows)]);
    /// `out = x * matrix^T`, where `matrix` holds some of the columns and other ranks the others.
    /// Sums are f32 over each `segment` columns (counted from the matrix's first), f64 over those.
    fn linear_partial(
        &mut self,
        x: &mut Self::Rows,
        matrix: &Self::Matrix,
        segment: usize,
        out: &mut Self::Partial,
    );
    /// `sum += x * matrix^T`, where `matrix` holds all columns: as [`Backend::linear_partial`] and then
    /// [`Backend::add`], to the last bit.
    fn linear_add(
        &mut self,
        x: &mut Self::Rows,
        matrix: &Self::Matrix,
        segment: usize,
        sum: &mut Self::Rows,
    );
    /// `x += bias`, on every row.
    fn add_bias(&mut self, x: &mut Self::Rows, bias: &Self::Vector);
    /// Normalises the heads of `q` and `k` where there are norms, rotates `q` in place and writes
    /// rotated `k`, and `v`, into their sequences' pages.
    #[allow(clippy::too_many_arguments)]
    fn rope_append(
        &mut self,
        step: &Step<'_>,
        norms: Option<HeadNorms<'_, Self::Vector>>,
        q: &mut Self::Rows,
        k: &Self::Rows,
        v: &Self::Rows,
        kv: &mut Self::Kv,
        layer: usize,
    );
    /// Causal attention of each row's query heads over its sequence so far, or the last of it.
    fn attention(
        &mut self,
        step: &Step<'_>,
        q: &Self::Rows,
        kv: &Self::Kv,
        layer: usize,
        out: &mut Self::Rows,
    );
    /// `out = activation(x * gate^T) * (x * up^T)`
    fn gated_ffn(
        &mut self,
        x: &mut Self::Rows,
        weights: &Self::Gated,
        activation: Activation,
        out: &mut Self::Rows,
    );
    /// The sum over a row's experts, as far as this rank holds them, of `weight * down(activation(gate)
    /// * up)`, with sums over segments as in `linear_partial`.
    ///
    /// Which experts a row has, and their weights, come out the same on every rank that has the same
    /// `x`, whichever its instruction set: each must be computed by one rank.
    fn mixture_ffn(
        &mut self,
        input: MixtureInput<'_, Self::Rows>,
        weights: &Self::Mixture,
        activation: Activation,
        segment: usize,
        out: &mut Self::Partial,
    );
    /// `out = partial`, rounded to f32, times `scale`.
    fn round(&mut self, partial: &Self::Partial, scale: f32, out: &mut Self::Rows);
    /// `x += delta`, delta rounded to f32.
    fn add(&mut self, x: &mut Self::Rows, delta: &Self::Partial);
    /// `x += delta`
    fn add_rows(&mut self, x: &mut Self::Rows, delta: &Self::Rows);
    /// Every value x becomes `cap * tanh(x / cap)`.
    fn soft_cap(&mut self, x: &mut Self::Rows, cap: f32);
    /// `out` becomes the rows of `x` named by `rows`.
    fn select(&mut self, x: &Self::Rows, rows: &[u32], out: &mut Self::Rows);
}
