//! Speed of the engine's arithmetic on this machine: the whole model on one rank, in process,
//! without batcher, sampler or network.

mod roofline;
mod session;

pub use roofline::{PartOfPhase, Peaks, PhaseReport, RooflineBench, RooflineReport};

use crate::backend::Isa;
use crate::backend::cpu::{Cpu, amx_rows_min};
use crate::bandwidth::read_bandwidth;
use crate::model::{ForwardError, LoadError};
use serde::Serialize;
use session::{Session, whole};
use std::path::PathBuf;
use std::time::Instant;
use trireme_shared::limits::{PAGE_TOKENS, STEP_SEQUENCES_MAX};
use trireme_shared::model::manifest::ManifestError;
use trireme_shared::model::{Manifest, Precision};

/// Times each measurement is taken; the median is reported.
const RUNS: usize = 3;

/// What to measure.
#[derive(Clone, Debug)]
pub struct EngineBench {
    /// A .gguf file or a Hugging Face folder.
    pub model: PathBuf,
    pub threads: usize,
    /// Tokens of the prompt that is prefilled.
    pub prompt_tokens: usize,
    /// Tokens decoded by each sequence of a batch.
    pub gen_tokens: usize,
    /// Tokens that each has before its first.
    pub context_tokens: usize,
    /// Numbers of sequences decoded together.
    pub batches: Vec<usize>,
    pub precision: Precision,
    pub isa: Isa,
}

#[derive(Clone, Debug, Serialize)]
pub struct EngineBenchReport {
    pub model: String,
    pub isa: &'static str,
    /// With AMX: from how many rows on it was measured to multiply faster than VNNI.
    pub amx_rows_min: Option<usize>,
    pub threads: usize,
    pub prompt_tokens: usize,
    pub gen_tokens: usize,
    pub context_tokens: usize,
    pub load_seconds: f64,
    pub precision: Precision,
    /// Bytes of weights (of a type's blocks as files have them).
    pub weight_bytes: u64,
    /// Those that one token's decode step reads: of a mixture's experts the part that is used.
    pub token_bytes: u64,
    /// Keys and values of the largest batch, or of the prompt.
    pub kv_bytes: u64,
    /// The most this process held until all was measured, on Linux.
    pub peak_resident_bytes: Option<u64>,
    /// Bytes a second that as many threads read from a buffer as large as the weights: what
    /// batch-1 decode cannot pass.
    pub read_bytes_per_second: f64,
    pub prefill_tokens_per_second: f64,
    pub decode: Vec<DecodeSpeed>,
}

/// Decoding `batch` sequences together.
#[derive(Clone, Debug, Serialize)]
pub struct DecodeSpeed {
    pub batch: usize,
    /// Of all sequences together.
    pub tokens_per_second: f64,
    /// One step of all sequences.
    pub step_milliseconds: f64,
}

#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Forward(#[from] ForwardError),
    #[error("no memory to measure reading with: {0}")]
    Memory(#[from] std::io::Error),
    #[error("{0}")]
    Settings(String),
}

