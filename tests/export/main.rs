//! `cluster export` as a process that is killed, over and over, against a coordinator's answers: whatever
//! it left, all files together hold every settlement once.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How long a process may take to ask again before the test gives up on it.
const DEADLINE: Duration = Duration::from_secs(120);

/// A coordinator, as far as an export asks it; its log is as long as `newest`.
struct Coordinator {
    url: String,
    newest: Arc<AtomicU64>,
    /// A word for each question that was answered.
    asked: Mutex<Receiver<()>>,
}

impl Coordinator {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let newest = Arc::new(AtomicU64::new(0));
        let (told, asked) = channel();
        let log = newest.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, told) = (log.clone(), told.clone());
                // A client that was killed leaves in the middle.
                std::thread::spawn(move || {
                    let _ = answer(stream, &log, &told);
                });
            }
        });
        Self {
            url,
            newest,
            asked: Mutex::new(asked),
        }
    }

    fn wait_for(&self, questions: u64) {
        let asked = self.asked.lock().expect("one test");
        for _ in 0..questions {
            asked.recv_timeout(DEADLINE).expect("it asks");
        }
    }

    fn forget_questions(&self) {
        let asked = self.asked.lock().expect("one test");
        while asked.try_recv().is_ok() {}
    }

    fn export(&self, to: &Path, format: &str, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cluster"));
        command
            .args([
                "export",
                "--coordinator",
                &self.url,
                "--api-key",
                "sk-admin",
            ])
            .args(["--format", format, "--to"])
            .arg(to)
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }
}

fn answer(stream: TcpStream, newest: &AtomicU64, told: &Sender<()>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let target = line
            .split_whitespace()
            .nth(1)
            .unwrap_or_default()
            .to_owned();
        while reader.read_line(&mut line)? > 2 {}
        let body = page(&target, newest.load(Ordering::SeqCst)).to_string();
        let stream = reader.get_mut();
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: ";
        stream.write_all(format!("{head}{}\r\n\r\n{body}", body.len()).as_bytes())?;
        // The test may have ended.
        let _ = told.send(());
    }
}

fn page(target: &str, newest: u64) -> Value {
    let (path, query) = target.split_once('?').expect("a query");
    assert_eq!(path, "/admin/v1/settlements");
    let number = |name: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let found = pairs.find(|(known, _)| *known == name);
        found.map(|(_, value)| value.parse::<u64>().expect("a number"))
    };
    let from = number("after").unwrap_or(0) + 1;
    let limit = number("limit").expect("a limit") as usize;
    let row = |sequence| {
        json!({
            "sequence": sequence, "settled_at_ms": 1_780_000_000_000u64 + sequence, "tenant": 1,
            "tenant_name": "acme", "key": 1, "model": "tiny", "request": format!("req_{sequence}"),
            "caller_id": null, "status": "finished", "prompt_tokens": 3, "cached_tokens": 0,
            "completion_tokens": 5, "charged_nano_usd": 7,
        })
    };
    let rows: Vec<Value> = (from..=newest).take(limit).map(row).collect();
    json!({"cluster": "0101", "oldest": 1, "newest": newest, "settlements": rows})
}

fn end(mut child: Child) {
    child.kill().expect("it runs");
    child.wait().expect("it ended");
}

/// Numbers of all files, in the order of their names.
fn exported(folder: &Path) -> Vec<u64> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).expect("the folder").flatten() {
        let name = entry.file_name().into_string().expect("a name");
        if name.ends_with(".jsonl") {
            files.insert(name, std::fs::read_to_string(entry.path()).expect("a file"));
        }
    }
    let number = |line: &str| {
        let event: Value = serde_json::from_str(line).expect("a whole line");
        event["data"]["sequence"].as_u64().expect("a number")
    };
    files
        .values()
        .flat_map(|text| text.lines().map(number))
        .collect()
}

#[test]
fn killed_at_any_time_it_writes_each_settlement_once() {
    let coordinator = Coordinator::start();
    let dir = tempfile::tempdir().expect("a folder");
    let mut grew = 0;
    for life in 0..40u64 {
        coordinator.newest.fetch_add(40, Ordering::SeqCst);
        coordinator.forget_questions();
        let before = exported(dir.path()).len();
        // Every third life has a rival, whose files are of another size.
        let mut alive = vec![];
        for rows in &["3", "5"][..1 + usize::from(life.is_multiple_of(3))] {
            let follow = ["--follow", "--every", "1s", "--rows", rows];
            let mut command = coordinator.export(dir.path(), "cloudevents", &follow);
            alive.push(command.spawn().expect("it starts"));
        }
        coordinator.wait_for(1 + life % 13);
        alive.into_iter().for_each(end);
        grew += u32::from(exported(dir.path()).len() > before);
    }
    assert!(grew > 10, "{grew} of 40 lives wrote something");
    let out = coordinator
        .export(dir.path(), "cloudevents", &["--json"])
        .output()
        .expect("it runs");
    let told = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{told}");
    let newest = coordinator.newest.load(Ordering::SeqCst);
    let said: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    assert_eq!(said["last"], newest);
    assert_eq!(exported(dir.path()), (1..=newest).collect::<Vec<_>>());
}

#[test]
fn one_destination_has_one_format() {
    let coordinator = Coordinator::start();
    coordinator.newest.store(5, Ordering::SeqCst);
    let dir = tempfile::tempdir().expect("a folder");
    let parquet = coordinator.export(dir.path(), "parquet", &[]).output();
    assert!(parquet.expect("it runs").status.success());
    let events = coordinator.export(dir.path(), "cloudevents", &[]).output();
    let events = events.expect("it runs");
    let told = String::from_utf8_lossy(&events.stderr);
    assert_eq!(events.status.code(), Some(1), "{told}");
    assert!(
        told.contains("another format") && told.contains("next:"),
        "{told}"
    );
    let nowhere = coordinator
        .export(Path::new("gs://b/x"), "parquet", &[])
        .output();
    assert_eq!(nowhere.expect("it runs").status.code(), Some(2));
}
