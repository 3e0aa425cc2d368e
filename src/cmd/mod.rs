//! The subcommands, a file each, and the options they share.

mod account;
mod audit;
mod backup;
mod bench;
mod ca;
mod chat;
mod completions;
mod coordinator;
mod deploy;
mod export;
mod join;
mod key;
mod member;
mod model;
mod money;
mod node;
mod plan;
mod price;
mod provider;
mod restore;
mod status;
mod tenant;
mod token;
mod undeploy;
mod up;
mod usage;
mod webhook;

use crate::client::Client;
use crate::failure::Failure;
use crate::last::Last;
use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio_util::sync::CancellationToken;
use trireme_shared::ids::RequestId;
use trireme_shared::model::{ActivationFormat, KvFormat, Precision, Quantize};
use trireme_shared::plan::LinkPolicy;
use trireme_shared::telemetry::{self, LogFormat};
use trireme_worker::backend::Isa;

/// Serve one large language model from many workers, with every token metered.
#[derive(Parser)]
#[command(
    name = "cluster",
    version,
    propagate_version = true,
    max_term_width = 100,
    after_help = "Example:\n  cluster up                      serve the default model on this machine\n  \
                  cluster chat \"Who sailed triremes?\"   ask it something"
)]
pub struct Cli {
    #[command(flatten)]
    logs: LogArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args, Clone)]
pub struct LogArgs {
    /// How log lines are written
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "FORMAT",
        default_value = "human"
    )]
    log_format: LogStyle,
    /// What is logged: error, warn, info, debug, trace, or a filter such as `trireme_worker=debug`
    #[arg(long, global = true, value_name = "LEVEL")]
    log_level: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogStyle {
    Human,
    Json,
}

#[derive(Subcommand)]
enum Command {
    /// Start a coordinator and workers on this machine and serve a model
    Up(Box<up::UpArgs>),
    /// Run a coordinator: control endpoint for workers and HTTP for clients
    Coordinator(coordinator::CoordinatorArgs),
    /// Join a cluster as a worker
    Join(join::JoinArgs),
    /// Serve a model on a running cluster
    Deploy(deploy::DeployArgs),
    /// Stop serving a model
    Undeploy(undeploy::UndeployArgs),
    /// Show coordinators, workers and what is being served
    Status(status::StatusArgs),
    /// Show which worker holds which layers, heads and columns
    Plan(plan::PlanArgs),
    /// Talk with the model in the terminal
    Chat(chat::ChatArgs),
    /// Measure a server or this machine's engine
    Bench(bench::BenchArgs),
    /// List, fetch and look into models
    Model(model::ModelArgs),
    /// Add, list, promote and remove coordinators
    Member(member::MemberArgs),
    /// List and remove nodes: workers and coordinators
    Node(node::NodeArgs),
    /// Create, list and revoke join tokens
    Token(token::TokenArgs),
    /// List tenants, and set how they pay and what bounds them
    Tenant(tenant::TenantArgs),
    /// Create, list, change, rotate and revoke API keys
    Key(key::KeyArgs),
    /// List and set what models cost
    Price(price::PriceArgs),
    /// Show or set what the platform keeps of every charge
    Fee(price::FeeArgs),
    /// Credit a tenant with money that it paid in
    Credit(money::CreditArgs),
    /// Give part of a request's charge back
    Refund(money::RefundArgs),
    /// Show what a tenant used and what it cost
    Usage(usage::UsageArgs),
    /// Show a tenant's statement of a month
    Statement(usage::StatementArgs),
    /// Set, show, test and remove where a tenant is told of its budget and statements
    Webhook(webhook::WebhookArgs),
    /// List providers, what they earned, and pay them
    Provider(provider::ProviderArgs),
    /// Show and rotate the cluster's certificate authority
    Ca(ca::CaArgs),
    /// Export and verify the audit log
    Audit(audit::AuditArgs),
    /// Write what was settled as files, each settlement once: CloudEvents or Parquet
    Export(export::ExportArgs),
    /// Write the cluster's state to a file
    Backup(backup::BackupArgs),
    /// Make a new group of one from a backup
    Restore(restore::RestoreArgs),
    /// Print a completion script for a shell
    Completions(completions::CompletionsArgs),
}

