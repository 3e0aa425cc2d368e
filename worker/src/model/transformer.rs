//! One rank's share of a Llama-shaped decoder, on any backend.
//!
//! Tensor parallelism: every rank of a stage holds the same hidden state. Each computes its heads'
//! and its FFN columns' contribution; the contributions are all-reduced and then added to the
//! residual, twice a layer. Contributions are f64, and cut where every split may cut, so that a
//! split changes no token: an 8-bit activation next to a rounding edge would otherwise turn the
//! last bit of an f32 sum into a different word. The embedding is split by vocabulary: tokens
//! outside a rank's span contribute zero.

use super::batch::Batch;
use super::rope::RopeTable;
use super::{Forward, ForwardError, LoadError};
use crate::backend::{Backend, KvShape, Step, WeightView};
use crate::loader::{self, TensorPart, WeightFiles};
use crate::parallel::{Abort, Collective, LinkError};
use std::cell::Cell;
use trireme_shared::model::partition::FFN_SEGMENT;
use trireme_shared::model::{Manifest, ModelConfig, RankShare, TensorRole};

struct Layer<B: Backend> {
    attn_norm: B::Vector,
    query: B::Matrix,
    key: B::Matrix,
    value: B::Matrix,
    attn_output: B::Matrix,
    ffn_norm: B::Vector,
    gate_up: B::Gated,
    ffn_down: B::Matrix,
}

/// The output matrix.
enum Output<B: Backend> {
    /// The embedding, which this rank has.
    Embedding,
    Own(B::Matrix),
}

/// Activations of a step, kept from step to step.
struct Scratch<B: Backend> {
    /// The hidden state: `rows x hidden`.
    x: B::Rows,
    normed: B::Rows,
    q: B::Rows,
    k: B::Rows,
    v: B::Rows,
    attended: B::Rows,
    ffn: B::Rows,
    /// A rank's contribution, then the sum of all.
    delta: B::Partial,
    selected: B::Rows,
    logits: B::Rows,
}

pub(super) struct Transformer<B: Backend> {
    backend: B,
    config: ModelConfig,
    share: RankShare,
    kv_pages: usize,
    embedding: Option<B::Matrix>,
    layers: Vec<Layer<B>>,
    /// Final norm and output matrix, on the last stage.
    head: Option<(B::Vector, Output<B>)>,
    kv: B::Kv,
    rope: RopeTable,
    scratch: Scratch<B>,
}

/// Counts bytes and looks at the abort flag before each tensor.
struct Reader<'a> {
    manifest: &'a Manifest,
    share: &'a RankShare,
    files: WeightFiles<'a>,
    abort: &'a Abort,
    progress: &'a (dyn Fn(u64, u64) + Sync),
    done: Cell<u64>,
    total: u64,
}

impl Reader<'_> {
    fn read<T>(
        &self,
        role: TensorRole,
        pack: impl FnOnce(&WeightView<'_>) -> Result<T, LoadError>,
    ) -> Result<T, LoadError> {
        if self.abort.is_raised() {
            return Err(LoadError::Aborted);
        }
        let part = loader::part(self.manifest, self.share, role)?;
        let packed = pack(&self.files.view(&part)?)?;
        self.done.set(self.done.get() + part.bytes());
        (self.progress)(self.done.get(), self.total);
        Ok(packed)
    }
}

