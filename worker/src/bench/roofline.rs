//! Each part of the engine beside what this machine allows it (Williams, Waterman and Patterson 2009,
//! "Roofline"): the time its bytes or its products take at least, whichever is longer, of the time it
//! took. What the machine allows is measured before and after each run: where others share a machine,
//! its speed a second ago says little.

use super::BenchError;
use super::session::{Session, whole};
use crate::backend::Isa;
use crate::backend::cpu::Cpu;
use crate::backend::cpu::peak::{float_products_per_second, products_per_second};
use crate::backend::cpu::timed::{Part, Tally, Timed};
use crate::bandwidth::Reader;
use crate::model::LoadError;
use serde::Serialize;
use std::path::PathBuf;
use trireme_shared::limits::{PAGE_TOKENS, STEP_SEQUENCES_MAX};
use trireme_shared::model::{Manifest, Precision};

/// Times each phase is run; the median by its whole time is reported.
const RUNS: usize = 5;
/// Times a buffer as large as the weights is read for one look at the peaks.
const PASSES: usize = 2;
/// Steps of a run that decodes.
const DECODES: usize = 32;

/// What to measure.
#[derive(Clone, Debug)]
pub struct RooflineBench {
    /// A .gguf file or a Hugging Face folder.
    pub model: PathBuf,
    pub threads: usize,
    /// Tokens of the prompt that is prefilled, and before each sequence's first decode.
    pub prompt_tokens: usize,
    /// Numbers of sequences decoded together.
    pub batches: Vec<usize>,
    pub precision: Precision,
    pub isa: Isa,
}

#[derive(Clone, Debug, Serialize)]
pub struct RooflineReport {
    pub model: String,
    pub isa: &'static str,
    pub threads: usize,
    pub precision: Precision,
    /// The best of all looks.
    pub peaks: Peaks,
    pub phases: Vec<PhaseReport>,
}

/// What this machine does at most with so many threads.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Peaks {
    /// Read from a buffer as large as the weights.
    pub bytes_per_second: f64,
    /// Of weights of four bits with activations, operands in registers.
    pub products_per_second: f64,
    /// Of f32, with an addition each.
    pub float_products_per_second: f64,
}

impl Peaks {
    /// Each of both, by `of`.
    fn each(self, other: Self, of: impl Fn(f64, f64) -> f64) -> Self {
        Self {
            bytes_per_second: of(self.bytes_per_second, other.bytes_per_second),
            products_per_second: of(self.products_per_second, other.products_per_second),
            float_products_per_second: of(
                self.float_products_per_second,
                other.float_products_per_second,
            ),
        }
    }
}

/// Looks at the peaks, and keeps the best of each.
struct Looks<'a> {
    bench: &'a RooflineBench,
    reader: Reader,
    best: Peaks,
}

impl Looks<'_> {
    fn look(&mut self) -> Peaks {
        let RooflineBench {
            isa,
            threads,
            precision,
            ..
        } = *self.bench;
        let peaks = Peaks {
            bytes_per_second: self.reader.bytes_per_second(PASSES),
            products_per_second: products_per_second(isa, precision.activations, threads),
            float_products_per_second: float_products_per_second(isa, threads),
        };
        self.best = self.best.each(peaks, f64::max);
        peaks
    }
}

/// One prefill, or one step that decodes.
#[derive(Clone, Debug, Serialize)]
pub struct PhaseReport {
    pub name: String,
    pub milliseconds: f64,
    /// As they were around this run.
    pub peaks: Peaks,
    /// The sum of the parts' least times, of the phase's.
    pub share_of_limit: f64,
    pub parts: Vec<PartOfPhase>,
}

#[derive(Clone, Debug, Serialize)]
pub struct PartOfPhase {
    pub name: &'static str,
    pub milliseconds: f64,
    pub share_of_time: f64,
    /// What this part cannot do without, at the peaks, of its time. None where it only moves a little.
    pub share_of_limit: Option<f64>,
    /// Which peak is nearest: `memory`, `products` or `floats`.
    pub bound: Option<&'static str>,
}

