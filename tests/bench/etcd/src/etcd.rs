//! Three etcd members on loopback, with their defaults, and clients that put one value after the other.

use crate::ours::own_cpu;
use crate::rpc::{Client, PutRequest};
use crate::{Speed, Way};
use anyhow::{Context, Result, bail};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const MEMBERS: usize = 3;
const START_DEADLINE: Duration = Duration::from_secs(30);
const KEY_BYTES: usize = 16;

/// Ends with its value.
pub struct Group {
    members: Vec<Child>,
    /// Where clients go.
    addresses: Vec<String>,
    leader: usize,
    _folder: TempDir,
}

impl Drop for Group {
    fn drop(&mut self) {
        for member in &mut self.members {
            let _ = member.kill();
            let _ = member.wait();
        }
    }
}

impl Group {
    /// A fresh one, with its data in a new folder in `dir`.
    pub async fn start(dir: &Path) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix(".trireme-bench-etcd-")
            .tempdir_in(dir)?;
        // Held until all are known, so that no port is given twice.
        let held: Result<Vec<TcpListener>, _> = (0..2 * MEMBERS)
            .map(|_| TcpListener::bind("127.0.0.1:0"))
            .collect();
        let held = held?;
        let ports: Result<Vec<String>, _> = held
            .iter()
            .map(|one| one.local_addr().map(|address| address.to_string()))
            .collect();
        let ports = ports?;
        drop(held);
        let (clients, peers) = ports.split_at(MEMBERS);
        let everybody: Vec<String> = (0..MEMBERS)
            .map(|at| format!("m{at}=http://{}", peers[at]))
            .collect();
        let mut group = Self {
            members: Vec::new(),
            addresses: clients.to_vec(),
            leader: 0,
            _folder: folder,
        };
        for at in 0..MEMBERS {
            let home = group._folder.path().join(format!("m{at}"));
            let (client, peer) = (
                format!("http://{}", clients[at]),
                format!("http://{}", peers[at]),
            );
            let log = std::fs::File::create(group._folder.path().join(format!("m{at}.log")))?;
            let member = Command::new("etcd")
                .args(["--name", &format!("m{at}")])
                .arg("--data-dir")
                .arg(home)
                .args(["--listen-client-urls", &client])
                .args(["--advertise-client-urls", &client])
                .args(["--listen-peer-urls", &peer])
                .args(["--initial-advertise-peer-urls", &peer])
                .args(["--initial-cluster", &everybody.join(",")])
                .args(["--initial-cluster-state", "new"])
                .args(["--logger", "zap", "--log-level", "error"])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
                .context("cannot start etcd: install Debian's etcd-server")?;
            group.members.push(member);
        }
        group.leader = group.elected().await?;
        Ok(group)
    }

    /// The place of the leader, once every member knows it.
    async fn elected(&self) -> Result<usize> {
        let give_up = Instant::now() + START_DEADLINE;
        loop {
            let mut leader = None;
            let mut agree = 0;
            for (at, address) in self.addresses.iter().enumerate() {
                let Ok(mut client) = Client::connect(address).await else {
                    continue;
                };
                let Ok(status) = client.status().await else {
                    continue;
                };
                agree += usize::from(status.leader != 0);
                let own = status.header.map_or(0, |header| header.member);
                if own != 0 && own == status.leader {
                    leader = Some(at);
                }
            }
            match leader {
                Some(leader) if agree == MEMBERS => return Ok(leader),
                _ if Instant::now() > give_up => bail!("etcd has no leader"),
                _ => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// Processor time of all members so far.
    fn cpu(&self) -> Result<Duration> {
        let mut all = Duration::ZERO;
        for member in &self.members {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", member.id()))?;
            // After the name in brackets: utime and stime are the 12th and 13th (proc(5)), in 1/100 s.
            let (_, fields) = stat.rsplit_once(')').context("no such process")?;
            let ticks = fields.split_whitespace().skip(11).take(2);
            let ticks: Result<Vec<u64>, _> = ticks.map(str::parse).collect();
            all += Duration::from_millis(10 * ticks?.iter().sum::<u64>());
        }
        Ok(all)
    }

    async fn revision(&self) -> Result<i64> {
        let mut client = Client::connect(&self.addresses[self.leader]).await?;
        let header = client.status().await?.header;
        Ok(header.context("etcd gave no header")?.revision)
    }
}

/// Each client puts new keys, one after the other, for `duration`; key and value have `write_bytes`.
pub async fn measure(
    group: &Group,
    way: Way,
    clients: usize,
    write_bytes: usize,
    duration: Duration,
) -> Result<Speed> {
    let places = way.connections.unwrap_or(clients);
    let mut connections = Vec::new();
    for at in 0..places {
        let member = match way.spread {
            true => at % MEMBERS,
            false => group.leader,
        };
        connections.push(Client::connect(&group.addresses[member]).await?);
    }
    let value = vec![7; write_bytes.saturating_sub(KEY_BYTES)];
    let (before, servers, driver) = (group.revision().await?, group.cpu()?, own_cpu());
    let began = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for client in 0..clients {
        let mut connection = connections[client % places].clone();
        let value = value.clone();
        // No key twice, in any measurement of this group.
        let first = before as u64;
        tasks.spawn(async move {
            let mut taken = Vec::new();
            let mut n = 0u64;
            while began.elapsed() < duration {
                n += 1;
                let mut key = (client as u64 | first << 16).to_le_bytes().to_vec();
                key.extend(n.to_le_bytes());
                let value = value.clone();
                let asked = Instant::now();
                connection.put(PutRequest { key, value }).await?;
                taken.push(asked.elapsed());
            }
            anyhow::Ok(taken)
        });
    }
    let mut all = Vec::new();
    while let Some(taken) = tasks.join_next().await {
        all.extend(taken??);
    }
    let seconds = began.elapsed().as_secs_f64();
    let cpus = |now: Duration, then: Duration| (now - then).as_secs_f64() / seconds;
    let (servers_cpu, driver_cpu) = (cpus(group.cpu()?, servers), cpus(own_cpu(), driver));
    let written = group.revision().await? - before;
    if written != all.len() as i64 {
        bail!("{} puts were answered, etcd counts {written}", all.len());
    }
    all.sort_unstable();
    let at = |percent: usize| {
        let index = (all.len() * percent).div_ceil(100).max(1) - 1;
        all.get(index).map_or(0.0, |d| d.as_secs_f64() * 1e6)
    };
    Ok(Speed {
        writes_per_second: all.len() as f64 / seconds,
        p50_us: at(50),
        p99_us: at(99),
        servers_cpu,
        driver_cpu,
    })
}
