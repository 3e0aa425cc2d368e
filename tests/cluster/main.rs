//! `cluster up` as its user meets it: what it prints, how it ends, what happens when a process of
//! it dies. Each test has a cluster of its own; they run one at a time.

mod accounts;
#[path = "../harness/mod.rs"]
mod harness;
mod receiver;
mod rotation;
mod traces;
mod webhooks;

use harness::{Cluster, DEADLINE, processes, run, wait_for};
use serde_json::json;
use std::sync::{Mutex, MutexGuard};

/// Two cores hold one cluster at a time comfortably.
static ONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn chat(cluster: &Cluster, text: &str, max_tokens: u32) -> serde_json::Value {
    cluster.ask(
        "/v1/chat/completions",
        &json!({
            "model": cluster.model(), "temperature": 0, "max_tokens": max_tokens,
            "messages": [{"role": "user", "content": text}],
        }),
    )
}

/// Its file's pages are given back as they are packed: at the most there are weights, keys and values, and a
/// quarter more.
#[test]
fn a_model_is_in_memory_once() {
    let _alone = alone();
    let (status, out, err) = run(&[
        "bench",
        "engine",
        "--threads=2",
        "--prompt-tokens=256",
        "--context-tokens=128",
        "--gen-tokens=4",
        "--batch=8",
        "--json",
    ]);
    assert!(status.success(), "{err}");
    let report: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    let bytes = |name: &str| report[name].as_f64().expect(name);
    let held = bytes("peak_resident_bytes") / (bytes("weight_bytes") + bytes("kv_bytes"));
    assert!((1.0..1.25).contains(&held), "{held}: {out}");
}

#[test]
fn four_workers_answer_with_the_text_of_one() {
    let _alone = alone();
    let ask = |args: &[&str]| {
        let mut cluster = Cluster::up(args);
        let answer = chat(&cluster, "Name the planets of the solar system.", 48);
        let pids: Vec<u32> = [cluster.coordinator_pids(), cluster.worker_pids()].concat();
        assert!(
            pids.iter().all(|&p| processes::is_alive(p)),
            "every named process runs"
        );
        let status = cluster.interrupt();
        assert!(
            status.success(),
            "Ctrl-C ends with {status}:\n{}",
            cluster.logs()
        );
        assert!(
            pids.iter().all(|&p| !processes::is_alive(p)),
            "Ctrl-C ends every process"
        );
        answer["choices"][0]["message"]["content"]
            .as_str()
            .expect("text")
            .to_owned()
    };
    let one = ask(&["--workers", "1"]);
    let four = ask(&["--workers", "4", "--tp", "2", "--pp", "2"]);
    assert!(one.len() > 20, "{one:?}");
    assert_eq!(one, four);
}