impl RooflineBench {
    /// Measures; `progress` is told in words what comes next. Blocks for the whole time.
    ///
    /// # Errors
    /// Settings out of bounds, and what loading and running the model may end with.
    pub fn run(&self, progress: &dyn Fn(&str)) -> Result<RooflineReport, BenchError> {
        let bad = |batch: &&usize| **batch == 0 || **batch > STEP_SEQUENCES_MAX;
        if self.threads == 0 || self.prompt_tokens == 0 || self.batches.iter().any(|b| bad(&b)) {
            return Err(BenchError::Settings(format!(
                "threads and prompt tokens must be at least 1, and each batch 1 to {STEP_SEQUENCES_MAX}"
            )));
        }
        let manifest = Manifest::open(&self.model)?.quantised(self.precision.quantize);
        let weight_bytes = manifest.share_bytes(&whole(&manifest.config));
        let mut looks = Looks {
            bench: self,
            reader: Reader::new(weight_bytes as usize, self.threads)?,
            best: Peaks::default(),
        };
        progress("loading");
        let pages_each = (self.prompt_tokens + DECODES).div_ceil(PAGE_TOKENS);
        let most = self.batches.iter().copied().max().unwrap_or(0).max(1);
        let cpu = Cpu::new(self.isa, self.threads, self.precision.activations)
            .map_err(LoadError::from)?;
        let kv = (pages_each * most, self.precision.kv);
        let mut session = Session::load(Timed::new(cpu), &manifest, kv)?;

        let name = format!("prefill {}", self.prompt_tokens);
        progress(&name);
        let run = |session: &mut Session<Timed>| session.prefill(self.prompt_tokens);
        let mut phases = vec![phase(name, 1, &mut looks, &mut session, run)?];
        progress("prefilling what is decoded after");
        session.fill(most, self.prompt_tokens, pages_each)?;
        for &batch in &self.batches {
            let name = format!("decode {batch} after {}", self.prompt_tokens);
            progress(&name);
            let run = |session: &mut Session<Timed>| {
                session.decode(batch, self.prompt_tokens, DECODES, pages_each)
            };
            phases.push(phase(name, DECODES, &mut looks, &mut session, run)?);
        }
        Ok(RooflineReport {
            model: manifest
                .name
                .clone()
                .unwrap_or_else(|| self.model.display().to_string()),
            isa: self.isa.name(),
            threads: self.threads,
            precision: self.precision,
            peaks: looks.best,
            phases,
        })
    }
}

/// Runs `run`, which takes so many steps and tells its seconds, some times.
fn phase(
    name: String,
    steps: usize,
    looks: &mut Looks<'_>,
    session: &mut Session<Timed>,
    run: impl Fn(&mut Session<Timed>) -> Result<f64, BenchError>,
) -> Result<PhaseReport, BenchError> {
    run(session)?;
    let mut runs = Vec::with_capacity(RUNS);
    let mut before = looks.look();
    for _ in 0..RUNS {
        session.backend().take();
        let seconds = run(session)?;
        let tallies = session.backend().take();
        let after = looks.look();
        runs.push((seconds, tallies, before.each(after, |a, b| (a + b) / 2.0)));
        before = after;
    }
    runs.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (seconds, tallies, peaks) = runs[RUNS / 2];
    Ok(report(name, seconds, steps, &tallies, peaks))
}

fn report(
    name: String,
    seconds: f64,
    steps: usize,
    tallies: &[Tally],
    peaks: Peaks,
) -> PhaseReport {
    let milliseconds = |seconds: f64| 1e3 * seconds / steps as f64;
    let mut least_of_all = 0.0;
    let mut parts = Vec::new();
    for (part, tally) in Part::ALL.into_iter().zip(tallies) {
        if tally.time.is_zero() {
            continue;
        }
        let took = tally.time.as_secs_f64();
        let (bound, least) = least(tally, &peaks);
        least_of_all += least;
        let has_limit = least > 0.0 && took > 0.0;
        parts.push(PartOfPhase {
            name: title(part),
            milliseconds: milliseconds(took),
            share_of_time: took / seconds,
            share_of_limit: has_limit.then_some(least / took),
            bound: has_limit.then_some(bound),
        });
    }
    PhaseReport {
        name,
        milliseconds: milliseconds(seconds),
        peaks,
        share_of_limit: least_of_all / seconds,
        parts,
    }
}

