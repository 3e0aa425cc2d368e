//! The steps from nothing to a cluster that serves.

use super::children::{Children, MakeCommand, Roster, Say};
use super::group::{Seats, admin_client, urls};
use super::report::Serving;
use super::split::{Bounds, Split};
use super::steps::Steps;
use super::supervise::{ChildId, Event, Kind};
use super::{Running, UpArgs, follow};
use crate::client::Client;
use crate::cmd::LogArgs;
use crate::cmd::join::THREADS_MAX;
use crate::failure::Failure;
use crate::last::write_private;
use crate::{machine, size, term};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use trireme_shared::api::*;
use trireme_shared::limits;
use trireme_shared::plan::{DeploymentSpec, ModelRef};
use trireme_shared::source::{self, Cancel, Progress, ResolveOptions, ResolvedModel};

/// The tenant that the first key belongs to.
const DEMO_TENANT: &str = "demo";
/// The workers join at once; an hour lets a debugger look in between.
const TOKEN_TTL: Duration = Duration::from_secs(3_600);

/// What a start works with.
pub struct Parts {
    pub children: Children,
    pub say: Say,
    pub data_dir: PathBuf,
    coordinators: Seats,
    workers: Vec<ChildId>,
    token_file: PathBuf,
}

/// A finished start.
pub struct Started {
    pub serving: Serving,
    /// Uses the model as the demo tenant.
    pub tenant: Client,
}

impl Parts {
    /// Names the processes and starts their supervisor; none of them runs yet.
    pub fn new(args: &UpArgs, data_dir: &Path, logs: &LogArgs, steps: &Steps) -> Result<Self> {
        let exe = std::env::current_exe().context("cannot find this program's own file")?;
        let token_file = data_dir.join("worker-token");
        let common = logs.to_args();
        let count = args.wanted().worker_count();
        let share = |whole: u64| whole / u64::from(count).max(1);
        let threads = args
            .threads_per_worker
            .unwrap_or_else(|| (share(machine::threads() as u64) as usize).max(1));
        let host_threads = threads.saturating_mul(count as usize).min(THREADS_MAX);
        let memory = args
            .memory_per_worker
            .unwrap_or_else(|| share(machine::memory_bytes()));

        let mut roster = Roster::new();
        let log = |name: &str| -> Result<PathBuf> {
            let path = data_dir.join(format!("{name}.log"));
            // Each `up` starts its logs anew; restarts within it append.
            write_private(&path, b"")?;
            Ok(path)
        };
        let coordinators = Seats::new(args, data_dir, (&exe, &common), &mut roster, log)?;
        let mut workers = Vec::new();
        for number in 1..=count {
            let (exe, common, controls) = (exe.clone(), common.clone(), coordinators.controls());
            let (dir, token) = (
                data_dir.join(format!("worker-{number}")),
                token_file.clone(),
            );
            let isa = args.isa.name();
            let command: MakeCommand = Box::new(move || {
                let known = controls.list();
                anyhow::ensure!(!known.is_empty(), "no coordinator's address is known");
                let mut command = Command::new(&exe);
                command
                    .args(&common)
                    .args(["join", "--lifeline", &known.join(",")]);
                command.args(["--threads", &threads.to_string(), "--isa", isa]);
                command.args(["--host-threads", &host_threads.to_string()]);
                command.args(["--memory", &memory.to_string(), "--listen", "127.0.0.1:0"]);
                command.arg("--data-dir").arg(&dir);
                // Gone once all have joined; later starts use the certificate.
                if token.exists() {
                    command.arg("--token-file").arg(&token);
                }
                Ok(command)
            });
            let log_path = log(&format!("worker-{number}"))?;
            let name = format!("worker process {number}");
            workers.push(roster.add(&name, Kind::Worker, log_path, command));
        }
        let say = steps.say();
        Ok(Self {
            children: roster.supervise(say.clone())?,
            say,
            data_dir: data_dir.to_owned(),
            coordinators,
            workers,
            token_file,
        })
    }

    /// Removes what must not stay behind.
    pub fn clean_up(&self) {
        self.coordinators.clean_up();
        // Often it is gone already.
        let _ = fs::remove_file(&self.token_file);
    }
}

