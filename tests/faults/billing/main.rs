//! Bills under real faults: three coordinators, four workers and 200 clients of 20 tenants, who stream,
//! leave, ask again under the same idempotency key and are refused, while nodes of every kind are
//! killed. Held to account, request by request: nobody is charged twice, for more than it was sent, or
//! beyond what it has; what clients counted, the billing API, the ledger and the export agree; what a crash forgets
//! is bounded.
//!
//! `TRIREME_BILLING_SECONDS` says how long nodes are killed (default 20; 300 for the full run).
#![allow(clippy::print_stdout)]

mod client;
#[path = "../../harness/mod.rs"]
mod harness;

use client::{Asked, Heard, ask};
use harness::{Cluster, DEADLINE, processes, tiny_model, wait_for};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const TENANTS: usize = 20;
const CLIENTS_PER_TENANT: usize = 10;
/// The last tenants have so little that they are refused soon.
const POOR_TENANTS: usize = 4;
const POOR_BALANCE: i64 = 40_000;
const RICH_BALANCE: i64 = 1_000_000_000;
/// Several seconds' worth: `cluster up` gives a node up that ends five times in a minute.
const ANSWERS_BETWEEN_KILLS: usize = 300;
/// What a gateway that is killed has not told yet: two looks of half a second. The rest is what a machine
/// with two cores and seven busy processes takes to look.
const SHORTFALL_MAX: Duration = Duration::from_secs(5);

/// A client that left is settled a moment later, unless its gateway is killed within that.
const SETTLED_WITHIN: Duration = Duration::from_secs(3);

/// One request as its client knows it, all attempts together.
struct Told {
    tenant: usize,
    id: String,
    /// The attempt that was sent most.
    tokens: Vec<Instant>,
    /// Prompt and completion tokens, and cost, of an attempt that came to its end.
    whole: Option<(u64, u64, i64)>,
    /// When its first attempt began, and its last one ended.
    began: Instant,
    ended: Instant,
    /// What each attempt came to, for whoever reads why a bill is wrong.
    story: Vec<String>,
}

struct Tenant {
    key: String,
    balance: i64,
}

/// A small generator of its own for each client: what is asked does not depend on who is killed when.
struct Chance(u64);

impl Chance {
    fn next(&mut self, below: u64) -> u64 {
        // SplitMix64 (Steele, Lea, Flood 2014).
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % below
    }
}

struct Scene {
    cluster: Cluster,
    /// Workers that start again read it again.
    _model: tempfile::TempDir,
    gateways: Vec<String>,
    tenants: Vec<Tenant>,
    over: AtomicBool,
    answered: AtomicUsize,
    refused: AtomicUsize,
    /// When coordinators were killed.
    killed: Mutex<Vec<Instant>>,
    told: Mutex<Vec<Told>>,
}

#[test]
fn bills_agree_request_by_request_while_nodes_are_killed() {
    let seconds = std::env::var("TRIREME_BILLING_SECONDS").ok();
    let seconds = seconds.and_then(|s| s.parse().ok()).unwrap_or(20);
    let scene = Scene::new();
    let mut kills = BTreeMap::<&str, usize>::new();
    std::thread::scope(|scope| {
        for tenant in 0..TENANTS {
            for n in 0..CLIENTS_PER_TENANT {
                let scene = &scene;
                scope.spawn(move || scene.live(tenant, n));
            }
        }
        // Whatever goes wrong, the clients end.
        let _over = Over(&scene.over);
        scene.kill_for(Duration::from_secs(seconds), &mut kills);
    });
    scene.account(&kills);
}

struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Scene {
    fn new() -> Self {
        let (folder, model) = tiny_model();
        let cluster = Cluster::up(&[
            "--model",
            &model,
            "--coordinators",
            "3",
            "--workers",
            "4",
            "--tp",
            "2",
            "--pp",
            "1",
            "--replicas",
            "2",
            "--threads-per-worker",
            "1",
        ]);
        greeting_works(&cluster);
        let coordinators = cluster.ready["coordinators"].as_array().expect("a list");
        let gateways = coordinators
            .iter()
            .map(|c| c["http"].as_str().expect("an address"));
        let gateways = gateways.map(|http| http.trim_start_matches("http://").to_owned());
        let gateways = gateways.collect();
        let mut scene = Self {
            gateways,
            tenants: Vec::new(),
            over: AtomicBool::new(false),
            answered: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
            killed: Mutex::default(),
            told: Mutex::default(),
            cluster,
            _model: folder,
        };
        for n in 0..TENANTS {
            let tenant = scene.tenant(n);
            scene.tenants.push(tenant);
        }
        scene
    }

    /// A prepaid tenant, with its key.
    fn tenant(&self, n: usize) -> Tenant {
        let name = format!("tenant-{n}");
        let balance = if n < TENANTS - POOR_TENANTS {
            RICH_BALANCE
        } else {
            POOR_BALANCE
        };
        let settings = json!({"payment": {"type": "prepaid"}});
        self.admin("PUT", &format!("/admin/v1/tenants/{name}"), &settings);
        let credit = json!({"amount_nano_usd": balance, "reason": "paid in"});
        self.admin(
            "POST",
            &format!("/admin/v1/tenants/{name}/credits"),
            &credit,
        );
        let made = self.admin("POST", "/admin/v1/keys", &json!({"tenant": name}));
        let key = made["key"].as_str().expect("a key").to_owned();
        Tenant { key, balance }
    }

    fn admin(&self, method: &str, path: &str, body: &Value) -> Value {
        let key = self.cluster.admin_key();
        let answer = self.cluster.send(method, path, key, Some(body));
        assert!(
            matches!(answer.status, 200 | 201),
            "{path}: {}",
            answer.text
        );
        answer.json()
    }

    /// What one client does until all is over.
    fn live(&self, tenant: usize, n: usize) {
        let mut chance = Chance((tenant * CLIENTS_PER_TENANT + n) as u64);
        let mut count = 0;
        while !self.over.load(Ordering::Relaxed) {
            count += 1;
            let id = format!("t{tenant}-c{n}-{count}");
            let told = self.request(tenant, &id, &mut chance);
            let mut all = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            all.extend(told);
        }
    }

    /// `None` where it was refused.
    fn request(&self, tenant: usize, id: &str, chance: &mut Chance) -> Option<Told> {
        let length = 8 + chance.next(40);
        let body = json!({
            "model": self.cluster.model(), "prompt": format!("Once upon a time, {id}"),
            "max_tokens": length, "temperature": 0, "ignore_eos": true, "logprobs": 1,
            "stream": true, "stream_options": {"include_usage": true},
        });
        let kind = chance.next(10);
        let keyed = kind >= 6;
        let mut told = Told {
            tenant,
            id: id.to_owned(),
            tokens: Vec::new(),
            whole: None,
            began: Instant::now(),
            ended: Instant::now(),
            story: Vec::new(),
        };
        // Six of ten ask once, two of them to leave in the middle; the others ask again: until it is
        // whole, or once more although it was.
        let attempts = if keyed { 3 } else { 1 };
        let mut refused = true;
        for attempt in 0..attempts {
            let leaves = kind < 2 || (keyed && attempt == 0 && kind < 8);
            let gateway = chance.next(self.gateways.len() as u64) as usize;
            let heard = ask(&Asked {
                address: &self.gateways[gateway],
                key: &self.tenants[tenant].key,
                id,
                idempotency: keyed.then_some(id),
                body: &body,
                leave_after: leaves.then(|| 1 + chance.next(length) as usize),
            });
            self.hear(&heard, leaves, &mut told);
            refused &= matches!(heard.status, 429 | 503);
            if heard.status == 429 {
                self.refused.fetch_add(1, Ordering::Relaxed);
                break;
            }
        }
        (!refused).then_some(told)
    }

    fn hear(&self, heard: &Heard, leaves: bool, told: &mut Told) {
        if heard.is_whole() {
            self.answered.fetch_add(1, Ordering::Relaxed);
        }
        assert!(
            matches!(heard.status, 0 | 200 | 429 | 503 | 500),
            "{} {}",
            heard.status,
            heard.text
        );
        told.ended = Instant::now();
        told.whole = told.whole.or(heard.usage);
        told.story.push(format!(
            "{} tokens, status {}, leaves {leaves}, usage {:?}, {:?}",
            heard.tokens.len(),
            heard.status,
            heard.usage,
            heard.text
        ));
        if heard.tokens.len() > told.tokens.len() {
            told.tokens = heard.tokens.clone();
        }
    }

    /// Kills a node now and then, coordinators and workers in turn, each at most every fifth of what
    /// `cluster up` forgives, and waits until it is back and answers come.
    fn kill_for(&self, time: Duration, kills: &mut BTreeMap<&'static str, usize>) {
        const NODES: [(&str, &str); 7] = [
            ("coordinator-1", "coordinator"),
            ("worker-1", "worker"),
            ("coordinator-2", "coordinator"),
            ("worker-2", "worker"),
            ("coordinator-3", "coordinator"),
            ("worker-3", "worker"),
            ("worker-4", "worker"),
        ];
        let end = Instant::now() + time;
        for (folder, kind) in NODES.iter().cycle() {
            self.wait_for_answers(ANSWERS_BETWEEN_KILLS);
            if Instant::now() >= end {
                return;
            }
            let data = self.cluster.dir.path().join("data").join(folder);
            let mut nodes = processes::naming(&data);
            nodes.retain(|pid| *pid != self.cluster.child.id());
            let [victim] = &nodes[..] else {
                continue;
            };
            processes::signal(*victim, libc::SIGKILL);
            *kills.entry(kind).or_default() += 1;
            if *kind == "coordinator" {
                let mut killed = self.killed.lock().unwrap_or_else(PoisonError::into_inner);
                killed.push(Instant::now());
            }
            wait_for("the killed node to end", DEADLINE, || {
                (!processes::is_alive(*victim)).then_some(())
            });
            let began = Instant::now();
            while let Err(status) = self.is_whole() {
                let waits = began.elapsed() < DEADLINE;
                assert!(
                    waits,
                    "{victim} is not back: {status}\n{}",
                    self.cluster.logs()
                );
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }

    fn wait_for_answers(&self, more: usize) {
        let before = self.answered.load(Ordering::Relaxed);
        wait_for("answers to come", DEADLINE, || {
            (self.answered.load(Ordering::Relaxed) >= before + more).then_some(())
        });
    }

    /// Whether everybody votes again and both replicas are ready; else the status.
    fn is_whole(&self) -> Result<(), String> {
        let status = self.try_get("/admin/v1/status", self.cluster.admin_key());
        let status = status.unwrap_or_default();
        let all = |list: &Value, name: &str| {
            let list = list.as_array().cloned().unwrap_or_default();
            !list.is_empty() && list.iter().all(|one| one[name] == true)
        };
        let whole = all(&status["coordinators"], "active")
            && all(&status["deployments"][0]["replicas"], "ready");
        whole.then_some(()).ok_or_else(|| status.to_string())
    }

    /// From whichever gateway answers.
    fn try_get(&self, path: &str, key: &str) -> Option<Value> {
        self.gateways.iter().find_map(|gateway| {
            let answer = self.cluster.send_to(gateway, "GET", path, key, None)?;
            (answer.status == 200).then(|| answer.json())
        })
    }

    fn get(&self, path: &str, key: &str) -> Value {
        wait_for(path, DEADLINE, || self.try_get(path, key))
    }

    /// All pages of a list.
    fn pages(&self, path: &str, key: &str, list: &str, next: (&str, &str)) -> Vec<Value> {
        let (mut all, mut further) = (Vec::new(), String::new());
        loop {
            let page = self.get(&format!("{path}{further}"), key);
            all.extend(page[list].as_array().expect("a list").iter().cloned());
            let more = match &page[next.0] {
                Value::Null => return all,
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            further = format!("&{}={more}", next.1);
        }
    }

    fn account(&self, kills: &BTreeMap<&str, usize>) {
        let told = std::mem::take(&mut *self.told.lock().expect("no client panicked"));
        wait_for("all requests to be settled", DEADLINE, || {
            let running = |tenant: &Tenant| {
                let page = self.get("/billing/v1/requests?limit=1", &tenant.key);
                page["requests"][0]["status"] == "running"
            };
            (!self.tenants.iter().any(running)).then_some(())
        });
        let mut longest = Duration::ZERO;
        let killed = self.killed.lock().expect("nobody panicked").clone();
        let (mut rows_in_all, mut short) = (0, 0);
        let ledger = self.ledger();
        let mut exported = self.exported();
        for (n, tenant) in self.tenants.iter().enumerate() {
            let next = ("next_cursor", "cursor");
            let rows = self.pages(
                "/billing/v1/requests?limit=1000",
                &tenant.key,
                "requests",
                next,
            );
            rows_in_all += rows.len();
            let mut by_id = BTreeMap::new();
            for row in &rows {
                let id = row["caller_id"].as_str().expect("its client named it");
                let twice = by_id.insert(id.to_owned(), row);
                assert!(twice.is_none(), "{id} has two rows: {twice:?} and {row}");
            }
            let known: HashSet<&str> = told.iter().map(|t| t.id.as_str()).collect();
            for one in told.iter().filter(|one| one.tenant == n) {
                let shortfall = check(one, by_id.get(one.id.as_str()).copied(), &killed);
                longest = longest.max(shortfall);
                short += usize::from(shortfall > Duration::ZERO);
            }
            for (id, row) in &by_id {
                let free = row["charged_nano_usd"] == 0;
                assert!(
                    free || known.contains(id.as_str()),
                    "nobody asked for {row}"
                );
            }
            for row in &rows {
                let id = row["id"].as_str().expect("an id");
                let of = |name: &str| row[name].as_i64().expect(name);
                let counts = ["prompt_tokens", "completion_tokens", "charged_nano_usd"].map(of);
                assert_eq!(exported.remove(id), Some(counts), "the export of {row}");
            }
            self.check_sums(n, tenant, &rows, &ledger);
        }
        assert_eq!(exported, BTreeMap::new(), "what nobody has a row for");
        println!(
            "{kills:?} killed; {} requests told of by clients, {rows_in_all} rows, {} refused; \
             {short} were billed short, by what came within {longest:?} at most",
            told.len(),
            self.refused.load(Ordering::Relaxed),
        );
        assert!(
            longest <= SHORTFALL_MAX,
            "{longest:?} of tokens were not billed"
        );
        assert!(
            self.refused.load(Ordering::Relaxed) > 0,
            "the poor were refused"
        );
    }

    /// Of each request, the sums of prompt and completion tokens and of charges in the exported events.
    fn exported(&self) -> BTreeMap<String, [i64; 3]> {
        let folder = self.cluster.dir.path().join("export");
        let urls: Vec<String> = self
            .gateways
            .iter()
            .map(|g| format!("http://{g}"))
            .collect();
        let to = folder.to_string_lossy().into_owned();
        let urls = urls.join(",");
        let key = self.cluster.admin_key();
        let args = [
            "export",
            "--to",
            &to,
            "--coordinator",
            &urls,
            "--api-key",
            key,
        ];
        let (status, out, err) = harness::run(&args);
        assert!(status.success(), "{out}{err}");
        let mut sums = BTreeMap::<String, [i64; 3]>::new();
        for file in std::fs::read_dir(&folder).expect("a folder").flatten() {
            let text = std::fs::read_to_string(file.path()).expect("an export");
            for line in text.lines() {
                let event: Value = serde_json::from_str(line).expect("an event");
                let data = &event["data"];
                let id = data["request_id"].as_str().expect("a request").to_owned();
                let sum = sums.entry(id).or_default();
                let names = ["prompt_tokens", "completion_tokens", "charged_nano_usd"];
                for (sum, name) in sum.iter_mut().zip(names) {
                    *sum += data[name].as_i64().expect(name);
                }
            }
        }
        sums
    }

    /// Of each account, the sum of its lines; each posting sums to zero.
    fn ledger(&self) -> BTreeMap<String, i64> {
        let key = self.cluster.admin_key();
        let next = ("next_after", "after");
        let postings = self.pages("/admin/v1/ledger?limit=1000", key, "postings", next);
        let mut sums = BTreeMap::new();
        for posting in &postings {
            let mut sum = 0;
            for line in posting["lines"].as_array().expect("lines") {
                let amount = line["amount_nano_usd"].as_i64().expect("an amount");
                sum += amount;
                let account = line["account"].as_str().expect("an account");
                *sums.entry(account.to_owned()).or_default() += amount;
            }
            assert_eq!(sum, 0, "{posting}");
        }
        sums
    }

    /// The rows, the usage, the ledger and the balance are one sum.
    fn check_sums(
        &self,
        n: usize,
        tenant: &Tenant,
        rows: &[Value],
        ledger: &BTreeMap<String, i64>,
    ) {
        let sum = |name: &str| {
            rows.iter()
                .map(|row| row[name].as_i64().expect(name))
                .sum::<i64>()
        };
        let charged = sum("charged_nano_usd");
        let usage = self.get("/billing/v1/usage", &tenant.key);
        let used = |name: &str| usage["total"][name].as_i64().expect(name);
        assert_eq!(used("requests"), rows.len() as i64, "tenant {n}");
        assert_eq!(used("cost_nano_usd"), charged, "tenant {n}");
        for name in ["prompt_tokens", "completion_tokens"] {
            assert_eq!(used(name), sum(name), "tenant {n}: {name}");
        }
        let balance = self.get("/billing/v1/balance", &tenant.key);
        let balance = balance["balance_nano_usd"].as_i64().expect("a balance");
        assert_eq!(balance, tenant.balance - charged, "tenant {n}");
        assert!(balance >= 0, "tenant {n} is overdrawn: {balance}");
        let account = ledger
            .iter()
            .find(|(name, _)| name.ends_with(&format!("tenant-{n}")));
        assert_eq!(
            account.map(|(_, sum)| *sum),
            Some(balance),
            "tenant {n}: {ledger:?}"
        );
    }
}

/// The greeting's last line asks for the tenant's own usage.
fn greeting_works(cluster: &Cluster) {
    let output = cluster.output();
    let line = output
        .lines()
        .find(|line| line.contains("/billing/v1/usage"));
    let line = line.unwrap_or_else(|| panic!("no such line in the greeting:\n{output}"));
    let words: Vec<&str> = line.split('\'').collect();
    let (url, key) = (
        words[1],
        words[3].trim_start_matches("Authorization: Bearer "),
    );
    let (address, path) = url
        .trim_start_matches("http://")
        .split_once('/')
        .expect("a path");
    let answer = cluster.send_to(address, "GET", &format!("/{path}"), key, None);
    let answer = answer.expect("it answers");
    assert_eq!(answer.status, 200, "{line}: {}", answer.text);
}

/// Holds a bill against what its client was sent; gives how long before the last token those came that
/// were not billed.
fn check(told: &Told, row: Option<&Value>, killed: &[Instant]) -> Duration {
    let count = |name: &str| row.map_or(0, |row| row[name].as_u64().expect(name));
    let billed = count("completion_tokens") as usize;
    let sent = told.tokens.len();
    assert!(
        billed <= sent,
        "{}: {billed} tokens billed, {sent} sent: {row:?}; {:?}",
        told.id,
        told.story
    );
    if let Some((prompt, completion, cost)) = told.whole {
        let row = row.unwrap_or_else(|| panic!("{} is not on the bill", told.id));
        assert_eq!(completion as usize, sent, "{}", told.id);
        assert_eq!(
            (count("prompt_tokens"), billed),
            (prompt, sent),
            "{}",
            told.id
        );
        assert_eq!(row["charged_nano_usd"].as_i64(), Some(cost), "{}", told.id);
        return Duration::ZERO;
    }
    // Its gateway died while it ran, or before its end was on the bill.
    let its = told.began..told.ended + SETTLED_WITHIN;
    assert!(
        billed == sent || killed.iter().any(|at| its.contains(at)),
        "{}: {billed} tokens billed, {sent} sent, and no gateway died: {row:?}; {:?}",
        told.id,
        told.story
    );
    match (told.tokens.get(billed), told.tokens.last()) {
        (Some(first), Some(last)) => (*last - *first).max(Duration::from_nanos(1)),
        _ => Duration::ZERO,
    }
}
