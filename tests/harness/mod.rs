//! Starts a real `cluster up` in a temporary folder and talks to it over HTTP.
//!
//! Every cluster is this test's own: its own port, data folder and processes, all ended on drop.
#![allow(dead_code, reason = "each test binary uses a part")]

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

pub mod processes;
pub mod python;

/// How long a cluster may take to be ready: the first run on a machine fetches the model.
const READY_DEADLINE: Duration = Duration::from_secs(300);
/// How long anything else may take before the test gives up on it.
pub const DEADLINE: Duration = Duration::from_secs(120);

pub struct Cluster {
    pub child: Child,
    pub ready: Value,
    pub dir: tempfile::TempDir,
    agent: ureq::Agent,
}

/// An HTTP answer, whatever its status.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text)
            .unwrap_or_else(|e| panic!("status {}: not JSON ({e}): {}", self.status, self.text))
    }
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }
}

pub fn binary() -> Command {
    Command::new(env!("CARGO_BIN_EXE_cluster"))
}

/// A tiny random model's file, in a folder of its own.
pub fn tiny_model() -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("tiny.gguf");
    let model = trireme_shared::model::random::RandomModel::tiny(1);
    model.write_gguf(&path).expect("it can be written");
    let path = path.to_string_lossy().into_owned();
    (dir, path)
}

/// Runs `cluster` to its end and returns (status, stdout, stderr).
pub fn run(args: &[&str]) -> (ExitStatus, String, String) {
    let out = binary()
        .args(args)
        .stdin(Stdio::null())
        .output()
        .expect("the binary starts");
    (
        out.status,
        String::from_utf8_lossy(&out.stdout).into_owned(),
        String::from_utf8_lossy(&out.stderr).into_owned(),
    )
}

