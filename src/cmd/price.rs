//! `cluster price` and `cluster fee`: what models cost, and the platform's part of it.

use super::account::dollars;
use super::{ClientArgs, WriteArgs, moment, when};
use crate::{term, url};
use anyhow::Result;
use clap::{Args, Subcommand};
use trireme_shared::api::{Fee, PriceReport, PriceRequest, PricesReport};
use trireme_shared::ids::{BasisPoints, NanoUsd};

#[derive(Args)]
#[command(after_help = "Example:\n  cluster price list\n  \
                        cluster price set smollm2 --input 0.02 --cached-input 0.005 --output 0.06")]
pub struct PriceArgs {
    #[command(subcommand)]
    command: PriceCommand,
}

#[derive(Subcommand)]
enum PriceCommand {
    /// List the price lists of all models, past and announced ones too
    #[command(after_help = "Example:\n  cluster price list --json")]
    List {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Set a model's prices from a time on that is yet to come
    #[command(
        after_help = "Example:\n  cluster price set smollm2 --input 0.02 --cached-input 0.005 --output 0.06\n  \
                      cluster price set smollm2 --input 0.03 --cached-input 0.01 --output 0.09 \
                      --minimum 0.0001 --from 2027-01-01"
    )]
    Set {
        #[command(flatten)]
        write: WriteArgs,
        /// The name it is asked for by
        model: String,
        /// Dollars for a million prompt tokens that are computed
        #[arg(long, value_name = "DOLLARS", value_parser = dollars)]
        input: NanoUsd,
        /// Dollars for a million prompt tokens that are found in the KV cache
        #[arg(long, value_name = "DOLLARS", value_parser = dollars)]
        cached_input: NanoUsd,
        /// Dollars for a million generated tokens
        #[arg(long, value_name = "DOLLARS", value_parser = dollars)]
        output: NanoUsd,
        /// Dollars that a request costs at least
        #[arg(long, value_name = "DOLLARS", value_parser = dollars, default_value = "0")]
        minimum: NanoUsd,
        /// The day or the time (RFC 3339) from which they hold [default: the next second]
        #[arg(long, value_name = "TIME", value_parser = moment)]
        from: Option<u64>,
    },
}

impl PriceArgs {
    pub fn run(self) -> Result<()> {
        match self.command {
            PriceCommand::List { client } => {
                let all: PricesReport = client.admin()?.get("/admin/v1/prices")?;
                if client.json {
                    return term::json(&all);
                }
                let mut rows = vec![row("(others)", "always".into(), &all.default)];
                let lists = all.lists.iter();
                rows.extend(lists.map(|l| row(&l.model, when(l.effective_from), &l.prices)));
                show(rows);
            }
            PriceCommand::Set {
                write,
                model,
                input,
                cached_input,
                output,
                minimum,
                from,
            } => {
                let request = PriceRequest {
                    effective_from: from,
                    input_nano_usd: input,
                    cached_input_nano_usd: cached_input,
                    output_nano_usd: output,
                    minimum_nano_usd: minimum,
                };
                let path = format!("/admin/v1/prices/{}", url::part(&model));
                let all: Vec<PriceReport> = write.admin()?.put(&path, &request)?;
                if write.json() {
                    return term::json(&all);
                }
                let rows = all.iter();
                show(
                    rows.map(|l| row(&l.model, when(l.effective_from), &l.prices))
                        .collect(),
                );
            }
        }
        Ok(())
    }
}

fn row(model: &str, from: String, prices: &trireme_shared::api::PriceList) -> Vec<String> {
    vec![
        model.to_owned(),
        from,
        prices.input_nano_usd.dollars(),
        prices.cached_input_nano_usd.dollars(),
        prices.output_nano_usd.dollars(),
        prices.minimum_nano_usd.dollars(),
    ]
}

fn show(rows: Vec<Vec<String>>) {
    let header = [
        "model",
        "from",
        ">input",
        ">cached input",
        ">output",
        ">minimum",
    ];
    term::out(term::table(&header, rows));
    term::err("dollars for a million tokens; the minimum is for a request");
}

/// Show or set what the platform keeps of every charge.
#[derive(Args)]
#[command(after_help = "Example:\n  cluster fee\n  cluster fee 12.5")]
pub struct FeeArgs {
    #[command(flatten)]
    write: WriteArgs,
    /// Percent, with up to two decimals; without it the fee is shown
    #[arg(value_parser = percent)]
    percent: Option<BasisPoints>,
}

impl FeeArgs {
    pub fn run(self) -> Result<()> {
        let admin = self.write.admin()?;
        let fee: Fee = match self.percent {
            Some(basis_points) => admin.put("/admin/v1/fee", &Fee { basis_points })?,
            None => admin.get("/admin/v1/fee")?,
        };
        if self.write.json() {
            return term::json(&fee);
        }
        let points = fee.basis_points.0;
        term::out(format!("{}.{:02} %", points / 100, points % 100));
        Ok(())
    }
}

/// `12.5` percent as 1,250 basis points, exactly.
fn percent(text: &str) -> Result<BasisPoints, String> {
    let wrong = || "write a percentage from 0 to 100, with up to two decimals".to_owned();
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(decimals) || decimals.len() > 2 {
        return Err(wrong());
    }
    let hundredths: u32 = format!("{decimals:0<2}").parse().map_err(|_| wrong())?;
    let points = whole.parse::<u32>().ok().and_then(|w| w.checked_mul(100));
    let points = points.and_then(|p| p.checked_add(hundredths));
    points
        .filter(|points| *points <= 10_000)
        .map(BasisPoints)
        .ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percents_are_read_exactly() {
        assert_eq!(percent("10"), Ok(BasisPoints(1_000)));
        assert_eq!(percent("12.5"), Ok(BasisPoints(1_250)));
        assert_eq!(percent("0.01"), Ok(BasisPoints(1)));
        assert_eq!(percent("100"), Ok(BasisPoints(10_000)));
        for wrong in ["", "100.01", "-1", "1.234", "ten", "1.", "4294967296"] {
            assert!(percent(wrong).is_err(), "{wrong}");
        }
    }
}
