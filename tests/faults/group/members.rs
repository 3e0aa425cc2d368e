//! A group of real `cluster coordinator` processes on this machine, each with a folder and fixed ports
//! of its own.

use crate::harness::{self, DEADLINE, processes, wait_for};
use serde_json::{Value, json};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub struct Group {
    pub members: Vec<Member>,
    pub admin_key: String,
    /// Secret parts of the join tokens that were made.
    pub secrets: Vec<String>,
    pub dir: tempfile::TempDir,
    agent: ureq::Agent,
}

pub struct Member {
    pub folder: PathBuf,
    /// Where its processes run: this host, or a network namespace of the test.
    pub host: Host,
    control: u16,
    http: u16,
    join: Option<(String, PathBuf)>,
    child: Mutex<Option<Child>>,
}

#[derive(Clone)]
pub enum Host {
    Here,
    Namespace { name: String, address: Ipv4Addr },
}

impl Host {
    fn address(&self) -> Ipv4Addr {
        match self {
            Self::Here => Ipv4Addr::LOCALHOST,
            Self::Namespace { address, .. } => *address,
        }
    }

    fn command(&self) -> Command {
        match self {
            Self::Here => harness::binary(),
            Self::Namespace { name, .. } => {
                let mut command = Command::new("ip");
                let binary = env!("CARGO_BIN_EXE_cluster");
                command.args(["netns", "exec", name, binary]);
                command
            }
        }
    }
}

/// What a member answered; `None` where it could not be reached or did not answer in time.
pub type Answered = Option<(u16, Value)>;

impl Group {
    /// Three members, all voting.
    pub fn of_three() -> Self {
        Self::on(&[Host::Here, Host::Here, Host::Here])
    }

    /// A member on each host, the first of which founds the group.
    pub fn on(hosts: &[Host]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let folders: Vec<PathBuf> = (1..=hosts.len())
            .map(|n| dir.path().join(format!("c{n}")))
            .collect();
        Self::in_folders(dir, hosts, &folders)
    }

    pub fn in_folders(dir: tempfile::TempDir, hosts: &[Host], folders: &[PathBuf]) -> Self {
        let mut group = Self {
            members: Vec::new(),
            admin_key: String::new(),
            secrets: Vec::new(),
            agent: ureq::Agent::config_builder()
                .http_status_as_error(false)
                .timeout_global(Some(Duration::from_secs(8)))
                .build()
                .into(),
            dir,
        };
        for (host, folder) in hosts.iter().zip(folders) {
            group.add(host.clone(), folder.clone());
        }
        group
    }

    /// Starts one more member and waits until it votes.
    pub fn add(&mut self, host: Host, folder: PathBuf) -> usize {
        let join = (!self.members.is_empty()).then(|| {
            let token = self
                .dir
                .path()
                .join(format!("token-{}", self.members.len()));
            let wish = json!({"role": "coordinator", "uses": 1, "ttl_seconds": 600});
            let made = wait_for("a join token", DEADLINE, || {
                let (status, body) = self.ask_any("POST", "/admin/v1/tokens", Some(&wish))?;
                (status == 201).then_some(body)
            });
            let text = made["token"].as_str().expect("a token");
            self.secrets
                .extend(text.rsplit('.').next().map(str::to_owned));
            std::fs::write(&token, text).expect("a file");
            let alive: Vec<String> = self
                .alive()
                .map(|n| self.members[n].control_address())
                .collect();
            (alive.join(","), token)
        });
        let (control, http) = free_ports();
        let member = Member {
            folder,
            host,
            control,
            http,
            join,
            child: Mutex::default(),
        };
        self.members.push(member);
        let index = self.members.len() - 1;
        self.members[index].start();
        let file = self.members[index].folder.join("coordinator.json");
        let written: Value = wait_for("a coordinator to listen", DEADLINE, || {
            let member = &self.members[index];
            assert!(member.is_running(), "it ended:\n{}", member.log());
            serde_json::from_str(&std::fs::read_to_string(&file).ok()?).ok()
        });
        if let Some(key) = written["admin_key"].as_str() {
            self.admin_key = key.to_owned();
        }
        let wanted = self.members.len();
        let id = self.members[index].id();
        wait_for("the newcomer to vote", DEADLINE, || {
            let status = self.status(index)?;
            let mine = status["coordinators"]
                .as_array()?
                .iter()
                .find(|c| c["id"].as_u64() == id)?;
            let role = mine["role"].as_str()?;
            (matches!(role, "leader" | "follower") || wanted == 1).then_some(())
        });
        index
    }

    fn alive(&self) -> impl Iterator<Item = usize> {
        (0..self.members.len()).filter(|n| self.members[*n].child().is_some())
    }

    /// One question to one member, answered within a few seconds or not at all.
    pub fn ask(&self, member: usize, method: &str, path: &str, body: Option<&Value>) -> Answered {
        self.ask_with(
            member,
            method,
            path,
            body,
            &[("authorization", &format!("Bearer {}", self.admin_key))],
        )
    }

