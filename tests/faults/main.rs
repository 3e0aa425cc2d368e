//! The engine under real faults: killed and stopped ranks, clients that vanish, more work than
//! fits. Every cluster is `cluster up` on the real model; each test has one of its own and they run
//! one at a time. What every test holds to account: no token lost, repeated or billed twice; no KV
//! page kept; nothing that needs a restart by hand.

#[path = "../harness/mod.rs"]
mod harness;
mod streams;

use harness::{Cluster, DEADLINE, processes, wait_for};
use serde_json::{Value, json};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;
use streams::{Open, Stream};

/// Two cores hold one cluster at a time comfortably.
static ONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The first replica's epoch once it is ready; `None` while it is not.
fn ready_epoch(cluster: &Cluster, replica: usize) -> Option<u64> {
    let status = cluster
        .get_as("/admin/v1/status", cluster.admin_key())
        .json();
    let replica = &status["deployments"][0]["replicas"][replica];
    (replica["ready"] == true)
        .then(|| replica["epoch"].as_u64())
        .flatten()
}

/// Every sequence is out of the engine and every page is free.
fn wait_until_empty(cluster: &Cluster) {
    for name in [
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
    ] {
        wait_for(&format!("{name} to be 0"), DEADLINE, || {
            // Present, so that an absent series is not taken for zero.
            let shown = cluster.get("/metrics").text.contains(name);
            (shown && cluster.metric(name) == 0.0).then_some(())
        });
    }
}

fn wait_until_running(cluster: &Cluster, sequences: f64) {
    wait_for("sequences to run", DEADLINE, || {
        (cluster.metric("vllm:num_requests_running") >= sequences).then_some(())
    });
}

/// A streamed greedy completion of exactly `max_tokens` tokens, with the two best of each.
fn greedy(cluster: &Cluster, prompt: &str, max_tokens: usize) -> Value {
    json!({
        "model": cluster.model(), "prompt": prompt, "max_tokens": max_tokens, "temperature": 0,
        "ignore_eos": true, "logprobs": 2, "stream": true,
        "stream_options": {"include_usage": true},
    })
}

fn all_at_once(cluster: &Cluster, bodies: &[Value]) -> Vec<Stream> {
    std::thread::scope(|scope| {
        let asked: Vec<_> = bodies
            .iter()
            .map(|body| scope.spawn(|| Stream::ask(cluster, body)))
            .collect();
        asked
            .into_iter()
            .map(|a| a.join().expect("a stream"))
            .collect()
    })
}

/// Resident memory and open files of a process.
fn holdings(pid: u32) -> (u64, usize) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let kib = status
        .lines()
        .find_map(|l| l.strip_prefix("VmRSS:"))
        .and_then(|l| l.trim().trim_end_matches(" kB").parse().ok())
        .expect("a size");
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs");
    (kib, files.count())
}

#[test]
fn streams_outlive_two_killed_workers_whole() {
    const STREAMS: usize = 16;
    const TOKENS: usize = 96;
    let _alone = alone();
    let mut cluster = Cluster::up(&["--workers", "4", "--tp", "2", "--pp", "2"]);
    let bodies: Vec<Value> = (0..STREAMS)
        .map(|n| {
            let prompt = format!("Story number {n}: once upon a time, {n} foxes");
            greedy(&cluster, &prompt, TOKENS)
        })
        .collect();
    let expected = all_at_once(&cluster, &bodies);
    let workers = cluster.worker_pids();
    let first_epoch = ready_epoch(&cluster, 0).expect("a ready replica");

    let got = std::thread::scope(|scope| {
        let asked = scope.spawn(|| all_at_once(&cluster, &bodies));
        wait_until_running(&cluster, STREAMS as f64);
        // A rank of the last stage, then the driver itself.
        processes::signal(workers[3], libc::SIGKILL);
        wait_for("a new epoch", DEADLINE, || {
            ready_epoch(&cluster, 0).filter(|&epoch| epoch > first_epoch)
        });
        wait_until_running(&cluster, 1.0);
        processes::signal(workers[0], libc::SIGKILL);
        asked.join().expect("streams")
    });
    for (n, (got, expected)) in got.iter().zip(&expected).enumerate() {
        assert_eq!(expected.tokens.len(), TOKENS, "undisturbed stream {n}");
        got.assert_continues(expected, &format!("stream {n}"));
    }
    wait_until_empty(&cluster);
    let billed: usize = got
        .iter()
        .chain(&expected)
        .map(|s| s.completion_tokens)
        .sum();
    assert_eq!(billed, 2 * STREAMS * TOKENS);
    assert_eq!(
        cluster.metric("vllm:generation_tokens_total") as usize,
        billed,
        "what is counted is what was sent"
    );
    assert!(cluster.interrupt().success());
    assert_eq!(processes::shared_memory_files(), Vec::<String>::new());
}