impl Cli {
    /// Runs the command that was asked for.
    pub fn run(self) -> Result<()> {
        let service = matches!(self.command, Command::Coordinator(_) | Command::Join(_));
        self.logs.start(if service { "info" } else { "warn" })?;
        match self.command {
            Command::Up(args) => args.run(&self.logs),
            Command::Coordinator(args) => args.run(),
            Command::Join(args) => args.run(),
            Command::Deploy(args) => args.run(),
            Command::Undeploy(args) => args.run(),
            Command::Tenant(args) => args.run(),
            Command::Key(args) => args.run(),
            Command::Price(args) => args.run(),
            Command::Fee(args) => args.run(),
            Command::Credit(args) => args.run(),
            Command::Refund(args) => args.run(),
            Command::Usage(args) => args.run(),
            Command::Statement(args) => args.run(),
            Command::Provider(args) => args.run(),
            Command::Webhook(args) => args.run(),
            Command::Status(args) => args.run(),
            Command::Plan(args) => args.run(),
            Command::Chat(args) => args.run(),
            Command::Bench(args) => args.run(),
            Command::Model(args) => args.run(),
            Command::Token(args) => args.run(),
            Command::Member(args) => args.run(),
            Command::Node(args) => args.run(),
            Command::Ca(args) => args.run(),
            Command::Audit(args) => args.run(),
            Command::Export(args) => args.run(),
            Command::Backup(args) => args.run(),
            Command::Restore(args) => args.run(),
            Command::Completions(args) => args.run(),
        }
    }
}

impl LogArgs {
    fn start(&self, default_level: &str) -> Result<()> {
        let format = match self.log_format {
            LogStyle::Human => LogFormat::Human,
            LogStyle::Json => LogFormat::Json,
        };
        let level = self.log_level.as_deref().unwrap_or(default_level);
        telemetry::init(format, level).map_err(|error| {
            Failure::usage(
                format!("the log level `{level}` cannot be used"),
                "use error, warn, info, debug or trace",
            )
            .because(error)
        })
    }

    /// The same choice as arguments for a child.
    fn to_args(&self) -> Vec<String> {
        let format = match self.log_format {
            LogStyle::Human => "human",
            LogStyle::Json => "json",
        };
        let mut args = vec!["--log-format".to_owned(), format.to_owned()];
        if let Some(level) = &self.log_level {
            args.extend(["--log-level".to_owned(), level.clone()]);
        }
        args
    }
}

/// Options of every command that changes a running cluster.
#[derive(Args, Clone)]
pub struct WriteArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Say the same again under this id, as an earlier try whose effect is unknown named it: it then
    /// takes effect once
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
}

impl WriteArgs {
    /// A client for one write.
    fn admin(&self) -> Result<Client> {
        Ok(self
            .client
            .admin()?
            .with_request_id(self.request_id.clone()))
    }

    /// A client for one write of a tenant's. Its key is of our own making: coordinators give theirs to the
    /// admin only.
    fn tenant(&self) -> Result<Client> {
        let id = self.request_id.clone();
        let id = id.unwrap_or_else(|| RequestId::random().to_string());
        Ok(self.client.tenant()?.with_request_id(Some(id)))
    }

    fn json(&self) -> bool {
        self.client.json
    }
}

/// Options of every command that asks a running cluster.
#[derive(Args, Clone)]
pub struct ClientArgs {
    /// HTTP addresses of coordinators, tried in order [default: the last `cluster up`]
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    coordinator: Vec<String>,
    /// Key to show: the admin key for cluster commands, a tenant's for chat [default: the last
    /// `cluster up`'s]
    #[arg(
        long,
        value_name = "KEY",
        env = "TRIREME_API_KEY",
        hide_env_values = true
    )]
    api_key: Option<String>,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

impl ClientArgs {
    /// A client that administers the cluster.
    fn admin(&self) -> Result<Client> {
        self.client(|last| &last.admin_key)
    }

    /// A client that uses the model.
    fn tenant(&self) -> Result<Client> {
        self.client(|last| &last.api_key)
    }

    fn client(&self, key: impl Fn(&Last) -> &String) -> Result<Client> {
        let last = Last::load();
        let urls = match (&self.coordinator[..], &last) {
            ([], Some(last)) => last.coordinators.clone(),
            ([], None) => {
                return Err(Failure::new(
                    "no cluster is known",
                    "start one with `cluster up`, or name one with --coordinator URL",
                )
                .into());
            }
            (urls, _) => urls.to_vec(),
        };
        // A key is shown only to the cluster that gave it.
        let known = last
            .as_ref()
            .filter(|last| same_cluster(&urls, &last.coordinators));
        let key = self
            .api_key
            .clone()
            .or_else(|| known.map(|last| key(last).clone()));
        Ok(Client::new(&urls, key))
    }
}

