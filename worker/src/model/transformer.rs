//! One rank's share of a decoder, on any backend. How architectures differ is data: a layer's
//! optional weights ([`Layer`]) and numbers of the configuration.
//!
//! Tensor parallelism: every rank of a stage holds the same hidden state. Each computes its heads'
//! and its FFN columns' (or its experts') contribution; the contributions are all-reduced and then added to the
//! residual, twice a layer. (Gemma's norm of what is added acts on the sum.) Contributions are f64,
//! and cut where every split may cut, so that a split changes no token: a quantised activation next
//! to a rounding edge would otherwise turn the last bit of an f32 sum into a different word. The
//! embedding is split by vocabulary: tokens outside a rank's span contribute zero.

use super::batch::Batch;
use super::layer::{Ffn, Layer, Reader};
use super::rope::RopeTable;
use super::{Forward, ForwardError, LoadError};
use crate::backend::{Backend, HeadNorms, KvShape, MixtureInput, Step};
use crate::loader;
use crate::parallel::{Abort, Collective, LinkError};
use trireme_shared::model::partition::FFN_SEGMENT;
use trireme_shared::model::{KvFormat, Manifest, ModelConfig, RankShare, TensorRole};

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
    /// The sum in f32, where it is normalised before it is added.
    summed: B::Rows,
    selected: B::Rows,
    logits: B::Rows,
}

pub(crate) struct Transformer<B: Backend> {
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
    /// Of windowed layers, where they have one of their own.
    window_rope: Option<RopeTable>,
    scratch: Scratch<B>,
}