impl<B: Backend> Transformer<B> {
    pub(super) fn load(
        mut backend: B,
        manifest: &Manifest,
        share: &RankShare,
        kv_pages: usize,
        progress: &(dyn Fn(u64, u64) + Sync),
        abort: &Abort,
    ) -> Result<Self, LoadError> {
        let config = manifest.config.clone();
        check_shape(&config, share)?;
        let parts: Vec<TensorPart> = loader::roles(manifest, share)
            .into_iter()
            .map(|role| loader::part(manifest, share, role))
            .collect::<Result<_, _>>()?;
        let reader = Reader {
            manifest,
            share,
            files: WeightFiles::open(manifest)?,
            abort,
            progress,
            done: Cell::new(0),
            total: parts.iter().map(TensorPart::bytes).sum(),
        };
        progress(0, reader.total);

        let b = &mut backend;
        let embedding = if share.is_first_stage() {
            Some(reader.read(TensorRole::Embedding, |v| Ok(b.matrix(v)?))?)
        } else {
            None
        };
        let mut layers = Vec::with_capacity(share.layers.len() as usize);
        for l in share.layers.start..share.layers.end {
            layers.push(Layer {
                attn_norm: reader.read(TensorRole::AttnNorm(l), |v| Ok(b.vector(v)?))?,
                query: reader.read(TensorRole::Query(l), |v| Ok(b.matrix(v)?))?,
                key: reader.read(TensorRole::Key(l), |v| Ok(b.matrix(v)?))?,
                value: reader.read(TensorRole::Value(l), |v| Ok(b.matrix(v)?))?,
                attn_output: reader.read(TensorRole::AttnOutput(l), |v| Ok(b.matrix(v)?))?,
                ffn_norm: reader.read(TensorRole::FfnNorm(l), |v| Ok(b.vector(v)?))?,
                gate_up: reader.read(TensorRole::FfnGate(l), |gate| {
                    reader.read(TensorRole::FfnUp(l), |up| Ok(b.gated(gate, up)?))
                })?,
                ffn_down: reader.read(TensorRole::FfnDown(l), |v| Ok(b.matrix(v)?))?,
            });
        }
        let head = if share.is_last_stage() {
            let norm = reader.read(TensorRole::OutputNorm, |v| Ok(b.vector(v)?))?;
            let output = match loader::output_role(manifest) {
                TensorRole::Embedding if share.is_first_stage() => Output::Embedding,
                role => Output::Own(reader.read(role, |v| Ok(b.matrix(v)?))?),
            };
            Some((norm, output))
        } else {
            None
        };
        let kv = backend.kv(KvShape {
            layers: layers.len(),
            pages: kv_pages,
            heads: share.kv_heads.len() as usize,
            head_dim: config.head_dim as usize,
        })?;
        let scratch = Scratch {
            x: backend.rows(),
            normed: backend.rows(),
            q: backend.rows(),
            k: backend.rows(),
            v: backend.rows(),
            attended: backend.rows(),
            ffn: backend.rows(),
            delta: backend.partial(),
            selected: backend.rows(),
            logits: backend.rows(),
        };
        Ok(Self {
            rope: RopeTable::new(config.rope),
            share: share.clone(),
            backend,
            config,
            kv_pages,
            embedding,
            layers,
            head,
            kv,
            scratch,
        })
    }

    pub(super) fn config(&self) -> &ModelConfig {
        &self.config
    }

    pub(super) fn share(&self) -> &RankShare {
        &self.share
    }

    pub(super) fn forward(
        &mut self,
        batch: &Batch,
        input: Option<&[f32]>,
        collective: &mut dyn Collective,
    ) -> Result<Forward<'_>, ForwardError> {
        let hidden = self.config.hidden as usize;
        batch
            .check(self.config.vocab, self.kv_pages)
            .map_err(ForwardError::Batch)?;
        if collective.size() != usize::from(self.share.ranks) {
            return Err(ForwardError::Batch(format!(
                "a stage of {} ranks was given a collective of {}",
                self.share.ranks,
                collective.size()
            )));
        }
        match (&self.embedding, input) {
            (Some(_), None) => {}
            (None, Some(input)) if input.len() == batch.tokens.len() * hidden => {}
            _ => {
                return Err(ForwardError::Batch(
                    "the first stage takes tokens, every other one rows x hidden values".into(),
                ));
            }
        }
        self.rope.fill(batch.positions());
        let step = Step {
            sequences: &batch.sequences,
            cosines: &self.rope.cosines,
            sines: &self.rope.sines,
            rope: self.config.rope,
            group: self.config.group() as usize,
        };
        // Ranks hold whole KV groups and whole FFN segments: sums over these are the same wherever
        // the model is cut.
        let attn_segment = (self.config.group() * self.config.head_dim) as usize;
        let (b, s, eps) = (&mut self.backend, &mut self.scratch, self.config.norm_eps);