    pub fn ask_with(
        &self,
        member: usize,
        method: &str,
        path: &str,
        body: Option<&Value>,
        headers: &[(&str, &str)],
    ) -> Answered {
        let url = format!("{}{path}", self.members[member].http_address());
        let mut request = ureq::http::Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let text = body.map(Value::to_string).unwrap_or_default();
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let request = request.body(text).expect("a request");
        let mut answer = self.agent.run(request).ok()?;
        let status = answer.status().as_u16();
        let text = answer.body_mut().read_to_string().ok()?;
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Some((status, body))
    }

    fn ask_any(&self, method: &str, path: &str, body: Option<&Value>) -> Answered {
        self.alive().find_map(|n| self.ask(n, method, path, body))
    }

    pub fn status(&self, member: usize) -> Option<Value> {
        let (status, body) = self.ask(member, "GET", "/admin/v1/status", None)?;
        (status == 200).then_some(body)
    }

    /// The member that leads, as a member other than those in `but` says.
    pub fn leader(&self, but: &[usize]) -> Option<usize> {
        let asked: Vec<usize> = self.alive().filter(|n| !but.contains(n)).collect();
        asked.into_iter().find_map(|n| {
            let leader = self.status(n)?["leader"].as_u64()?;
            self.members.iter().position(|m| m.id() == Some(leader))
        })
    }

    pub fn wait_for_leader(&self, but: &[usize]) -> usize {
        wait_for("a leader", DEADLINE, || {
            self.leader(but).filter(|l| !but.contains(l))
        })
    }

    /// All members show the same applied entry, which is the last one.
    pub fn wait_until_level(&self) {
        wait_for("all members to be level", DEADLINE, || {
            let leader = self.leader(&[])?;
            let status = self.status(leader)?;
            let all = status["coordinators"].as_array()?;
            let level = all.iter().all(|c| c["lag"].as_u64() == Some(0));
            level.then_some(())
        });
    }
}

impl Member {
    pub fn control_address(&self) -> String {
        format!("{}:{}", self.host.address(), self.control)
    }

    pub fn http_address(&self) -> String {
        format!("http://{}:{}", self.host.address(), self.http)
    }

    /// Its number, once it has one: from the file it writes when it listens.
    pub fn id(&self) -> Option<u64> {
        let pem = std::fs::read_to_string(self.folder.with_extension("id")).ok();
        pem.and_then(|text| text.trim().parse().ok()).or_else(|| {
            let file = std::fs::read_to_string(self.folder.join("coordinator.json")).ok()?;
            let id = serde_json::from_str::<Value>(&file).ok()?["id"].as_u64()?;
            // Kept beside the folder: the file goes when the coordinator stops.
            let _ = std::fs::write(self.folder.with_extension("id"), id.to_string());
            Some(id)
        })
    }

    pub fn log_file(&self) -> PathBuf {
        self.folder.with_extension("log")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn start(&self) {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_file())
            .expect("a log file");
        let mut command = self.host.command();
        command
            .arg("coordinator")
            .arg("--data-dir")
            .arg(&self.folder)
            .args(["--listen", &self.control_address()])
            .args(["--http", &format!("{}:{}", self.host.address(), self.http)])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log);
        if let Some((addresses, token)) = &self.join {
            command
                .args(["--join", addresses])
                .arg("--token-file")
                .arg(token);
        }
        *self.child() = Some(command.spawn().expect("the binary starts"));
    }

    pub fn is_running(&self) -> bool {
        self.child()
            .as_mut()
            .is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// The coordinator's own process: a namespace's command has become it by `exec`.
    pub fn pid(&self) -> u32 {
        self.child().as_ref().expect("it runs").id()
    }

    pub fn signal(&self, signal: i32) {
        processes::signal(self.pid(), signal);
    }

    pub fn kill(&self) {
        if let Some(mut child) = self.child().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Asks it to stop and waits until it has.
    pub fn stop(&self) -> ExitStatus {
        self.signal(libc::SIGTERM);
        self.wait()
    }

    pub fn wait(&self) -> ExitStatus {
        // It stays this member's until it has ended, so that it is ended with the group if it does not.
        let status = wait_for("a coordinator to end", DEADLINE, || {
            let mut child = self.child();
            let child = child.as_mut().expect("it runs");
            child.try_wait().expect("waiting works")
        });
        self.child().take();
        status
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for member in &self.members {
            if let Some(child) = &*member.child() {
                // A stopped process does not die of a kill's wait otherwise.
                processes::signal(child.id(), libc::SIGCONT);
            }
            member.kill();
        }
    }
}

/// A UDP and a TCP port that nobody has at the moment.
fn free_ports() -> (u16, u16) {
    let udp = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let tcp = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = |a: std::io::Result<std::net::SocketAddr>| a.expect("an address").port();
    (port(udp.local_addr()), port(tcp.local_addr()))
}

/// The log segments of a member, oldest first.
pub fn segments(folder: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = std::fs::read_dir(folder.join("log"))
        .expect("the log's folder")
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "wal"))
        .collect();
    all.sort();
    all
}
