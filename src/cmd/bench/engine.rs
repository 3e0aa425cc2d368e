//! `cluster bench engine`: the whole model on one rank in this process.

use super::curve;
use crate::cmd::{IsaChoice, PrecisionArgs, join, model, precision};
use crate::failure::Failure;
use crate::{machine, size, term};
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;
use trireme_worker::bench::{EngineBench, EngineBenchReport};

#[derive(Args)]
#[command(
    after_help = "Example:\n  cluster bench engine --model smollm2 --threads 2 --batch 1,8,16\n  \
                        cluster bench engine --batch 1,2,4,8,16,32,64 --picture batch-curve.svg"
)]
pub struct EngineArgs {
    /// Model to run: a catalogue name, a path, hf://org/repo, https:// or pypi:// address
    #[arg(long, value_name = "MODEL", default_value = "smollm2")]
    model: String,
    /// Compute threads [default: all]
    #[arg(long, value_name = "N", value_parser = join::threads)]
    threads: Option<usize>,
    /// Tokens of the prompt that is prefilled
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    prompt_tokens: u32,
    /// Tokens decoded by each sequence
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    gen_tokens: u32,
    /// Tokens that each sequence has before
    #[arg(long, value_name = "N", default_value_t = 0)]
    context_tokens: u32,
    /// Sequences decoded together; several values are measured one after another
    #[arg(long, value_name = "N[,N...]", value_delimiter = ',', default_values_t = [1, 8, 16])]
    batch: Vec<usize>,
    #[command(flatten)]
    precision: PrecisionArgs,
    /// Which CPU kernels to run
    #[arg(long, value_enum, default_value_t)]
    isa: IsaChoice,
    /// Draw speed over batch into this file (SVG)
    #[arg(long, value_name = "FILE")]
    picture: Option<PathBuf>,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

impl EngineArgs {
    pub fn run(self) -> Result<()> {
        let resolved = model::fetch(&self.model)?;
        let bench = EngineBench {
            model: resolved.path,
            threads: self.threads.unwrap_or_else(machine::threads),
            prompt_tokens: self.prompt_tokens as usize,
            gen_tokens: self.gen_tokens as usize,
            context_tokens: self.context_tokens as usize,
            batches: self.batch,
            precision: self.precision.into(),
            isa: self.isa.choose()?,
        };
        let spinner = term::spinner();
        let report = bench.run(&|doing| spinner.set_message(doing.to_owned()));
        spinner.finish_and_clear();
        let report = report.map_err(|error| {
            Failure::new(
                "the engine could not be measured",
                "check --model, --batch and --isa",
            )
            .because(error)
        })?;
        if let Some(path) = &self.picture {
            std::fs::write(path, curve::draw(&report)).map_err(|error| {
                let what = format!("{} cannot be written", path.display());
                Failure::new(what, "give --picture a path in a folder that exists").because(error)
            })?;
        }
        if self.json {
            return term::json(&report);
        }
        show(&report);
        Ok(())
    }
}

fn show(report: &EngineBenchReport) {
    term::out(format!(
        "{}  {} thread{}, {}, {} of weights, loaded in {:.2} s{}",
        term::bold(&report.model),
        report.threads,
        if report.threads == 1 { "" } else { "s" },
        report.isa,
        size::bytes(report.weight_bytes),
        report.load_seconds,
        precision(&report.precision)
    ));
    let mut rows = vec![vec![
        format!("prefill {}", report.prompt_tokens),
        "1".to_owned(),
        format!("{:.1}", report.prefill_tokens_per_second),
        "-".to_owned(),
    ]];
    rows.extend(report.decode.iter().map(|speed| {
        vec![
            match report.context_tokens {
                0 => format!("decode {}", report.gen_tokens),
                context => format!("decode {} after {context}", report.gen_tokens),
            },
            speed.batch.to_string(),
            format!("{:.1}", speed.tokens_per_second),
            format!("{:.2}", speed.step_milliseconds),
        ]
    }));
    term::out(term::table(
        &["phase", ">batch", ">tok/s", ">ms/step"],
        rows,
    ));
    if let Some(peak) = report.peak_resident_bytes {
        term::out(format!(
            "at most {} resident, {:.2} times weights and {} of keys and values",
            size::bytes(peak),
            peak as f64 / (report.weight_bytes + report.kv_bytes) as f64,
            size::bytes(report.kv_bytes)
        ));
    }
    if let Some(rows) = report.amx_rows_min {
        term::out(format!("products of {rows} or more rows go by AMX tiles"));
    }
    if let Some(alone) = report.decode.iter().find(|speed| speed.batch == 1) {
        let rate = alone.tokens_per_second * report.token_bytes as f64;
        term::out(format!(
            "batch 1 reads weights at {:.1} GB/s, {:.0} % of the {:.1} GB/s that as many threads \
             read here",
            rate / 1e9,
            100.0 * rate / report.read_bytes_per_second,
            report.read_bytes_per_second / 1e9
        ));
    }
}
