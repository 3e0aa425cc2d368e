//! The commands of accounts, on a coordinator without workers: what they set is what they show, and what
//! a tenant is told by its own key.

use super::harness::{DEADLINE, binary, run, wait_for};
use serde_json::Value;
use std::process::{Child, Stdio};

/// A coordinator of its own, ended on drop.
struct Coordinator {
    child: Child,
    url: String,
    admin: String,
    _dir: tempfile::TempDir,
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        // Dead already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Coordinator {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let data = dir.path().join("data");
        let log = dir.path().join("coordinator.log");
        let output = std::fs::File::create(&log).expect("a log file");
        let mut child = binary()
            .args([
                "coordinator",
                "--listen",
                "127.0.0.1:0",
                "--http",
                "127.0.0.1:0",
                "--data-dir",
            ])
            .arg(&data)
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a second handle"))
            .stderr(output)
            .spawn()
            .expect("the binary starts");
        let file = wait_for("the coordinator to listen", DEADLINE, || {
            if let Some(status) = child.try_wait().expect("waiting works") {
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                panic!("the coordinator ended with {status}: {said}");
            }
            let text = std::fs::read_to_string(data.join("coordinator.json")).ok()?;
            serde_json::from_str::<Value>(&text).ok()
        });
        let text = |name: &str| file[name].as_str().expect("a text").to_owned();
        Self {
            url: text("http"),
            admin: text("admin_key"),
            child,
            _dir: dir,
        }
    }

    /// Runs a command under a key; gives whether it did well, and what it wrote.
    fn try_as(&self, key: &str, args: &[&str]) -> (bool, String, String) {
        let mut all = args.to_vec();
        all.extend(["--coordinator", &self.url, "--api-key", key]);
        let (status, out, err) = run(&all);
        (status.success(), out, err)
    }

    fn out(&self, key: &str, args: &[&str]) -> String {
        let (well, out, err) = self.try_as(key, args);
        assert!(well, "cluster {args:?}: {out}{err}");
        out
    }

    fn admin(&self, args: &[&str]) -> String {
        self.out(&self.admin, args)
    }

    fn json(&self, key: &str, args: &[&str]) -> Value {
        let mut all = args.to_vec();
        all.push("--json");
        let out = self.out(key, &all);
        serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}"))
    }
}

