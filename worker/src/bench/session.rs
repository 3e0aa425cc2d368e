//! Prompts and decodes of a model in this process, without batcher or sampler.

use super::BenchError;
use crate::backend::Backend;
use crate::model::{Batch, Forward, LoadError, SequenceSlice, Transformer};
use crate::parallel::{Abort, Solo};
use std::time::Instant;
use trireme_shared::ids::{Rank, Stage};
use trireme_shared::limits::{PAGE_TOKENS, STEP_TOKENS_MAX};
use trireme_shared::model::{KvFormat, Manifest, ModelConfig, RankShare, Span};

/// The share of a rank that is alone.
pub(super) fn whole(config: &ModelConfig) -> RankShare {
    RankShare {
        stage: Stage(0),
        rank: Rank(0),
        stages: 1,
        ranks: 1,
        layers: Span::new(0, config.layers),
        kv_heads: Span::new(0, config.kv_heads),
        ffn: Span::new(0, config.ffn),
        vocab: Span::new(0, config.vocab),
    }
}

/// The whole model on one rank.
pub(super) struct Session<B: Backend> {
    vocab: u32,
    model: Transformer<B>,
}

impl<B: Backend> Session<B> {
    pub(super) fn load(
        backend: B,
        manifest: &Manifest,
        kv: (usize, KvFormat),
    ) -> Result<Self, LoadError> {
        let (share, never) = (whole(&manifest.config), Abort::default());
        Ok(Self {
            vocab: manifest.config.vocab,
            model: Transformer::load(backend, manifest, &share, kv, &|_, _| {}, &never)?,
        })
    }

    pub(super) fn backend(&mut self) -> &mut B {
        self.model.backend()
    }

    /// Seconds to prefill one prompt in chunks of a step, with the last token's logits.
    pub(super) fn prefill(&mut self, tokens: usize) -> Result<f64, BenchError> {
        self.prefill_from(0, tokens)
    }

    /// Prefills a prompt of `tokens` for each of `count` sequences of `pages` pages: `decode` then reads memory
    /// that was written, as a server does. (The kernel backs what was only read by one page of zeroes, which stays
    /// in the first-level cache.)
    pub(super) fn fill(
        &mut self,
        count: usize,
        tokens: usize,
        pages: usize,
    ) -> Result<(), BenchError> {
        for sequence in 0..count {
            self.prefill_from(sequence * pages, tokens)?;
        }
        Ok(())
    }

    fn prefill_from(&mut self, page: usize, tokens: usize) -> Result<f64, BenchError> {
        let pages = page..page + tokens.div_ceil(PAGE_TOKENS);
        let pages: Vec<u32> = pages.map(|p| p as u32).collect();
        let begun = Instant::now();
        for first in (0..tokens).step_by(STEP_TOKENS_MAX) {
            let len = STEP_TOKENS_MAX.min(tokens - first);
            let batch = Batch {
                tokens: (first..first + len).map(|t| self.token(t)).collect(),
                sequences: vec![SequenceSlice {
                    first: 0,
                    len: len as u32,
                    context: first as u32,
                    pages: pages.clone(),
                }],
                outputs: if first + len == tokens {
                    vec![len as u32 - 1]
                } else {
                    Vec::new()
                },
            };
            self.model.forward(&batch, None, &mut Solo)?;
        }
        Ok(begun.elapsed().as_secs_f64())
    }

    /// Seconds to decode `tokens` greedily in each of `count` sequences, after `before` tokens whose keys and
    /// values are what `fill` left.
    pub(super) fn decode(
        &mut self,
        count: usize,
        before: usize,
        tokens: usize,
        pages: usize,
    ) -> Result<f64, BenchError> {
        let mut batch = Batch {
            tokens: (0..count).map(|s| self.token(s)).collect(),
            sequences: (0..count)
                .map(|s| SequenceSlice {
                    first: s as u32,
                    len: 1,
                    context: 0,
                    pages: (s * pages..(s + 1) * pages).map(|p| p as u32).collect(),
                })
                .collect(),
            outputs: (0..count as u32).collect(),
        };
        let begun = Instant::now();
        for context in before..before + tokens {
            for slice in &mut batch.sequences {
                slice.context = context as u32;
            }
            if let Forward::Logits(logits) = self.model.forward(&batch, None, &mut Solo)? {
                let rows = logits.chunks_exact(self.vocab as usize);
                for (token, row) in batch.tokens.iter_mut().zip(rows) {
                    *token = largest(row);
                }
            }
        }
        Ok(begun.elapsed().as_secs_f64())
    }

    /// Some token of the vocabulary, not always the same.
    fn token(&self, index: usize) -> u32 {
        ((index as u64 * 7_919 + 13) % u64::from(self.vocab)) as u32
    }
}

/// The first index of the largest value. Sixteen maxima side by side, which the compiler keeps in
/// vectors: a plain fold would take longer than some layers.
fn largest(row: &[f32]) -> u32 {
    let mut tops = [f32::NEG_INFINITY; 16];
    for chunk in row.chunks(16) {
        for (top, &value) in tops.iter_mut().zip(chunk) {
            *top = if value > *top { value } else { *top };
        }
    }
    let top = tops.into_iter().fold(f32::NEG_INFINITY, f32::max);
    row.iter().position(|&v| v == top).unwrap_or(0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_the_largest_wins() {
        let mut row = vec![0.5f32; 41];
        row[20] = 7.0;
        row[37] = 7.0;
        assert_eq!(largest(&row), 20);
    }
}