#[test]
fn a_rank_that_is_stopped_and_wakes_again_rejoins_under_a_new_epoch() {
    let _alone = alone();
    let cluster = Cluster::up(&["--workers", "2", "--tp", "2"]);
    let pids = [cluster.worker_pids(), cluster.coordinator_pids()].concat();
    idle_costs_nothing(&pids);

    let body = greedy(&cluster, "The sailors rowed on and on, because", 160);
    let expected = Stream::ask(&cluster, &body);
    let first_epoch = ready_epoch(&cluster, 0).expect("a ready replica");
    let (sleeper, id) = {
        let worker = &cluster.ready["workers"][1];
        (cluster.worker_pids()[1], worker["id"].clone())
    };
    let got = std::thread::scope(|scope| {
        let asked = scope.spawn(|| Stream::ask(&cluster, &body));
        wait_until_running(&cluster, 1.0);
        processes::signal(sleeper, libc::SIGSTOP);
        // Only silence tells: its process lives and its sockets are open.
        wait_for("its silence to be noticed", DEADLINE, || {
            ready_epoch(&cluster, 0).is_none().then_some(())
        });
        wait_for("the sleeper to be taken for lost", DEADLINE, || {
            let status = cluster
                .get_as("/admin/v1/status", cluster.admin_key())
                .json();
            let workers = status["workers"].as_array().expect("workers").clone();
            workers
                .iter()
                .any(|w| w["id"] == id && w["connected"] == false)
                .then_some(())
        });
        processes::signal(sleeper, libc::SIGCONT);
        asked.join().expect("a stream")
    });
    got.assert_continues(&expected, "the stream");
    let epoch = wait_for("a ready replica", DEADLINE, || ready_epoch(&cluster, 0));
    assert!(epoch > first_epoch, "{epoch} after {first_epoch}");
    assert!(processes::is_alive(sleeper), "it was not replaced: it woke");
    let plan = cluster.get_as("/admin/v1/plan", cluster.admin_key()).json();
    let ranks = plan[0]["ranks"].as_array().expect("ranks");
    assert!(ranks.iter().any(|r| r["worker"] == id), "{plan}");
    wait_until_empty(&cluster);
    Stream::ask(&cluster, &body).assert_continues(&expected, "a stream afterwards");
}

/// Ranks that wait for work are parked: a spinning one would take 300 ticks of these 3 seconds.
fn idle_costs_nothing(pids: &[u32]) {
    let ticks = || -> u64 {
        let of = |pid: &u32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
            let rest = stat.rsplit_once(") ").expect("a name").1.to_owned();
            let fields: Vec<&str> = rest.split(' ').collect();
            // utime and stime, the 14th and 15th fields of the whole line.
            fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime")
        };
        pids.iter().map(of).sum()
    };
    let before = ticks();
    // The measured span itself; nothing is waited for.
    std::thread::sleep(Duration::from_secs(3));
    let used = ticks() - before;
    assert!(used < 30, "{used} ticks of 300 while idle");
}

#[test]
fn vanishing_clients_and_a_storm_leave_nothing_behind() {
    let _alone = alone();
    let cluster = Cluster::up(&["--workers", "1"]);
    let pids = [cluster.worker_pids(), cluster.coordinator_pids()].concat();
    let body = greedy(&cluster, "Rain fell on the harbour and", 400);

    // Once over to warm caches and pools, then measured.
    vanish(&cluster, &body, 40);
    wait_until_empty(&cluster);
    let before: Vec<_> = pids.iter().map(|&p| holdings(p)).collect();
    vanish(&cluster, &body, 200);
    wait_until_empty(&cluster);
    for (&pid, &(kib, files)) in pids.iter().zip(&before) {
        wait_for("connections to be closed", DEADLINE, || {
            (holdings(pid).1 <= files + 8).then_some(())
        });
        let grown = holdings(pid).0.saturating_sub(kib);
        assert!(grown < 48 << 10, "process {pid} grew by {grown} KiB");
    }
    storm(&cluster);
}