#[test]
fn accounts_are_run_by_command() {
    let house = Coordinator::start();
    // A new tenant must say how it pays; then only what is given changes.
    let (well, _, err) = house.try_as(&house.admin, &["tenant", "set", "acme inc/1"]);
    assert!(!well && err.contains("--prepaid"), "{err}");
    house.admin(&["tenant", "set", "acme inc/1", "--prepaid", "--weight", "3"]);
    let set = ["tenant", "set", "acme inc/1", "--requests-per-minute", "60"];
    house.admin(&set);
    let shown = house.json(&house.admin, &["tenant", "show", "acme inc/1"]);
    assert_eq!(shown["settings"]["payment"]["type"], "prepaid");
    assert_eq!(shown["settings"]["weight"], 3);
    assert_eq!(shown["settings"]["limits"]["requests_per_minute"], 60);
    house.admin(&[
        "tenant",
        "set",
        "acme inc/1",
        "--requests-per-minute",
        "none",
    ]);
    assert!(house.admin(&["tenant", "list"]).contains("prepaid"));

    // Money, exactly, and what it is for.
    let credit = [
        "credit",
        "acme inc/1",
        "12.500000001",
        "--reason",
        "invoice 7",
    ];
    let posted = house.admin(&credit);
    assert!(posted.contains("tenant:acme inc/1"), "{posted}");
    house.admin(&["credit", "acme inc/1", "-2.5", "--reason", "typo"]);
    let (well, _, err) = house.try_as(
        &house.admin,
        &["credit", "acme inc/1", "-11", "--reason", "too much"],
    );
    assert!(!well && err.contains("not there"), "{err}");
    let (well, ..) = house.try_as(
        &house.admin,
        &["credit", "acme inc/1", "1e3", "--reason", "r"],
    );
    assert!(!well);

    // Keys, which are shown once.
    let create = [
        "key",
        "create",
        "acme inc/1",
        "--name",
        "laptop",
        "--expires-in",
        "30d",
    ];
    let key = house.admin(&create).trim().to_owned();
    assert!(key.starts_with("sk-tr-"), "{key}");
    house.admin(&[
        "key",
        "set",
        "k1",
        "--model",
        "a",
        "--model",
        "b",
        "--monthly-budget",
        "20",
    ]);
    let shown = house.json(&house.admin, &["key", "show", "k1"]);
    assert_eq!(shown["settings"]["name"], "laptop");
    assert_eq!(shown["settings"]["models"], serde_json::json!(["a", "b"]));
    assert_eq!(
        shown["settings"]["monthly_budget_nano_usd"],
        20_000_000_000_i64
    );
    let rotated = house.admin(&["key", "rotate", "k1", "--overlap", "1h"]);
    let listed = house.admin(&["key", "list", "--tenant", "acme inc/1"]);
    assert!(
        listed.contains("k2") && !listed.contains(rotated.trim()),
        "{listed}"
    );

    // Prices from the next second on, and a fee.
    let price = [
        "price",
        "set",
        "org/m",
        "--input",
        "0.02",
        "--cached-input",
        "0",
        "--output",
        "1",
    ];
    house.admin(&price);
    let prices = house.json(&house.admin, &["price", "list"]);
    assert_eq!(prices["lists"][0]["prices"]["input_nano_usd"], 20_000_000);
    assert_eq!(house.admin(&["fee", "12.5"]).trim(), "12.50 %");
    assert_eq!(house.admin(&["fee"]).trim(), "12.50 %");

    // What the tenant is told, by its own key and by the admin's.
    let usage = house.json(&key, &["usage", "--by", "model"]);
    assert_eq!(usage["total"]["requests"], 0);
    let own = house.json(&key, &["statement"]);
    assert_eq!(own["closing_nano_usd"], 10_000_000_001_i64);
    assert_eq!(own["provisional"], true);
    let told = house.json(&house.admin, &["statement", "--tenant", "acme inc/1"]);
    assert_eq!(own, told);
    let csv = house.out(&key, &["statement", "--csv"]);
    assert!(
        csv.contains(",closing,,,,,,10000000001,10.000000001\r\n"),
        "{csv}"
    );
    let page = tempfile::tempdir().expect("a folder");
    let file = page.path().join("statement.html");
    house.out(
        &key,
        &["statement", "--html", file.to_str().expect("UTF-8")],
    );
    let page = std::fs::read_to_string(&file).expect("the page");
    assert!(page.contains("acme inc/1"), "{page}");
    assert!(
        house
            .out(&key, &["statement", "--list"])
            .contains("provisional")
    );
    let (well, _, err) = house.try_as(&key, &["statement", "2001-01"]);
    assert!(!well && err.contains("--list"), "{err}");

    // Where it is told of its account; it is nobody's who reads this.
    let set = ["webhook", "set", "https://192.0.2.1/hook"];
    let (well, _, err) = house.try_as(&key, &set);
    assert!(!well && err.contains("not a public address"), "{err}");
    let set = [
        "webhook",
        "set",
        "https://trireme.invalid/hook",
        "--event",
        "statement.ready",
    ];
    let secret = house.out(&key, &set);
    assert!(secret.starts_with("whsec_"), "{secret}");
    assert!(house.out(&key, &["webhook", "test"]).contains("test-t1-1"));
    let shown = house.json(&key, &["webhook", "show"]);
    assert_eq!(shown["events"], serde_json::json!(["statement.ready"]));
    assert!(!house.out(&key, &set).contains("whsec_"));
    house.out(&key, &["webhook", "remove"]);
    let (well, _, err) = house.try_as(&key, &["webhook", "show"]);
    assert!(!well && err.contains("no webhook"), "{err}");

    // Suspended, it is let in nowhere.
    house.admin(&["tenant", "suspend", "acme inc/1"]);
    let (well, _, err) = house.try_as(&key, &["usage"]);
    assert!(!well && err.contains("suspended"), "{err}");
    house.admin(&["tenant", "resume", "acme inc/1"]);
    house.admin(&["key", "revoke", "k1"]);
    let (well, _, err) = house.try_as(&key, &["usage"]);
    assert!(!well && err.contains("revoked"), "{err}");
    assert!(house.admin(&["provider", "list"]).contains("no providers"));
    let (well, _, err) = house.try_as(&house.admin, &["refund", "req_none", "1", "--reason", "r"]);
    assert!(!well && err.contains("req_none"), "{err}");
}