/// The peak that bounds it, and the seconds it takes at least.
fn least(tally: &Tally, peaks: &Peaks) -> (&'static str, f64) {
    [
        ("memory", tally.bytes as f64 / peaks.bytes_per_second),
        (
            "products",
            tally.products as f64 / peaks.products_per_second,
        ),
        (
            "floats",
            tally.float_products as f64 / peaks.float_products_per_second,
        ),
    ]
    .into_iter()
    .max_by(|a, b| a.1.total_cmp(&b.1))
    .unwrap_or(("memory", 0.0))
}

fn title(part: Part) -> &'static str {
    match part {
        Part::Projections => "query, key, value",
        Part::Attention => "attention",
        Part::AttentionOutput => "attention's output",
        Part::GateUp => "gate and up",
        Part::Down => "down",
        Part::Experts => "experts",
        Part::Logits => "logits",
        Part::Rest => "norms, rotation, sums",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use trireme_shared::model::Mixture;
    use trireme_shared::model::random::RandomModel;

    const PEAKS: Peaks = Peaks {
        bytes_per_second: 1e9,
        products_per_second: 1e10,
        float_products_per_second: 1e10,
    };

    #[test]
    fn the_longest_of_the_least_times_is_the_limit() {
        let tally = Tally {
            time: Duration::from_millis(40),
            bytes: 10_000_000,
            products: 200_000_000,
            float_products: 0,
        };
        let mut tallies = [Tally::default(); Part::ALL.len()];
        tallies[Part::GateUp as usize] = tally;
        tallies[Part::Rest as usize].time = Duration::from_millis(10);
        let report = report("two steps".into(), 0.08, 2, &tallies, PEAKS);
        // Parts that were not there are left out.
        let [part, rest] = &report.parts[..] else {
            panic!("{:?}", report.parts)
        };
        assert_eq!(part.bound, Some("products"));
        assert_eq!(part.share_of_limit, Some(0.5));
        assert_eq!((part.milliseconds, part.share_of_time), (20.0, 0.5));
        assert_eq!(rest.share_of_limit, None);
        assert_eq!((report.share_of_limit, report.milliseconds), (0.25, 40.0));
    }

    #[test]
    fn every_part_of_a_model_is_tallied() {
        let name = |kind| format!("trireme-roofline-{}-{kind}.gguf", std::process::id());
        let mixture = RandomModel {
            ffn: 4 * RandomModel::tiny(3).ffn,
            mixture: Some(Mixture {
                experts: 4,
                used: 2,
                normalised: true,
            }),
            ..RandomModel::tiny(3)
        };
        for (kind, model, parts) in [("dense", RandomModel::tiny(3), 6), ("mixture", mixture, 5)] {
            let path = std::env::temp_dir().join(name(kind));
            model.write_gguf(&path).unwrap();
            let bench = RooflineBench {
                model: path.clone(),
                threads: 2,
                prompt_tokens: 20,
                batches: vec![1, 3],
                precision: Precision::default(),
                isa: Isa::detect(),
            };
            let report = bench.run(&|_| {});
            let refused = RooflineBench {
                batches: vec![0],
                ..bench
            };
            assert!(matches!(refused.run(&|_| {}), Err(BenchError::Settings(_))));
            std::fs::remove_file(&path).unwrap();
            let report = report.unwrap();
            assert_eq!(report.phases.len(), 3);
            for phase in &report.phases {
                let limited = phase
                    .parts
                    .iter()
                    .filter(|part| part.share_of_limit.is_some());
                assert_eq!(limited.count(), parts, "{kind}, {}", phase.name);
                let together: f64 = phase.parts.iter().map(|part| part.share_of_time).sum();
                assert!(together > 0.0 && together <= 1.0, "{kind}, {}", phase.name);
            }
            let peaks = report.peaks;
            assert!(peaks.products_per_second > 0.0 && peaks.float_products_per_second > 0.0);
        }
    }
}