        if let Some(table) = &self.embedding {
            b.embed(table, self.share.vocab, &batch.tokens, &mut s.delta);
            reduce(b, &mut s.delta, collective)?;
            b.round(&s.delta, &mut s.x);
        } else if let Some(input) = input {
            b.upload(input, hidden, &mut s.x);
        }
        for (index, layer) in self.layers.iter().enumerate() {
            b.rms_norm(&s.x, &layer.attn_norm, eps, &mut s.normed);
            b.linear(
                &mut s.normed,
                &mut [
                    (&layer.query, &mut s.q),
                    (&layer.key, &mut s.k),
                    (&layer.value, &mut s.v),
                ],
            );
            b.rope_append(&step, &mut s.q, &s.k, &s.v, &mut self.kv, index);
            b.attention(&step, &s.q, &self.kv, index, &mut s.attended);
            b.linear_partial(
                &mut s.attended,
                &layer.attn_output,
                attn_segment,
                &mut s.delta,
            );
            reduce(b, &mut s.delta, collective)?;
            b.add(&mut s.x, &s.delta);

            b.rms_norm(&s.x, &layer.ffn_norm, eps, &mut s.normed);
            b.gated_ffn(&mut s.normed, &layer.gate_up, &mut s.ffn);
            let segment = FFN_SEGMENT as usize;
            b.linear_partial(&mut s.ffn, &layer.ffn_down, segment, &mut s.delta);
            reduce(b, &mut s.delta, collective)?;
            b.add(&mut s.x, &s.delta);
        }

        let Some((norm, output)) = &self.head else {
            return Ok(Forward::Hidden(b.values(&mut s.x)));
        };
        let matrix = match (output, &self.embedding) {
            (Output::Own(matrix), _) => matrix,
            (Output::Embedding, Some(matrix)) => matrix,
            (Output::Embedding, None) => unreachable!("load ties only an embedding it has"),
        };
        b.select(&s.x, &batch.outputs, &mut s.selected);
        b.rms_norm(&s.selected, norm, eps, &mut s.normed);
        b.linear(&mut s.normed, &mut [(matrix, &mut s.logits)]);
        Ok(Forward::Logits(b.values(&mut s.logits)))
    }
}

/// Sums `partial` over the stage's ranks.
fn reduce<B: Backend>(
    backend: &mut B,
    partial: &mut B::Partial,
    collective: &mut dyn Collective,
) -> Result<(), LinkError> {
    if collective.size() > 1 {
        collective.all_reduce(backend.partial_values(partial))?;
    }
    Ok(())
}

/// Refuses what the arithmetic does not cover.
fn check_shape(config: &ModelConfig, share: &RankShare) -> Result<(), LoadError> {
    let refuse = |reason: String| Err(LoadError::Unsupported(reason));
    if config.kv_heads == 0 || !config.heads.is_multiple_of(config.kv_heads) {
        return refuse(format!(
            "{} query heads cannot share {} key/value heads evenly",
            config.heads, config.kv_heads
        ));
    }
    if config.rope.dims > config.head_dim || !config.rope.dims.is_multiple_of(2) {
        return refuse(format!(
            "RoPE over {} of {} dimensions",
            config.rope.dims, config.head_dim
        ));
    }
    for (what, span, whole) in [
        ("layers", share.layers, config.layers),
        ("key/value heads", share.kv_heads, config.kv_heads),
        ("FFN columns", share.ffn, config.ffn),
        ("vocabulary rows", share.vocab, config.vocab),
    ] {
        if span.start >= span.end || span.end > whole {
            return refuse(format!("a share of {what} {span:?} of {whole}"));
        }
    }
    Ok(())
}
