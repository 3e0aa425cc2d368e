//! `cluster deploy`: asks a running cluster to serve a model.
//!
//! Thin: the coordinator opens the model, checks the split and places the ranks; this names what is
//! wanted and shows what came of it. `cluster up` does the same for its own cluster.

use super::status::state_of;
use super::{Link, PrecisionArgs, WriteArgs};
use crate::term;
use anyhow::Result;
use clap::Args;
use std::path::Path;
use trireme_shared::api::DeploymentReport;
use trireme_shared::plan::{DeploymentSpec, ModelRef};

#[derive(Args)]
#[command(
    after_help = "Example:\n  cluster deploy smollm2 --tp 2\n  cluster deploy hf://org/repo/model.gguf --name \
                        m --pp 2 --replicas 2\n  cluster status --watch                shows it load\n\nIt needs \
                        tp x pp x replicas workers. Deploying a name again replaces what it names; \
                        `cluster undeploy NAME` ends it."
)]
pub struct DeployArgs {
    #[command(flatten)]
    write: WriteArgs,
    /// A catalogue name, hf://org/repo, https:// or pypi:// address, or a path that every worker has
    model: String,
    /// Name to serve it under [default: the model's own]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Ranks that share each layer (tensor parallel)
    #[arg(long, value_name = "T", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    tp: u16,
    /// Stages of layers (pipeline parallel)
    #[arg(long, value_name = "P", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pp: u16,
    /// Full copies of the model
    #[arg(long, value_name = "R", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    replicas: u16,
    /// How ranks exchange tensors: shared memory on one host (auto), or QUIC everywhere
    #[arg(long, value_enum, default_value_t)]
    link: Link,
    #[command(flatten)]
    precision: PrecisionArgs,
    /// Refuse a model file of another SHA-256 (hex)
    #[arg(long, value_name = "HEX")]
    sha256: Option<String>,
}

impl DeployArgs {
    pub fn run(self) -> Result<()> {
        let client = self.write.admin()?;
        let source = super::absolute(&self.model)?;
        let name = self.name.unwrap_or_else(|| name_of(&source));
        let spec = DeploymentSpec {
            model: ModelRef {
                name,
                source,
                sha256: self.sha256,
            },
            tensor_parallel: self.tp,
            pipeline_parallel: self.pp,
            replicas: self.replicas,
            link: self.link.into(),
            precision: self.precision.into(),
        };
        term::err("the coordinator opens the model (fetching it if it has to) ...");
        let report: DeploymentReport = client.put("/admin/v1/deployments", &spec)?;
        if self.write.json() {
            return term::json(&report);
        }
        term::out(format!(
            "{} is deployed: tp {} x pp {} x replicas {}{}",
            term::bold(&report.spec.model.name),
            report.spec.tensor_parallel,
            report.spec.pipeline_parallel,
            report.spec.replicas,
            super::precision(&report.spec.precision)
        ));
        let rows = report.replicas.iter();
        let rows = rows.map(|r| vec![r.replica.to_string(), state_of(r)]);
        term::out(term::table(&["replica", "state"], rows.collect()));
        term::err("`cluster status --watch` shows it load; `cluster chat` talks with it");
        Ok(())
    }
}

/// The name that a source suggests: its last part, without revision and ending.
fn name_of(source: &str) -> String {
    let last = Path::new(source).file_name();
    let last = last.map_or_else(|| source.into(), |n| n.to_string_lossy());
    let last = last.split(['@', '?', '#']).next().unwrap_or_default();
    last.strip_suffix(".gguf").unwrap_or(last).to_owned()
}

#[cfg(test)]
mod tests {
    use super::name_of;

    #[test]
    fn a_source_suggests_its_name() {
        for (source, name) in [
            ("smollm2", "smollm2"),
            ("hf://org/repo", "repo"),
            ("hf://org/repo@main", "repo"),
            ("hf://org/repo/m-Q4.gguf", "m-Q4"),
            ("/models/m.v2.gguf", "m.v2"),
            ("https://host/m.gguf?x=1", "m"),
        ] {
            assert_eq!(name_of(source), name, "{source}");
        }
    }
}
