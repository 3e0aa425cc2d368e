//! `cluster up`: a whole cluster on this machine, from one command.
//!
//! Coordinators and workers are child processes of the same binary that join exactly as
//! remote ones would: join token, certificate, QUIC. `split` (pure) completes what was asked for;
//! `start` walks through the steps, `group` has the coordinators find together; `supervise` (pure) and `children` keep the processes; `steps`
//! and `follow` show progress; `report` and `demo` print the result.

mod children;
mod demo;
mod follow;
mod group;
mod report;
mod split;
mod start;
mod steps;
mod supervise;

use super::{IsaChoice, Link, LogArgs, PrecisionArgs};
use crate::failure::Failure;
use crate::lock::DirLock;
use crate::{last, size};
use anyhow::{Context, Result};
use children::Children;
use clap::Args;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;
use supervise::Event;

#[derive(Args)]
#[command(
    after_help = "Example:\n  cluster up\n  cluster up --model ./model.gguf --workers 4 --tp 2 --pp 2\n  \
                        cluster up --coordinators 3 --workers 2\n  \
                        cluster up --ready-file ready.json --no-demo   # for scripts"
)]
pub struct UpArgs {
    /// Model to serve: a catalogue name, a path, hf://org/repo, https:// or pypi:// address
    #[arg(long, value_name = "MODEL", default_value = "smollm2")]
    model: String,
    /// Worker processes [default: what the split needs, else 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    workers: Option<u16>,
    /// Coordinator processes, 1, 3 or 5: with 3 any one may die, with 5 any two [default: as many as
    /// the data folder holds, else 1]
    #[arg(long, value_name = "N", value_parser = coordinators)]
    coordinators: Option<u16>,
    /// Ranks that share each layer (tensor parallel); tp x pp x replicas = workers
    #[arg(long, value_name = "T", value_parser = clap::value_parser!(u16).range(1..))]
    tp: Option<u16>,
    /// Stages of layers (pipeline parallel)
    #[arg(long, value_name = "P", value_parser = clap::value_parser!(u16).range(1..))]
    pp: Option<u16>,
    /// Full copies of the model
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u16).range(1..))]
    replicas: Option<u16>,
    /// Compute threads of each worker [default: the machine's cores shared out]
    #[arg(long, value_name = "N", value_parser = super::join::threads)]
    threads_per_worker: Option<usize>,
    /// Memory of each worker, e.g. 4GiB [default: 80 % of what is free, shared out]
    #[arg(long, value_name = "BYTES", value_parser = size::parse_bytes)]
    memory_per_worker: Option<u64>,
    /// Where clients connect (HTTP); port 0 picks one, as for the further coordinators
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Folder for state, certificates and logs [default: one for each model, in this user's state
    /// folder]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Write endpoint, keys and process ids to this file (JSON) once requests are answered
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// How ranks exchange tensors: shared memory on one host (auto), or QUIC everywhere
    #[arg(long, value_enum, default_value_t)]
    link: Link,
    #[command(flatten)]
    precision: PrecisionArgs,
    /// Which CPU kernels the workers run
    #[arg(long, value_enum, default_value_t)]
    isa: IsaChoice,
    /// Let tenants' webhooks be at private addresses, and on this machine by http
    #[arg(long)]
    allow_private_webhooks: bool,
    /// Skip the first question
    #[arg(long)]
    no_demo: bool,
    /// End after the first question (for scripts)
    #[arg(long)]
    exit: bool,
    /// Give up if it does not serve within this time, model download included
    #[arg(long, value_name = "SECONDS", default_value_t = 1_800, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
}

/// The start was ended by the user or by a child's end; the reason was already said.
#[derive(Debug, thiserror::Error)]
#[error("the cluster is stopping")]
struct Stopped;

/// Lets a step notice that everything is being stopped.
struct Running<'a> {
    children: &'a Children,
}

impl Running<'_> {
    /// An error once the end was decided.
    fn check(&self) -> Result<()> {
        match self.children.view().stopping {
            true => Err(Stopped.into()),
            false => Ok(()),
        }
    }
}