fn same_cluster(asked: &[String], known: &[String]) -> bool {
    let bare = |url: &String| {
        url.trim_end_matches('/')
            .trim_start_matches("http://")
            .to_owned()
    };
    asked
        .iter()
        .all(|url| known.iter().any(|k| bare(k) == bare(url)))
}

/// A time of the API in RFC 3339.
fn when(seconds: u64) -> String {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|at| at.format(&Rfc3339).ok())
        .unwrap_or_else(|| "never".to_owned())
}

/// A day (its first second in UTC) or a time of RFC 3339, as seconds since 1970.
fn moment(text: &str) -> Result<u64, String> {
    let wrong = || "write a day like 2027-01-01 or a time like 2027-01-01T12:00:00Z".to_owned();
    // A day is a time at its midnight.
    let midnight = format!("{text}T00:00:00Z");
    let parsed = OffsetDateTime::parse(text, &Rfc3339);
    let parsed = parsed.or_else(|_| OffsetDateTime::parse(&midnight, &Rfc3339));
    let at = parsed.map_err(|_| wrong())?.unix_timestamp();
    u64::try_from(at).map_err(|_| wrong())
}

/// A length of time as people write it (90s, 30m, 24h, 7d), in seconds.
fn seconds(text: &str) -> Result<u64, String> {
    let wrong = || "write it like 90s, 30m, 24h or 7d".to_owned();
    let split = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor: u64 = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number
        .checked_mul(factor)
        .filter(|&s| s > 0)
        .ok_or_else(wrong)
}

/// A secret that lies in a file, `-` being stdin, without the spaces around it.
fn read_secret(path: &Path, what: &str, next: &str) -> Result<String> {
    /// Longer files hold something else.
    const SECRET_FILE_BYTES_MAX: u64 = 4_096;
    let read = || -> std::io::Result<String> {
        let mut text = String::new();
        if path == Path::new("-") {
            std::io::stdin()
                .lock()
                .take(SECRET_FILE_BYTES_MAX)
                .read_to_string(&mut text)?;
        } else {
            std::fs::File::open(path)?
                .take(SECRET_FILE_BYTES_MAX)
                .read_to_string(&mut text)?;
        }
        Ok(text.trim().to_owned())
    };
    read().map_err(|error| {
        Failure::new(format!("cannot read {what} from {}", path.display()), next).because(error)
    })
}

/// A join token from its option or its file.
fn token_of(token: &Option<String>, file: &Option<PathBuf>) -> Result<Option<String>> {
    let next = "make a token with `cluster token create` and write it to that file";
    match (token, file) {
        (Some(token), _) => Ok(Some(token.trim().to_owned())),
        (None, Some(path)) => read_secret(path, "the token", next).map(Some),
        (None, None) => Ok(None),
    }
}

/// How ranks exchange tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Link {
    /// Shared memory between ranks on one host, QUIC between hosts
    #[default]
    Auto,
    /// QUIC everywhere
    Quic,
}

impl From<Link> for LinkPolicy {
    fn from(link: Link) -> Self {
        match link {
            Link::Auto => Self::Auto,
            Link::Quic => Self::Quic,
        }
    }
}

/// How ranks keep a model's numbers.
#[derive(Args, Clone, Copy)]
pub struct PrecisionArgs {
    /// Quantise matrices of floats as they are loaded [default: numbers stay as the file has them]
    #[arg(long, value_name = "BITS", value_enum)]
    quantize: Option<QuantizeChoice>,
    /// How activations are rounded before quantised weights multiply them
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    activations: ActivationChoice,
    /// How the KV cache holds keys and values
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    kv: KvChoice,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum QuantizeChoice {
    /// 8 bits a weight, in blocks of 32 (8.5 with the blocks' scales)
    Q8,
    /// 4 bits (5 with scales and minima); 8 of the embedding and the output
    Q4,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum ActivationChoice {
    /// Next to nothing is lost
    #[default]
    Int16,
    /// Half the products, for batches and prompts; logprobs move by a few hundredths
    Int8,
    /// Weights, too: the fastest for batches and prompts where all workers have AMX, the slowest where they
    /// do not; logprobs move by some thousandths
    Bf16,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum KvChoice {
    /// Two bytes a number; bf16 where activations are bf16 and there is AMX
    #[default]
    F16,
    /// Bytes with a scale for each token and head: about half the memory
    Int8,
}

impl From<PrecisionArgs> for Precision {
    fn from(args: PrecisionArgs) -> Self {
        Self {
            quantize: args.quantize.map(|quantize| match quantize {
                QuantizeChoice::Q8 => Quantize::Q8,
                QuantizeChoice::Q4 => Quantize::Q4,
            }),
            activations: match args.activations {
                ActivationChoice::Int16 => ActivationFormat::Int16,
                ActivationChoice::Int8 => ActivationFormat::Int8,
                ActivationChoice::Bf16 => ActivationFormat::Bf16,
            },
            kv: match args.kv {
                KvChoice::F16 => KvFormat::F16,
                KvChoice::Int8 => KvFormat::Int8,
            },
        }
    }
}

/// What is not the default, behind a line's other settings.
fn precision(precision: &Precision) -> String {
    let settings = precision.settings();
    settings
        .map(|(name, value)| format!("  {name} {value}"))
        .collect()
}

/// A model that is a path on this machine, as other processes find it too; others stay as they are.
fn absolute(model: &str) -> Result<String> {
    let path = Path::new(model);
    if !path.exists() {
        return Ok(model.to_owned());
    }
    let absolute = std::fs::canonicalize(path).context("cannot resolve the model's path")?;
    Ok(absolute.to_string_lossy().into_owned())
}

/// Which CPU kernels to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum IsaChoice {
    /// The best this machine has
    #[default]
    Auto,
    /// Plain code for any machine
    Portable,
    Avx2,
    Avx512Vnni,
    /// The same, with tiles for products of several rows
    Amx,
}

impl IsaChoice {
    fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512Vnni => "avx512-vnni",
            Self::Amx => "amx",
        }
    }