/// Walks through all steps.
pub fn start(
    args: &UpArgs,
    parts: &Parts,
    steps: &Steps,
    running: &Running<'_>,
) -> Result<Started> {
    let deadline = Instant::now() + Duration::from_secs(args.timeout);
    parts.coordinators.launch(&parts.children);

    let step = steps.begin("model", "looking for it");
    let resolved = resolve(args, &step, running, deadline)?;
    let seen = source::inspect(&resolved.path).map_err(|error| {
        Failure::new(
            "the model file cannot be used",
            "check it with `cluster model inspect`, or choose another model",
        )
        .because(error)
    })?;
    let bounds = Bounds {
        tp_max: seen.tensor_parallel_max.into(),
        pp_max: seen.pipeline_parallel_max.into(),
    };
    let split = args.wanted().complete(bounds)?;
    step.done(&format!(
        "{}: {} layers, {} heads, {}",
        resolved.name,
        seen.config.layers,
        seen.config.heads,
        size::bytes(seen.bytes)
    ));
    (parts.say)(&format!(
        "  {:12} {}",
        "",
        term::dim(&format!("from {}", resolved.from))
    ));

    let step = steps.begin("coordinator", "starting");
    let coordinators = parts
        .coordinators
        .assemble(&parts.children, &step, running)?;
    let admin = admin_client(&coordinators);
    let places: Vec<String> = coordinators
        .iter()
        .map(|c| format!("{} at {}", c.id, c.http))
        .collect();
    step.done(&places.join(", "));

    let step = steps.begin("workers", "starting");
    let token = TokenRequest {
        role: TokenRole::Worker,
        provider: None,
        // A worker that is killed before it saved its certificate joins anew.
        uses: split.workers() + limits::CHILD_RESTARTS_MAX as u32,
        ttl_seconds: TOKEN_TTL.as_secs(),
    };
    let token: TokenCreated = admin.post("/admin/v1/tokens", &token)?;
    write_private(&parts.token_file, token.token.as_bytes())?;
    for worker in &parts.workers {
        parts.children.launch(*worker);
    }
    let deployment = deploy(&admin, spec(args, &resolved, split), running, deadline)?;
    until_joined(&admin, &step, parts, running, deadline)?;
    // All have certificates now: the token has done its work.
    parts.clean_up();
    let _: TokenReport = admin.delete(&format!("/admin/v1/tokens/{}", token.id.0))?;
    step.done(&format!("{} joined", parts.workers.len()));

    let api_key = demo_key(parts, &admin, &coordinators)?;
    let waiting = follow::Waiting {
        client: &admin,
        gateways: &urls(&coordinators),
        children: &parts.children,
        deployment: deployment.id,
        deadline,
    };
    let (status, deployment) = waiting.until_ready("weights", steps, running)?;
    parts.children.tell(Event::Serving);
    let tenant = Client::new(&urls(&coordinators), Some(api_key.clone()));
    let group = seen.config.group();
    Ok(Started {
        serving: Serving {
            coordinators,
            status,
            deployment,
            api_key,
            group,
        },
        tenant,
    })
}

/// Waits until the cluster serves again after a process was replaced.
pub fn again(
    args: &UpArgs,
    parts: &Parts,
    running: &Running<'_>,
    before: &Serving,
) -> Result<Serving> {
    let deadline = Instant::now() + Duration::from_secs(args.timeout);
    let coordinators = parts.coordinators.files(&parts.children, running)?;
    let admin = admin_client(&coordinators);
    let waiting = follow::Waiting {
        client: &admin,
        gateways: &urls(&coordinators),
        children: &parts.children,
        deployment: before.deployment.id,
        deadline,
    };
    let (status, deployment) = waiting.until_ready("recovered", &Steps::new(), running)?;
    Ok(Serving {
        coordinators,
        status,
        deployment,
        api_key: before.api_key.clone(),
        group: before.group,
    })
}

fn spec(args: &UpArgs, resolved: &ResolvedModel, split: Split) -> DeploymentSpec {
    DeploymentSpec {
        model: ModelRef {
            name: resolved.name.clone(),
            source: args.model.clone(),
            sha256: resolved.sha256.clone(),
        },
        tensor_parallel: split.tp,
        pipeline_parallel: split.pp,
        replicas: split.replicas,
        link: args.link.into(),
        precision: args.precision.into(),
    }
}