/// `count` clients, eight at a time: some leave before the first byte, most in mid-stream.
fn vanish(cluster: &Cluster, body: &Value, count: usize) {
    std::thread::scope(|scope| {
        for lane in 0..8 {
            scope.spawn(move || {
                for n in (lane..count).step_by(8) {
                    let mut open = Open::post(cluster, "/v1/completions", body);
                    if n % 5 != 0 {
                        open.read_until("data: ");
                    }
                    drop(open);
                }
            });
        }
    });
}

/// Fills the engine's places as far as one tenant may: four for each that is left free, 921 of the 1,152
/// there are. Seven requests of 128 sequences each are 896; sixteen small ones still fit, another of 128
/// cannot. Another tenant is served meanwhile.
fn storm(cluster: &Cluster) {
    let made = cluster.send(
        "POST",
        "/admin/v1/keys",
        cluster.admin_key(),
        Some(&json!({"tenant": "bystander"})),
    );
    let bystander = made.json()["key"].as_str().expect("a key").to_owned();
    let small = greedy(cluster, "The smallest ship of the fleet", 8);
    let expected = Stream::ask(cluster, &small);
    let large = json!({
        "model": cluster.model(), "prompt": "Storm", "max_tokens": 1500, "n": 128, "stream": true,
        "temperature": 1, "ignore_eos": true,
    });
    let held = || {
        cluster.metric("vllm:num_requests_running") + cluster.metric("vllm:num_requests_waiting")
    };
    let large_ones: Vec<Open> = (0..7)
        .map(|_| Open::post(cluster, "/v1/completions", &large))
        .collect();
    wait_for("the room to fill", DEADLINE, || {
        (held() >= 896.0).then_some(())
    });
    let accepted = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..16)
            .map(|_| scope.spawn(|| Stream::ask(cluster, &small)))
            .collect();
        wait_for("the small ones to wait", DEADLINE, || {
            (held() >= 912.0).then_some(())
        });
        for _ in 0..4 {
            let refused = cluster.post("/v1/completions", &large);
            assert!([429, 503].contains(&refused.status), "{refused:?}");
            assert!(refused.header("retry-after").is_some(), "{refused:?}");
            let error = &refused.json()["error"];
            assert_eq!(error["code"], "overloaded", "{error}");
            assert!(error["message"].is_string() && error["type"].is_string());
        }
        let quick = json!({"model": cluster.model(), "prompt": "Calm", "max_tokens": 4});
        let served = cluster.send("POST", "/v1/completions", &bystander, Some(&quick));
        assert_eq!(served.status, 200, "{}", served.text);
        drop(large_ones);
        asked
            .into_iter()
            .map(|a| a.join().expect("an accepted stream"))
            .collect::<Vec<_>>()
    });
    for (n, stream) in accepted.iter().enumerate() {
        stream.assert_continues(&expected, &format!("accepted stream {n}"));
    }
    wait_until_empty(cluster);
}

#[test]
fn the_other_replica_takes_over_at_once() {
    let _alone = alone();
    let cluster = Cluster::up(&["--workers", "2", "--replicas", "2"]);
    let bodies: Vec<Value> = (0..8)
        .map(|n| greedy(&cluster, &format!("Letter {n}. Dear friend,"), 64))
        .collect();
    let expected = all_at_once(&cluster, &bodies);
    let worker = |replica: u64| {
        let workers = cluster.ready["workers"].as_array().expect("workers");
        let found = workers.iter().find(|w| w["replica"] == replica);
        found.expect("one worker each")["pid"]
            .as_u64()
            .expect("pid") as u32
    };
    let (victim, survivor) = (worker(0), worker(1));
    let survivors_epoch = ready_epoch(&cluster, 1).expect("ready");
    let first_epoch = ready_epoch(&cluster, 0).expect("ready");

    let (during, after) = std::thread::scope(|scope| {
        let asked = scope.spawn(|| all_at_once(&cluster, &bodies));
        wait_until_running(&cluster, 2.0);
        processes::signal(victim, libc::SIGKILL);
        let after = all_at_once(&cluster, &bodies);
        (asked.join().expect("streams"), after)
    });
    for (n, stream) in during.iter().chain(&after).enumerate() {
        stream.assert_continues(&expected[n % 8], &format!("stream {n}"));
    }
    assert!(processes::is_alive(survivor));
    assert_eq!(
        ready_epoch(&cluster, 1),
        Some(survivors_epoch),
        "one replica's fault is not the other's"
    );
    wait_for("the lost replica to come back", DEADLINE, || {
        ready_epoch(&cluster, 0).filter(|&epoch| epoch > first_epoch)
    });
    wait_until_empty(&cluster);
}