impl<B: Backend> Transformer<B> {
    pub(crate) fn load(
        mut backend: B,
        manifest: &Manifest,
        share: &RankShare,
        (kv_pages, format): (usize, KvFormat),
        progress: &(dyn Fn(u64, u64) + Sync),
        abort: &Abort,
    ) -> Result<Self, LoadError> {
        let config = manifest.config.clone();
        check_shape(&config, share)?;
        let reader = Reader::new(manifest, share, abort, progress)?;
        let b = &mut backend;
        let divisors = reader.rope_divisors()?;
        let embedding = if share.is_first_stage() {
            Some(reader.matrix(b, TensorRole::Embedding)?)
        } else {
            None
        };
        let layers = (share.layers.start..share.layers.end)
            .map(|l| Layer::read(&reader, b, l))
            .collect::<Result<Vec<_>, _>>()?;
        let head = if share.is_last_stage() {
            let norm = reader.vector(b, TensorRole::OutputNorm)?;
            let output = match loader::output_role(manifest) {
                TensorRole::Embedding if share.is_first_stage() => Output::Embedding,
                role => Output::Own(reader.matrix(b, role)?),
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
            format,
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
            summed: backend.rows(),
            selected: backend.rows(),
            logits: backend.rows(),
        };
        let own_rope = config.window.as_ref().map(|w| w.rope);
        let own_rope = own_rope.filter(|rope| *rope != config.rope);
        Ok(Self {
            rope: RopeTable::new(config.rope, divisors.as_deref()),
            window_rope: own_rope.map(|rope| RopeTable::new(rope, None)),
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

    pub(crate) fn backend(&mut self) -> &mut B {
        &mut self.backend
    }

    pub(super) fn config(&self) -> &ModelConfig {
        &self.config
    }

    pub(super) fn share(&self) -> &RankShare {
        &self.share
    }

    pub(crate) fn forward(
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
        if let Some(rope) = &mut self.window_rope {
            rope.fill(batch.positions());
        }
        let whole = Step {
            sequences: &batch.sequences,
            cosines: &self.rope.cosines,
            sines: &self.rope.sines,
            rope: self.config.rope,
            group: self.config.group() as usize,
            scale: self.config.attention_scale,
            score_cap: self.config.score_cap,
            window: None,
        };
        let windowed = self.config.window.as_ref().map_or(whole, |window| {
            let table = self.window_rope.as_ref().unwrap_or(&self.rope);
            Step {
                cosines: &table.cosines,
                sines: &table.sines,
                rope: window.rope,
                window: Some(window.tokens as usize),
                ..whole
            }
        });
        // Ranks hold whole KV groups and whole FFN segments: sums over these are the same wherever
        // the model is cut.
        let attn_segment = (self.config.group() * self.config.head_dim) as usize;
        let is_alone = collective.size() == 1;
        let (b, s, eps) = (&mut self.backend, &mut self.scratch, self.config.norm_eps);

        if let Some(table) = &self.embedding {
            b.embed(table, self.share.vocab, &batch.tokens, &mut s.delta);
            reduce(b, &mut s.delta, collective)?;
            b.round(&s.delta, self.config.embedding_scale, &mut s.x);
        } else if let Some(input) = input {
            b.upload(input, hidden, &mut s.x);
        }
        for (index, layer) in self.layers.iter().enumerate() {
            let step = if layer.is_windowed { &windowed } else { &whole };
            b.rms_norm(&s.x, &layer.attn_norm, eps, &mut s.normed);
            b.linear(
                &mut s.normed,
                &mut [
                    (&layer.query, &mut s.q),
                    (&layer.key, &mut s.k),
                    (&layer.value, &mut s.v),
                ],
            );
            if let Some([query, key, value]) = &layer.biases {
                b.add_bias(&mut s.q, query);
                b.add_bias(&mut s.k, key);
                b.add_bias(&mut s.v, value);
            }
            let norms = layer.head_norms.as_ref();
            let norms = norms.map(|[query, key]| HeadNorms { query, key, eps });
            b.rope_append(step, norms, &mut s.q, &s.k, &s.v, &mut self.kv, index);
            b.attention(step, &s.q, &self.kv, index, &mut s.attended);
            let (output, post_norm) = (&layer.attn_output, layer.attn_post_norm.as_ref());
            if is_alone && post_norm.is_none() {
                b.linear_add(&mut s.attended, output, attn_segment, &mut s.x);
            } else {
                b.linear_partial(&mut s.attended, output, attn_segment, &mut s.delta);
                reduce(b, &mut s.delta, collective)?;
                add(b, s, post_norm, eps);
            }

            b.rms_norm(&s.x, &layer.ffn_norm, eps, &mut s.normed);
            let (activation, segment) = (self.config.activation, FFN_SEGMENT as usize);
            let post_norm = layer.ffn_post_norm.as_ref();
            match &layer.ffn {
                Ffn::Dense { gate_up, down } => {
                    b.gated_ffn(&mut s.normed, gate_up, activation, &mut s.ffn);
                    if is_alone && post_norm.is_none() {
                        b.linear_add(&mut s.ffn, down, segment, &mut s.x);
                        continue;
                    }
                    b.linear_partial(&mut s.ffn, down, segment, &mut s.delta);
                }
                Ffn::Mixture(mixture) => {
                    let input = MixtureInput {
                        x: &s.x,
                        eps,
                        normed: &mut s.normed,
                    };
                    b.mixture_ffn(input, mixture, activation, segment, &mut s.delta);
                }
            }
            reduce(b, &mut s.delta, collective)?;
            add(b, s, post_norm, eps);
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
        if let Some(cap) = self.config.logit_cap {
            b.soft_cap(&mut s.logits, cap);
        }
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

/// Adds the summed contributions to the hidden state, normalised first where there is a norm.
fn add<B: Backend>(b: &mut B, s: &mut Scratch<B>, post_norm: Option<&B::Vector>, eps: f32) {
    let Some(norm) = post_norm else {
        return b.add(&mut s.x, &s.delta);
    };
    b.round(&s.delta, 1.0, &mut s.summed);
    b.rms_norm(&s.summed, norm, eps, &mut s.normed);
    b.add_rows(&mut s.x, &s.normed);
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
    if let Some(columns) = config.expert_ffn()
        && [share.ffn.start, share.ffn.end]
            .iter()
            .any(|end| !end.is_multiple_of(columns))
    {
        return refuse(format!(
            "a share of FFN columns {:?} that cuts an expert of {columns}",
            share.ffn
        ));
    }
    Ok(())
}