impl EngineBench {
    /// Measures; `progress` is told in words what comes next. Blocks for the whole time.
    pub fn run(&self, progress: &dyn Fn(&str)) -> Result<EngineBenchReport, BenchError> {
        self.validate()?;
        let manifest = Manifest::open(&self.model)?.quantised(self.precision.quantize);
        let config = &manifest.config;
        let share = whole(config);
        let pages_each = (self.context_tokens + self.gen_tokens).div_ceil(PAGE_TOKENS);
        let batch_max = self.batches.iter().copied().max().unwrap_or(0);
        let prompt_pages = self.prompt_tokens.div_ceil(PAGE_TOKENS);
        let kv_pages = prompt_pages.max(pages_each * batch_max).max(1);
        progress("loading");
        let begun = Instant::now();
        let backend = Cpu::new(self.isa, self.threads, self.precision.activations)
            .map_err(LoadError::from)?;
        let mut session = Session::load(backend, &manifest, (kv_pages, self.precision.kv))?;
        let load_seconds = begun.elapsed().as_secs_f64();

        progress(&format!("prefilling {} tokens", self.prompt_tokens));
        session.prefill(self.prompt_tokens)?;
        let prefill = median(|| session.prefill(self.prompt_tokens))?;
        let mut decode = Vec::new();
        progress("prefilling what is decoded after");
        session.fill(batch_max, self.context_tokens, pages_each)?;
        for &batch in &self.batches {
            progress(&format!("decoding {batch} x {} tokens", self.gen_tokens));
            let context = self.context_tokens;
            session.decode(batch, context, self.gen_tokens.min(2), pages_each)?;
            let seconds = median(|| session.decode(batch, context, self.gen_tokens, pages_each))?;
            decode.push(DecodeSpeed {
                batch,
                tokens_per_second: (batch * self.gen_tokens) as f64 / seconds,
                step_milliseconds: 1e3 * seconds / self.gen_tokens as f64,
            });
        }
        let weight_bytes = manifest.share_bytes(&share);
        let peak_resident_bytes = peak_resident_bytes();
        progress("reading memory");
        let read_bytes_per_second = read_bandwidth(weight_bytes as usize, self.threads)?;
        Ok(EngineBenchReport {
            model: manifest
                .name
                .clone()
                .unwrap_or_else(|| self.model.display().to_string()),
            isa: self.isa.name(),
            amx_rows_min: match self.isa {
                Isa::Amx => amx_rows_min(self.precision.activations),
                _ => None,
            },
            threads: self.threads,
            prompt_tokens: self.prompt_tokens,
            gen_tokens: self.gen_tokens,
            context_tokens: self.context_tokens,
            load_seconds,
            precision: self.precision,
            weight_bytes,
            token_bytes: token_bytes(&manifest, weight_bytes),
            kv_bytes: kv_pages as u64
                * self
                    .precision
                    .kv
                    .page_bytes(config.head_dim, config.layers, config.kv_heads),
            peak_resident_bytes,
            read_bytes_per_second,
            prefill_tokens_per_second: self.prompt_tokens as f64 / prefill,
            decode,
        })
    }

    fn validate(&self) -> Result<(), BenchError> {
        let refuse = |reason: String| Err(BenchError::Settings(reason));
        if self.threads == 0 || self.prompt_tokens == 0 || self.gen_tokens == 0 {
            return refuse("threads, prompt tokens and generated tokens must be at least 1".into());
        }
        if let Some(batch) = self
            .batches
            .iter()
            .find(|&&b| b == 0 || b > STEP_SEQUENCES_MAX)
        {
            return refuse(format!(
                "a batch of {batch}: it must be 1 to {STEP_SEQUENCES_MAX}"
            ));
        }
        Ok(())
    }
}

/// What one token reads of a model of `all` bytes.
fn token_bytes(manifest: &Manifest, all: u64) -> u64 {
    let Some(mixture) = manifest.config.mixture else {
        return all;
    };
    let tensors = manifest.tensors.iter();
    let experts: u64 = tensors
        .filter(|(role, _)| role.expert().is_some())
        .map(|(_, tensor)| tensor.packed_bytes(tensor.rows, tensor.columns))
        .sum();
    let used = u64::from(mixture.used) * experts / u64::from(mixture.experts);
    all - experts + used
}

/// As the kernel counts it.
fn peak_resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kib: u64 = peak.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kib << 10)
}

/// Seconds of the median of [`RUNS`] runs.
fn median(mut run: impl FnMut() -> Result<f64, BenchError>) -> Result<f64, BenchError> {
    let mut seconds = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        seconds.push(run()?);
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[RUNS / 2])
}

#[cfg(test)]
mod tests {
    use super::*;
    use trireme_shared::limits::STEP_TOKENS_MAX;
    use trireme_shared::model::random::RandomModel;

    #[test]
    fn a_tiny_model_is_measured_and_bad_settings_are_refused() {
        let name = format!("trireme-bench-{}.gguf", std::process::id());
        let path = std::env::temp_dir().join(name);
        RandomModel::tiny(3).write_gguf(&path).unwrap();
        let bench = EngineBench {
            model: path.clone(),
            threads: 2,
            prompt_tokens: STEP_TOKENS_MAX + 5,
            gen_tokens: 17,
            context_tokens: 40,
            batches: vec![1, 3],
            precision: Precision::default(),
            isa: Isa::detect(),
        };
        let report = bench.run(&|_| {});
        let refused = EngineBench {
            batches: vec![STEP_SEQUENCES_MAX + 1],
            ..bench
        };
        assert!(matches!(refused.run(&|_| {}), Err(BenchError::Settings(_))));
        std::fs::remove_file(&path).unwrap();
        let report = report.unwrap();
        assert_eq!(report.decode.len(), 2);
        assert!(report.prefill_tokens_per_second > 0.0);
        assert!(report.decode.iter().all(|d| d.tokens_per_second > 0.0));
    }
}