#[test]
fn the_ready_file_and_the_client_commands_tell_the_same() {
    let _alone = alone();
    // Of this model nothing is left to quantise, but the setting travels.
    let cluster = Cluster::up(&[
        "--workers",
        "2",
        "--tp",
        "2",
        "--quantize",
        "q8",
        "--activations",
        "int8",
        "--kv",
        "int8",
    ]);
    let workers = cluster.ready["workers"].as_array().expect("workers");
    assert_eq!(workers.len(), 2);
    let ranks: Vec<_> = workers
        .iter()
        .map(|w| w["rank"].as_u64().expect("rank"))
        .collect();
    assert_eq!(ranks, [0, 1]);
    assert!(
        workers.iter().all(|w| w["replica"] == 0 && w["stage"] == 0),
        "{workers:?}"
    );

    let base = cluster.base();
    let client = |args: &[&str]| {
        let mut all = args.to_vec();
        all.extend(["--coordinator", &base, "--api-key"]);
        all.push(if args[0] == "chat" {
            cluster.api_key()
        } else {
            cluster.admin_key()
        });
        let (status, out, err) = run(&all);
        assert!(status.success(), "{args:?}: {out}{err}");
        out
    };
    let status: serde_json::Value =
        serde_json::from_str(&client(&["status", "--json"])).expect("JSON");
    assert_eq!(status["workers"].as_array().expect("workers").len(), 2);
    let shown = client(&["status"]);
    assert!(
        shown.contains(cluster.model()) && shown.contains("quantize q8  activations int8  kv int8"),
        "{shown}"
    );
    let plan: serde_json::Value = serde_json::from_str(&client(&["plan", "--json"])).expect("JSON");
    assert_eq!(
        plan[0]["precision"],
        json!({"quantize": "q8", "activations": "int8", "kv": "int8"})
    );
    let heads: Vec<u64> = plan[0]["ranks"]
        .as_array()
        .expect("ranks")
        .iter()
        .map(|r| {
            let span = &r["share"]["kv_heads"];
            span["end"].as_u64().expect("end") - span["start"].as_u64().expect("start")
        })
        .collect();
    assert_eq!(heads, [2, 1], "three KV groups over two ranks");
    let bytes: u64 = plan[0]["ranks"]
        .as_array()
        .expect("ranks")
        .iter()
        .map(|r| r["weight_bytes"].as_u64().expect("bytes"))
        .sum();
    assert!(
        (96_000_000..99_000_000).contains(&bytes),
        "each rank reads its own bytes: {bytes}"
    );
    // What is rounded this much may never come to an end.
    let said = client(&["chat", "Say hello.", "--max-tokens", "16"]);
    assert!(!said.trim().is_empty());
    let log = client(&["audit", "export"]);
    let file = cluster.dir.path().join("audit.jsonl");
    let verify = || client(&["audit", "verify", file.to_str().expect("a path")]);
    std::fs::write(&file, &log).expect("a file");
    assert!(verify().contains("the cluster's log"));
    let (_, cut) = log.split_once('\n').expect("more than one record");
    std::fs::write(&file, cut).expect("a file");
    let refused = run(&[
        "audit",
        "verify",
        file.to_str().expect("a path"),
        "--coordinator",
        &base,
        "--api-key",
        cluster.admin_key(),
    ]);
    assert!(!refused.0.success(), "the oldest line is missing");
    assert!(refused.2.contains("begins with record 2"), "{}", refused.2);
    let created: serde_json::Value =
        serde_json::from_str(&client(&["token", "create", "--json"])).expect("JSON");
    let token = created["token"].as_str().expect("a token");
    assert_eq!(
        token.split('.').count(),
        3,
        "<CA fingerprint>.<id>.<secret>"
    );
    let listed = client(&["token", "list", "--json"]);
    let secret = token.rsplit('.').next().expect("a secret");
    assert!(!listed.contains(secret), "a secret is shown once");

    for (name, log) in logs(&cluster) {
        for secret in [cluster.api_key(), cluster.admin_key(), secret, "Say hello"] {
            assert!(!log.contains(secret), "{name} holds {secret:?}");
        }
    }

    client(&["undeploy", cluster.model()]);
    let status: serde_json::Value =
        serde_json::from_str(&client(&["status", "--json"])).expect("JSON");
    assert_eq!(status["deployments"], json!([]));
}

fn logs(cluster: &Cluster) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(cluster.dir.path().join("data"))
        .expect("data")
        .flatten()
    {
        let path = entry.path();
        if path.extension().is_some_and(|e| e == "log") {
            let text = std::fs::read_to_string(&path).expect("a log");
            found.push((path.display().to_string(), text));
        }
    }
    assert!(found.len() >= 3, "one log for each process: {found:?}");
    found
}

#[test]
fn a_killed_worker_is_reported_and_its_streams_go_on() {
    let _alone = alone();
    let mut cluster = Cluster::up(&["--workers", "2", "--pp", "2"]);
    let expected = chat(&cluster, "Tell me a long story about a fox.", 160);
    let victim = cluster.worker_pids()[1];
    let answer = std::thread::scope(|scope| {
        let asked = scope.spawn(|| chat(&cluster, "Tell me a long story about a fox.", 160));
        wait_for("the stream to run", DEADLINE, || {
            (cluster.metric("vllm:num_requests_running") >= 1.0).then_some(())
        });
        processes::signal(victim, libc::SIGKILL);
        asked.join().expect("an answer")
    });
    let content = &answer["choices"][0]["message"]["content"];
    assert_eq!(
        content,
        &expected["choices"][0]["message"]["content"],
        "{}",
        cluster.logs()
    );
    for count in ["prompt_tokens", "completion_tokens"] {
        assert_eq!(answer["usage"][count], expected["usage"][count]);
    }
    // It began as the one before it did, and is charged for its full pages as found in the cache.
    let cached = &answer["usage"]["prompt_tokens_details"]["cached_tokens"];
    assert_eq!(cached, &json!(32));
    let cost = |answer: &serde_json::Value| answer["usage"]["cost_nano_usd"].as_i64();
    assert!(cost(&answer) < cost(&expected));
    let output = cluster.output();
    let lines: Vec<&str> = output
        .lines()
        .filter(|l| l.contains(&victim.to_string()) && l.contains('9'))
        .collect();
    assert_eq!(lines.len(), 1, "one clear line: {output}");
    assert!(cluster.interrupt().success());
    nothing_is_left(&cluster);
}

