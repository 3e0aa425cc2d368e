//! `cluster model`: what can be served, and what a model file holds.

use super::ClientArgs;
use crate::failure::Failure;
use crate::{size, term};
use anyhow::Result;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use trireme_shared::model::Manifest;
use trireme_shared::source::{self, Progress, ResolveOptions, ResolvedModel};

#[derive(Args)]
#[command(after_help = "Example:\n  cluster model list\n  cluster model pull smollm2\n  cluster model inspect \
                        ./model.gguf")]
pub struct ModelArgs {
    #[command(subcommand)]
    command: ModelCommand,
}