    /// Refuses what this machine does not have.
    fn choose(self) -> Result<Isa> {
        let best = Isa::detect();
        let isa = match self {
            Self::Auto => best,
            Self::Portable => Isa::Portable,
            Self::Avx2 => Isa::Avx2,
            Self::Avx512Vnni => Isa::Avx512Vnni,
            Self::Amx => Isa::Amx,
        };
        if !isa.available() {
            return Err(Failure::usage(
                format!("this machine has no {}", isa.name()),
                format!("use --isa auto; the best here is {}", best.name()),
            )
            .into());
        }
        Ok(isa)
    }
}

/// Runs a service on a small runtime until it ends or a signal (or the lifeline) stops it.
fn serve<F, E>(lifeline: bool, run: impl FnOnce(CancellationToken) -> F) -> Result<()>
where
    F: Future<Output = Result<(), E>>,
    E: std::error::Error + Send + Sync + 'static,
{
    /// Control messages and HTTP need little; the cores are for the model.
    const RUNTIME_THREADS: usize = 2;
    /// How long blocking work may hold up the exit after the service has ended.
    const LINGER: Duration = Duration::from_secs(2);

    let shutdown = CancellationToken::new();
    let asked = shutdown.clone();
    crate::signals::watch(move |_| {
        if asked.is_cancelled() {
            tracing::warn!("asked to stop a second time: ending at once");
            std::process::exit(1);
        }
        tracing::info!("asked to stop: draining");
        asked.cancel();
    })
    .context("cannot listen for signals")?;
    if lifeline {
        let asked = shutdown.clone();
        crate::lifeline::watch(move || asked.cancel()).context("cannot watch the lifeline")?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(RUNTIME_THREADS)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let ended = runtime.block_on(run(shutdown));
    runtime.shutdown_timeout(LINGER);
    Ok(ended?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent_and_every_help_has_an_example() {
        let mut command = Cli::command();
        command.build();
        command.clone().debug_assert();
        fn check(command: &mut clap::Command) {
            let name = command.get_name().to_owned();
            if name != "help" {
                let help = command.render_long_help().to_string();
                assert!(help.contains("Example"), "{name} has no example");
                for sub in command.get_subcommands_mut() {
                    check(sub);
                }
            }
        }
        check(&mut command);
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        assert_eq!(seconds("90"), Ok(90));
        assert_eq!(seconds("30m"), Ok(1_800));
        assert_eq!(seconds("7d"), Ok(604_800));
        for wrong in ["", "h", "0s", "1y", "-1", "99999999999999999999d"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
        assert_eq!(when(0), "1970-01-01T00:00:00Z");
        assert_eq!(moment("1970-01-02"), Ok(86_400));
        assert_eq!(moment("1970-01-02T01:00:00+01:00"), Ok(86_400));
        assert!(moment("tomorrow").is_err());
    }

    #[test]
    fn a_known_key_goes_only_to_its_own_cluster() {
        let known = vec!["http://127.0.0.1:8080".to_owned()];
        assert!(same_cluster(&["127.0.0.1:8080/".to_owned()], &known));
        assert!(!same_cluster(
            &["127.0.0.1:8080".into(), "evil.example".into()],
            &known
        ));
    }
}
