//! Webhooks as their receiver meets them: real coordinators, a real receiver, and a leader that is
//! killed while an event is on its way.

use super::alone;
use super::harness::{Answer, Cluster, DEADLINE, processes, tiny_model, wait_for};
use super::receiver::{Heard, Receiving};
use serde_json::{Value, json};
use std::io::Write;
use std::net::TcpListener;
use std::process::{Command, Stdio};

const PATH: &str = "/billing/v1/webhook";

/// One delivery as it came.
#[derive(Clone, Debug)]
struct Delivery {
    id: String,
    timestamp: String,
    signature: String,
    body: String,
}

impl Delivery {
    fn of(request: &Heard) -> Self {
        let header = |name| request.header(name).expect("it is signed").to_owned();
        Self {
            id: header("webhook-id"),
            timestamp: header("webhook-timestamp"),
            signature: header("webhook-signature"),
            body: String::from_utf8(request.body.clone()).expect("JSON"),
        }
    }
}

/// HMAC-SHA256 by another hand than ours: Python's.
fn signature(secret: &str, heard: &Delivery) -> String {
    const CODE: &str = "import base64,hashlib,hmac,sys\n\
        key=base64.b64decode(sys.argv[1].removeprefix('whsec_'))\n\
        print('v1,'+base64.b64encode(hmac.digest(key,sys.stdin.buffer.read(),'sha256')).decode())";
    let mut python = Command::new("python3")
        .args(["-c", CODE, secret])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("this test needs python3");
    let signed = format!("{}.{}.{}", heard.id, heard.timestamp, heard.body);
    let mut stdin = python.stdin.take().expect("it is piped");
    stdin.write_all(signed.as_bytes()).expect("it reads");
    drop(stdin);
    let out = python.wait_with_output().expect("it ends");
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

/// Asks as the tenant, at whichever gateway answers.
fn ask(cluster: &Cluster, method: &str, path: &str, body: Option<&Value>) -> Answer {
    let gateways: Vec<String> = cluster.ready["coordinators"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|c| c["http"].as_str().expect("an address").to_owned())
        .map(|http| http.trim_start_matches("http://").to_owned())
        .collect();
    wait_for(
        "an answer that is none of a group without leader",
        DEADLINE,
        || {
            let mut answers = gateways
                .iter()
                .filter_map(|at| cluster.send_to(at, method, path, cluster.api_key(), body));
            answers.find(|answer| answer.status < 500)
        },
    )
}

fn good(answer: Answer) -> Value {
    assert!((200..300).contains(&answer.status), "{}", answer.text);
    answer.json()
}

fn kill_leader(cluster: &Cluster) {
    let answer = wait_for("a leader", DEADLINE, || {
        let answer = cluster
            .try_get_as("/admin/v1/status", cluster.admin_key())
            .ok()?;
        (answer.status == 200 && answer.json()["leader"].is_u64()).then_some(answer)
    });
    let status = answer.json();
    let leads = |c: &&Value| c["id"] == status["leader"];
    let all = cluster.ready["coordinators"].as_array().expect("a list");
    let leader = all.iter().find(leads).expect("the leader is one of them");
    let pid = leader["pid"].as_u64().expect("a pid") as u32;
    processes::signal(pid, libc::SIGKILL);
}

#[test]
fn what_was_refused_is_delivered_by_the_next_leader_under_the_same_id() {
    let _alone = alone();
    let (_folder, model) = tiny_model();
    let cluster = Cluster::up(&[
        "--model",
        &model,
        "--coordinators",
        "3",
        "--workers",
        "1",
        "--threads-per-worker",
        "1",
        "--allow-private-webhooks",
    ]);
    let receiving = Receiving::start();
    let next = || Delivery::of(&receiving.next());
    let url = format!("{}/hook", receiving.base);
    let wanted = json!({"url": url, "events": ["budget.threshold"]});
    let secret = good(ask(&cluster, "PUT", PATH, Some(&wanted)))["secret"].clone();
    let secret = secret.as_str().expect("a secret").to_owned();

    // Refused at first, and again by whoever is told while the leader dies.
    receiving.answer(503);
    let id = good(ask(&cluster, "POST", "/billing/v1/webhook/test", None))["id"].clone();
    let first = next();
    assert_eq!(json!(first.id), id);
    assert_eq!(first.signature, signature(&secret, &first));
    kill_leader(&cluster);
    receiving.answer(200);
    let second = next();
    assert_eq!((&second.id, &second.body), (&first.id, &first.body));
    assert_eq!(second.signature, signature(&secret, &second));
    let told = wait_for("the delivery to be noted", DEADLINE, || {
        let told = good(ask(&cluster, "GET", PATH, None));
        (told["waiting"] == 0).then_some(told)
    });
    assert_eq!(told["delivered"], 1, "{told}");
    assert_eq!(told["last_error"], Value::Null, "{told}");

    // What a request spends is told of, signed by the secret that counts now.
    let rotate = json!({"url": url, "events": ["budget.threshold"], "rotate": true});
    let rotated = good(ask(&cluster, "PUT", PATH, Some(&rotate)));
    let rotated = rotated["secret"].as_str().expect("a secret").to_owned();
    assert_ne!(rotated, secret);
    let chat = json!({"model": cluster.model(), "max_tokens": 4,
                      "messages": [{"role": "user", "content": "hi"}]});
    let spent = || {
        let answer = ask(&cluster, "POST", "/v1/chat/completions", Some(&chat));
        good(answer)["usage"]["cost_nano_usd"]
            .as_i64()
            .expect("a cost")
    };
    let cost = spent();
    let tenants = good(cluster.send("GET", "/admin/v1/tenants", cluster.admin_key(), None));
    let name = tenants[0]["name"].as_str().expect("a name");
    let mut settings = tenants[0]["settings"].clone();
    settings["monthly_budget_nano_usd"] = json!(2 * cost);
    let path = format!("/admin/v1/tenants/{name}");
    good(cluster.send("PUT", &path, cluster.admin_key(), Some(&settings)));
    let told = loop {
        // A repeat of the test event would be no fault: at least once is what is promised.
        let heard = next();
        if heard.id != first.id {
            break heard;
        }
    };
    assert_eq!(told.signature, signature(&rotated, &told));
    let body: Value = serde_json::from_str(&told.body).expect("JSON");
    assert_eq!(body["type"], "budget.threshold");
    assert_eq!(body["id"], json!(told.id));
    assert_eq!(body["data"]["percent"], 50);
    assert_eq!(body["data"]["spent_nano_usd"], cost);
}

#[test]
fn nothing_is_sent_to_a_private_address() {
    let _alone = alone();
    let (_folder, model) = tiny_model();
    let args = [
        "--model",
        &model,
        "--workers",
        "1",
        "--threads-per-worker",
        "1",
    ];
    let cluster = Cluster::up(&args);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("it can be");
    let port = listener.local_addr().expect("an address").port();
    for url in [
        format!("http://127.0.0.1:{port}/"),
        format!("https://127.0.0.1:{port}/"),
        "https://169.254.169.254/latest/meta-data".into(),
    ] {
        let wanted = json!({"url": url, "events": ["statement.ready"]});
        let answer = ask(&cluster, "PUT", PATH, Some(&wanted));
        assert_eq!(answer.status, 400, "{url}: {}", answer.text);
    }
    // A name is only known when it is looked up.
    let url = format!("https://localhost:{port}/");
    let wanted = json!({"url": url, "events": ["statement.ready"]});
    good(ask(&cluster, "PUT", PATH, Some(&wanted)));
    good(ask(&cluster, "POST", "/billing/v1/webhook/test", None));
    let told = wait_for("the try to be noted", DEADLINE, || {
        let told = good(ask(&cluster, "GET", PATH, None));
        told["last_error"].is_string().then_some(told)
    });
    let error = told["last_error"].as_str().expect("a text");
    assert!(error.contains("no public address"), "{told}");
    assert!(told["failed_since"].is_u64(), "{told}");
    assert_eq!(told["waiting"], 1, "it is tried again: {told}");
    let nobody = listener.accept().expect_err("nobody comes");
    assert_eq!(nobody.kind(), std::io::ErrorKind::WouldBlock);
}
