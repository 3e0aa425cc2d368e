//! `cluster bench commits` beside etcd, in one run on one disk: three members each, the same number of
//! clients, and writes of as many bytes.
//!
//!     cargo build --release
//!     cargo run --release --manifest-path tests/bench/etcd/Cargo.toml -- --rounds 5 --seconds 5
//!
//! Needs `etcd` (Debian's `etcd-server`) in the path. Rounds take turns. etcd is driven in several ways
//! (all clients at the leader or spread over the members; a connection for each client or shared ones), and
//! the one that is best for it is what counts. What is not alike: three etcd processes get their writes
//! over gRPC from this process, while our three members live in one process with their clients, and only
//! the members talk over the network (QUIC with mutual TLS; etcd here without). So the processor time of
//! each side is shown too, and that of the driver apart from etcd's.

mod etcd;
mod ours;
mod rpc;

use anyhow::{Result, bail};
use std::path::PathBuf;
use std::time::Duration;

/// One measurement.
#[derive(Clone, Copy, Debug, Default)]
pub struct Speed {
    pub writes_per_second: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    /// Seconds of processor time per second: of the servers, and of what drives them. Ours has both in
    /// one process.
    pub servers_cpu: f64,
    pub driver_cpu: f64,
}

struct Options {
    rounds: usize,
    duration: Duration,
    clients: usize,
    cluster: PathBuf,
    dir: PathBuf,
}

/// How etcd's clients go to it.
#[derive(Clone, Copy)]
pub struct Way {
    pub name: &'static str,
    pub spread: bool,
    /// Connections in all; `None` is one for each client.
    pub connections: Option<usize>,
}

const WAYS: [Way; 5] = [
    Way {
        name: "etcd, leader, one per client",
        spread: false,
        connections: None,
    },
    Way {
        name: "etcd, leader, 6 connections",
        spread: false,
        connections: Some(6),
    },
    Way {
        name: "etcd, leader, 2 connections",
        spread: false,
        connections: Some(2),
    },
    Way {
        name: "etcd, spread, one per client",
        spread: true,
        connections: None,
    },
    Way {
        name: "etcd, spread, 6 connections",
        spread: true,
        connections: Some(6),
    },
];

fn options() -> Result<Options> {
    let mut options = Options {
        rounds: 5,
        duration: Duration::from_secs(5),
        clients: 64,
        cluster: "target/release/cluster".into(),
        dir: ".".into(),
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let Some(value) = words.next() else {
            bail!("{word} needs a value");
        };
        match word.as_str() {
            "--rounds" => options.rounds = value.parse()?,
            "--seconds" => options.duration = Duration::from_secs(value.parse()?),
            "--clients" => options.clients = value.parse()?,
            "--cluster" => options.cluster = value.into(),
            "--dir" => options.dir = value.into(),
            _ => bail!(
                "unknown {word}: --rounds, --seconds, --clients, --cluster (the binary) and --dir (on \
                 the disk to measure) can be set"
            ),
        }
    }
    Ok(options)
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = options()?;
    let mut ours = Vec::new();
    let mut etcd: Vec<Vec<Speed>> = WAYS.map(|_| Vec::new()).into();
    for round in 0..options.rounds {
        let (speed, command_bytes) = ours::measure(&options)?;
        println!(
            "round {}: ours {:.0} writes/s ({command_bytes} bytes each)",
            round + 1,
            speed.writes_per_second
        );
        ours.push(speed);
        let group = etcd::Group::start(&options.dir).await?;
        for turn in 0..WAYS.len() {
            // No way is always the first on a fresh group.
            let at = (round + turn) % WAYS.len();
            let speed = etcd::measure(
                &group,
                WAYS[at],
                options.clients,
                command_bytes,
                options.duration,
            );
            let speed = speed.await?;
            println!(
                "round {}: {} {:.0} writes/s",
                round + 1,
                WAYS[at].name,
                speed.writes_per_second
            );
            etcd[at].push(speed);
        }
    }
    show(&ours, &etcd);
    Ok(())
}

fn show(ours: &[Speed], etcd: &[Vec<Speed>]) {
    let all = |of: fn(&Speed) -> f64, speeds: &[Speed]| {
        let mut sorted: Vec<f64> = speeds.iter().map(of).collect();
        sorted.sort_by(f64::total_cmp);
        sorted
    };
    let median = |of: fn(&Speed) -> f64, speeds: &[Speed]| {
        let sorted = all(of, speeds);
        sorted[sorted.len() / 2]
    };
    println!(
        "\n{:<31} {:>9} {:>17} {:>8} {:>8} {:>11} {:>10}",
        "medians", "writes/s", "least-most", "p50 us", "p99 us", "server CPUs", "driver"
    );
    let line = |name: &str, speeds: &[Speed]| {
        let sorted = all(|s| s.writes_per_second, speeds);
        println!(
            "{name:<31} {:>9.0} {:>17} {:>8.0} {:>8.0} {:>11.2} {:>10.2}",
            median(|s| s.writes_per_second, speeds),
            format!("{:.0}-{:.0}", sorted[0], sorted[sorted.len() - 1]),
            median(|s| s.p50_us, speeds),
            median(|s| s.p99_us, speeds),
            median(|s| s.servers_cpu, speeds),
            median(|s| s.driver_cpu, speeds),
        );
    };
    line("ours, clients in its process", ours);
    for (way, speeds) in WAYS.iter().zip(etcd) {
        line(way.name, speeds);
    }
    let speed = |s: &[Speed]| median(|s| s.writes_per_second, s);
    let best = (0..WAYS.len()).max_by(|a, b| speed(&etcd[*a]).total_cmp(&speed(&etcd[*b])));
    let Some(best) = best else { return };
    let mut pairs: Vec<f64> = ours
        .iter()
        .zip(&etcd[best])
        .map(|(ours, etcd)| ours.writes_per_second / etcd.writes_per_second)
        .collect();
    pairs.sort_by(f64::total_cmp);
    println!(
        "\nours / {}: {:.2} (median of {} pairs; {:.2} to {:.2})",
        WAYS[best].name,
        pairs[pairs.len() / 2],
        pairs.len(),
        pairs[0],
        pairs[pairs.len() - 1]
    );
    let work = |s: &Speed| s.writes_per_second / s.servers_cpu.max(f64::MIN_POSITIVE);
    println!(
        "writes per second of the servers' processor time: ours {:.0} (with its clients), etcd {:.0}",
        median(work, ours),
        median(work, &etcd[best])
    );
}