/// Runs `work` on a thread, so that a stop or the deadline can end the wait for it; `cancel` then
/// asks it to tidy up.
fn aside<T: Send + 'static>(
    running: &Running<'_>,
    deadline: Instant,
    what: &str,
    cancel: Option<Cancel>,
    work: impl FnOnce() -> Result<T> + Send + 'static,
    mut meanwhile: impl FnMut(),
) -> Result<T> {
    let (send, result) = sync_channel(1);

    std::thread::Builder::new()
        .name("step".into())
        .spawn(move || {
            // Where nobody waits any more, the result does not matter.
            let _ = send.send(work());
        })?;
    let error = loop {
        match result.recv_timeout(limits::CLIENT_POLL_INTERVAL) {
            Ok(result) => return result,
            Err(RecvTimeoutError::Disconnected) => anyhow::bail!("{what} failed without a reason"),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if let Err(stopped) = running.check() {
            break stopped;
        }
        meanwhile();
        if Instant::now() >= deadline {
            break Failure::new(
                format!("{what} took too long"),
                "give it longer with --timeout",
            )
            .into();
        }
    };
    let Some(cancel) = cancel else {
        return Err(error);
    };
    cancel.cancel();
    // What does not heed it (a server that is silent) ends with this process.
    let _ = result.recv_timeout(limits::CANCEL_GRACE);
    Err(error)
}

fn resolve(
    args: &UpArgs,
    step: &super::steps::Step,
    running: &Running<'_>,
    deadline: Instant,
) -> Result<ResolvedModel> {
    let latest: Arc<Mutex<Option<Progress>>> = Arc::default();
    let (seen, model) = (latest.clone(), args.model.clone());
    let options = ResolveOptions::default();
    let cancel = options.cancel.clone();
    let work = move || {
        let progress = |progress: Progress| {
            *seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(progress);
        };
        source::resolve(&model, &options, &progress).map_err(|error| {
            Failure::new(
                format!("the model {model} cannot be had"),
                "name another with --model (a path, hf://org/repo, https://...)",
            )
            .because(error)
        })
    };
    aside(
        running,
        deadline,
        "getting the model",
        Some(cancel),
        work,
        || {
            let progress = latest
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            if let Some(p) = progress {
                step.bytes(p.stage, p.done_bytes, p.total_bytes);
            }
        },
    )
}

fn deploy(
    admin: &Client,
    spec: DeploymentSpec,
    running: &Running<'_>,
    deadline: Instant,
) -> Result<DeploymentReport> {
    let admin = admin.clone();
    let work = move || admin.put("/admin/v1/deployments", &spec);
    aside(running, deadline, "deploying the model", None, work, || {})
}

fn until_joined(
    admin: &Client,
    step: &super::steps::Step,
    parts: &Parts,
    running: &Running<'_>,
    deadline: Instant,
) -> Result<()> {
    let wanted = parts.workers.len();
    loop {
        running.check()?;
        let pids = parts.children.view().pids;
        let report: StatusReport = admin.get("/admin/v1/status")?;
        let joined = joined(&report, &pids);
        if joined >= wanted {
            return Ok(());
        }
        step.doing(&format!("{joined} of {wanted} joined"));
        if Instant::now() >= deadline {
            return Err(Failure::new(
                format!("only {joined} of {wanted} workers joined"),
                format!("look at the workers' logs in {}", parts.data_dir.display()),
            )
            .into());
        }
        std::thread::sleep(limits::CLIENT_POLL_INTERVAL);
    }
}

fn joined(report: &StatusReport, pids: &[Option<u32>]) -> usize {
    let ours = |w: &&WorkerReport| {
        w.connected
            && w.inventory
                .as_ref()
                .is_some_and(|i| pids.contains(&Some(i.pid)))
    };
    report.workers.iter().filter(ours).count()
}

/// The demo tenant's key: the one an earlier run left here if it is still good, else a new one.
fn demo_key(parts: &Parts, admin: &Client, coordinators: &[CoordinatorFile]) -> Result<String> {
    let path = parts.data_dir.join("demo.key");
    if let Ok(key) = fs::read_to_string(&path) {
        let client = Client::new(&urls(coordinators), Some(key.clone()));
        if client
            .status_of("/v1/models")
            .is_ok_and(|status| status == 200)
        {
            return Ok(key);
        }
    }
    let request = KeyRequest::new(DEMO_TENANT.to_owned(), KeySettings::default());
    let created: KeyCreated = admin.post("/admin/v1/keys", &request)?;
    write_private(&path, created.key.as_bytes())?;
    Ok(created.key)
}