/// Polls `probe` until it gives a value; panics with `what` at the deadline.
pub fn wait_for<T>(what: &str, deadline: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(
            start.elapsed() < deadline,
            "gave up after {deadline:?} waiting for {what}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Cluster {
    /// `cluster up --no-demo` on a free port with these further arguments, waited for until ready.
    pub fn up(args: &[&str]) -> Self {
        Self::up_in(&[], args)
    }

    /// The same with these variables in the environment of all its processes.
    pub fn up_in(environment: &[(&str, &str)], args: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let ready_file = dir.path().join("ready.json");
        let output = std::fs::File::create(dir.path().join("up.out")).expect("a log file");
        let mut child = binary()
            .args(["up", "--no-demo", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(dir.path().join("data"))
            .arg("--ready-file")
            .arg(&ready_file)
            .args(args)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a second handle"))
            .stderr(output)
            .spawn()
            .expect("the binary starts");
        let log = dir.path().join("up.out");
        let ready = wait_for("the cluster to be ready", READY_DEADLINE, || {
            if let Some(status) = child.try_wait().expect("waiting works") {
                panic!(
                    "`cluster up {args:?}` ended with {status}:\n{}",
                    all_logs(dir.path(), &log)
                );
            }
            let text = std::fs::read_to_string(&ready_file).ok()?;
            Some(serde_json::from_str(&text).expect("the ready file is whole"))
        });
        Self {
            child,
            ready,
            dir,
            agent: agent(),
        }
    }

    pub fn endpoint(&self) -> &str {
        self.ready["endpoint"].as_str().expect("an endpoint")
    }
    pub fn api_key(&self) -> &str {
        self.ready["api_key"].as_str().expect("an API key")
    }
    pub fn admin_key(&self) -> &str {
        self.ready["admin_key"].as_str().expect("an admin key")
    }
    pub fn model(&self) -> &str {
        self.ready["model"].as_str().expect("a model")
    }
    /// Scheme, host and port, without a path.
    pub fn base(&self) -> String {
        self.endpoint()
            .trim_end_matches('/')
            .trim_end_matches("/v1")
            .to_owned()
    }
    pub fn worker_pids(&self) -> Vec<u32> {
        pids(&self.ready["workers"])
    }
    pub fn coordinator_pids(&self) -> Vec<u32> {
        pids(&self.ready["coordinators"])
    }
    /// What `cluster up` has printed so far.
    pub fn output(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("up.out")).unwrap_or_default()
    }
    pub fn logs(&self) -> String {
        all_logs(self.dir.path(), &self.dir.path().join("up.out"))
    }

    pub fn get(&self, path: &str) -> Answer {
        self.get_as(path, self.api_key())
    }
    pub fn get_as(&self, path: &str, key: &str) -> Answer {
        self.try_get_as(path, key).expect("the endpoint answers")
    }
    /// The same, where the endpoint may be down.
    pub fn try_get_as(&self, path: &str, key: &str) -> Result<Answer, ureq::Error> {
        let answer = self
            .agent
            .get(format!("{}{path}", self.base()))
            .header("authorization", format!("Bearer {key}"))
            .call();
        answer.map(read)
    }
    /// Any method at the first gateway, which must answer.
    pub fn send(&self, method: &str, path: &str, key: &str, body: Option<&Value>) -> Answer {
        let base = self.base();
        let address = base.trim_start_matches("http://");
        self.send_to(address, method, path, key, body)
            .expect("the endpoint answers")
    }
    /// Any method at any gateway (`ip:port`); `None` where it does not answer.
    pub fn send_to(
        &self,
        address: &str,
        method: &str,
        path: &str,
        key: &str,
        body: Option<&Value>,
    ) -> Option<Answer> {
        let request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("http://{address}{path}"))
            .header("authorization", format!("Bearer {key}"))
            .header("content-type", "application/json");
        let answer = match body {
            Some(body) => self.agent.run(request.body(body.to_string()).ok()?),
            None => self.agent.run(request.body(()).ok()?),
        };
        let mut answer = answer.ok()?;
        let headers = answer.headers().iter().map(|(n, v)| {
            let value = String::from_utf8_lossy(v.as_bytes()).into_owned();
            (n.to_string(), value)
        });
        let headers = headers.collect();
        // It may die in the middle of its answer.
        let text = answer
            .body_mut()
            .with_config()
            .limit(64 << 20)
            .read_to_string()
            .ok()?;
        Some(Answer {
            status: answer.status().as_u16(),
            headers,
            text,
        })
    }
    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_raw(path, body.to_string().as_bytes(), &[])
    }
    /// Posts bytes as they are. `headers` replace the defaults (`content-type`, `authorization`).
    pub fn post_raw(&self, path: &str, body: &[u8], headers: &[(&str, &str)]) -> Answer {
        let bearer = format!("Bearer {}", self.api_key());
        let mut request = self.agent.post(format!("{}{path}", self.base()));
        for (name, value) in [
            ("content-type", "application/json"),
            ("authorization", bearer.as_str()),
        ] {
            if !headers.iter().any(|(n, _)| *n == name) {
                request = request.header(name, value);
            }
        }
        for (name, value) in headers.iter().filter(|(_, v)| !v.is_empty()) {
            request = request.header(*name, *value);
        }
        read(request.send(body).expect("the endpoint answers"))
    }
    /// A POST that must succeed.
    pub fn ask(&self, path: &str, body: &Value) -> Value {
        let answer = self.post(path, body);
        assert_eq!(
            answer.status,
            200,
            "{path}: {}\n{}",
            answer.text,
            self.logs()
        );
        answer.json()
    }
    /// One value of `/metrics`, summed over label sets; 0 where it is absent.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text;
        text.lines()
            .filter(|l| {
                l.strip_prefix(name)
                    .is_some_and(|rest| rest.starts_with(['{', ' ']))
            })
            .filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }
    /// Ends the cluster as Ctrl-C does and returns its exit status.
    pub fn interrupt(&mut self) -> ExitStatus {
        processes::signal(self.child.id(), libc::SIGINT);
        let child = &mut self.child;
        wait_for("the cluster to end", DEADLINE, || {
            child.try_wait().expect("waiting works")
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            processes::signal(self.child.id(), libc::SIGTERM);
            let start = Instant::now();
            while matches!(self.child.try_wait(), Ok(None)) {
                if start.elapsed() > Duration::from_secs(20) {
                    let _ = self.child.kill();
                    let _ = self.child.wait();
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(DEADLINE))
        .build()
        .into()
}

fn read(mut response: ureq::http::Response<ureq::Body>) -> Answer {
    let headers = response
        .headers()
        .iter()
        .map(|(n, v)| {
            (
                n.to_string(),
                String::from_utf8_lossy(v.as_bytes()).into_owned(),
            )
        })
        .collect();
    let text = response.body_mut().read_to_string().expect("a whole body");
    Answer {
        status: response.status().as_u16(),
        headers,
        text,
    }
}

fn pids(list: &Value) -> Vec<u32> {
    list.as_array()
        .expect("a list")
        .iter()
        .map(|entry| entry["pid"].as_u64().expect("a pid") as u32)
        .collect()
}

fn all_logs(dir: &Path, up: &Path) -> String {
    let mut text = std::fs::read_to_string(up).unwrap_or_default();
    let mut logs: Vec<PathBuf> = std::fs::read_dir(dir.join("data"))
        .map(|entries| entries.flatten().map(|e| e.path()).collect())
        .unwrap_or_default();
    logs.sort();
    for log in logs
        .iter()
        .filter(|p| p.extension().is_some_and(|e| e == "log"))
    {
        let body = std::fs::read_to_string(log).unwrap_or_default();
        let tail: Vec<&str> = body.lines().rev().take(20).collect();
        text.push_str(&format!("--- {}\n", log.display()));
        for line in tail.iter().rev() {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}