#[test]
fn a_killed_coordinator_comes_back_with_what_it_knew() {
    let _alone = alone();
    let mut cluster = Cluster::up(&["--workers", "1"]);
    let before = chat(&cluster, "Who are you?", 16);
    let epoch = |cluster: &Cluster| {
        let status = cluster.get_as("/admin/v1/status", cluster.admin_key());
        status.json()["deployments"][0]["replicas"][0]["epoch"].clone()
    };
    let planned = epoch(&cluster);
    assert!(planned.is_u64(), "{planned}");
    processes::signal(cluster.coordinator_pids()[0], libc::SIGKILL);
    wait_for(
        "the endpoint to answer again with the same key",
        DEADLINE,
        || {
            let (status, out, _) = run(&[
                "chat",
                "--coordinator",
                &cluster.base(),
                "--api-key",
                cluster.api_key(),
                "Hello!",
            ]);
            (status.success() && !out.trim().is_empty()).then_some(())
        },
    );
    let after = chat(&cluster, "Who are you?", 16);
    assert_eq!(
        before["choices"][0]["message"]["content"],
        after["choices"][0]["message"]["content"]
    );
    assert_eq!(epoch(&cluster), planned, "the worker loaded anew");
    assert!(cluster.interrupt().success());
    nothing_is_left(&cluster);
}

#[test]
fn killing_up_itself_leaves_no_orphan() {
    let _alone = alone();
    let mut cluster = Cluster::up(&["--workers", "2"]);
    let pids: Vec<u32> = [cluster.coordinator_pids(), cluster.worker_pids()].concat();
    assert_eq!(pids.len(), 3);
    cluster.child.kill().expect("SIGKILL");
    cluster.child.wait().expect("it ends");
    wait_for("its processes to end", DEADLINE, || {
        pids.iter().all(|&p| !processes::is_alive(p)).then_some(())
    });
    nothing_is_left(&cluster);
}

fn nothing_is_left(cluster: &Cluster) {
    assert_eq!(processes::naming(cluster.dir.path()), Vec::<u32>::new());
    assert_eq!(processes::shared_memory_files(), Vec::<String>::new());
}

#[test]
fn the_first_question_is_asked_and_the_command_ends() {
    let _alone = alone();
    let dir = tempfile::tempdir().expect("a folder");
    let data = dir.path().join("data");
    let (status, out, err) = run(&[
        "up",
        "--exit",
        "--listen",
        "127.0.0.1:0",
        "--data-dir",
        &data.to_string_lossy(),
    ]);
    assert!(status.success(), "{out}{err}");
    let all = format!("{out}{err}");
    for part in ["curl", "/v1", "sk-", "layers", "tok/s", "$"] {
        assert!(all.contains(part), "the greeting lacks {part:?}:\n{all}");
    }
    assert_eq!(processes::naming(dir.path()), Vec::<u32>::new());
}

#[test]
fn a_split_that_does_not_fit_is_refused_with_those_that_do() {
    let dir = tempfile::tempdir().expect("a folder");
    let data = dir.path().join("data");
    for (args, parts) in [
        (
            &["--workers", "4", "--tp", "3"][..],
            &["4", "tp", "pp", "replicas"][..],
        ),
        (&["--workers", "2", "--tp", "2", "--pp", "2"], &["2", "4"]),
        (&["--workers", "4", "--tp", "4"], &["3"]),
        (&["--workers", "31", "--pp", "31"], &["30"]),
        (
            &["--model", "/no/such/model.gguf"],
            &["/no/such/model.gguf"],
        ),
    ] {
        let mut all = vec![
            "up",
            "--no-demo",
            "--exit",
            "--listen",
            "127.0.0.1:0",
            "--data-dir",
        ];
        let data = data.to_string_lossy();
        all.push(&data);
        all.extend(args);
        let (status, out, err) = run(&all);
        assert!(!status.success(), "{args:?} was taken: {out}");
        for part in parts {
            assert!(
                err.contains(part),
                "{args:?}: the error lacks {part:?}: {err}"
            );
        }
        assert_eq!(processes::naming(dir.path()), Vec::<u32>::new(), "{args:?}");
    }
}

#[test]
fn a_second_cluster_in_the_same_folder_or_on_the_same_port_is_refused() {
    let _alone = alone();
    let cluster = Cluster::up(&["--workers", "1"]);
    let data = cluster
        .dir
        .path()
        .join("data")
        .to_string_lossy()
        .into_owned();
    let (status, _, err) = run(&[
        "up",
        "--no-demo",
        "--listen",
        "127.0.0.1:0",
        "--data-dir",
        &data,
    ]);
    assert!(!status.success());
    assert!(
        err.contains(&cluster.child.id().to_string()),
        "it names who holds it: {err}"
    );
    let other = tempfile::tempdir().expect("a folder");
    let address = cluster.base().trim_start_matches("http://").to_owned();
    let (status, _, err) = run(&[
        "up",
        "--no-demo",
        "--workers",
        "1",
        "--listen",
        &address,
        "--data-dir",
        &other.path().to_string_lossy(),
    ]);
    assert!(!status.success());
    assert!(err.contains(&address), "it names the port: {err}");
    chat(&cluster, "Still there?", 4);
}