impl UpArgs {
    pub fn run(mut self, logs: &LogArgs) -> Result<()> {
        // What can be refused is refused before anything is started.
        self.wanted().complete(split::ANY_MODEL)?;
        self.isa.choose()?;
        self.model = super::absolute(&self.model)?;
        let data_dir = self.data_dir()?;
        crate::lock::make_dir(&data_dir)?;
        let data_dir = fs::canonicalize(&data_dir).context("cannot resolve the data folder")?;
        let _lock = DirLock::acquire(&data_dir, "up.lock", "`cluster up`", Duration::ZERO)?;
        check_port(self.listen)?;
        if let Some(path) = &self.ready_file {
            // A script must never take an old file for the new cluster's.
            match fs::remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Failure::new(
                        format!("cannot replace {}", path.display()),
                        "check its permissions, or choose another with --ready-file",
                    )
                    .because(error));
                }
                _ => {}
            }
        }
        let code = self.supervise(&data_dir, logs)?;
        if code == 0 {
            return Ok(());
        }
        Err(Failure::new(
            "the cluster has ended",
            format!(
                "the lines above say why; logs are in {}",
                data_dir.display()
            ),
        )
        .into())
    }

    fn supervise(&self, data_dir: &Path, logs: &LogArgs) -> Result<u8> {
        let steps = steps::Steps::new();
        let parts = start::Parts::new(self, data_dir, logs, &steps)?;
        let children = &parts.children;
        let interrupt = children.interrupter();
        crate::signals::watch(move |_| interrupt()).context("cannot listen for signals")?;

        let result = self.serve(&parts, &steps);
        let (code, error) = match result {
            Ok(()) => (0, None),
            Err(error) if error.is::<Stopped>() => (0, None),
            Err(error) => (1, Some(error)),
        };
        // Where the end was decided already, its own code stays.
        children.tell(Event::Stop { code });
        let code = children.wait_done();
        parts.clean_up();
        match error {
            Some(error) => Err(error),
            None => Ok(code),
        }
    }

    /// Starts, reports, shows, and then waits for the end.
    fn serve(&self, parts: &start::Parts, steps: &steps::Steps) -> Result<()> {
        let running = Running {
            children: &parts.children,
        };
        let started = start::start(self, parts, steps, &running)?;
        let mut serving = started.serving;
        serving.write(self.ready_file.as_deref())?;
        let mut starts = parts.children.view().starts;
        (parts.say)(&format!(
            "  {:12} in {}",
            "ready",
            size::duration(steps.elapsed())
        ));
        serving.print();
        if !self.no_demo {
            demo::ask(
                &started.tenant,
                &serving.deployment.spec.model.name,
                &running,
            )?;
        }
        if self.exit {
            return Ok(());
        }
        crate::term::out("");
        crate::term::out(format!(
            "  cluster chat talks with it, cluster status shows it, Ctrl-C ends it.\n  logs: {}",
            parts.data_dir.display()
        ));
        loop {
            starts = parts.children.wait_for_change(starts).starts;
            running.check()?;
            // A process was replaced: say when all is well again, with the new process ids.
            match start::again(self, parts, &running, &serving) {
                Ok(now) => {
                    serving = now;
                    serving.write(self.ready_file.as_deref())?;
                }
                Err(error) if error.is::<Stopped>() => return Err(error),
                Err(error) => (parts.say)(&format!("not serving: {error:#}")),
            }
        }
    }

    fn wanted(&self) -> split::Wanted {
        split::Wanted {
            workers: self.workers,
            tp: self.tp,
            pp: self.pp,
            replicas: self.replicas,
        }
    }

    fn data_dir(&self) -> Result<PathBuf> {
        if let Some(dir) = &self.data_dir {
            return Ok(dir.clone());
        }
        // A folder of its own for each model: its cluster finds only deployments it can serve.
        let name: String = self
            .model
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() || "-_.".contains(c) {
                    c
                } else {
                    '_'
                }
            })
            .collect();
        let name = name.trim_matches(['_', '.']);
        let tail = name.len().saturating_sub(100);
        Ok(last::state_dir()?.join("up").join(&name[tail..]))
    }
}

fn coordinators(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(count) if group::COORDINATORS.contains(&count) => Ok(count),
        _ => Err("a group has 1, 3 or 5 coordinators".to_owned()),
    }
}

fn check_port(listen: SocketAddr) -> Result<()> {
    match TcpListener::bind(listen) {
        Ok(_) => Ok(()),
        Err(error) => {
            let what = match error.kind() {
                std::io::ErrorKind::AddrInUse => format!("{listen} is already in use"),
                _ => format!("cannot listen on {listen}"),
            };
            Err(Failure::new(
                what,
                "end what listens there (`cluster status` shows a cluster of yours), or choose \
                 another address with --listen HOST:PORT (port 0 picks a free one)",
            )
            .because(error))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_refused_with_advice() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = check_port(address).unwrap_err().to_string();
        assert!(error.contains("already in use"), "{error}");
        drop(taken);
        check_port(address).unwrap();
    }
}
