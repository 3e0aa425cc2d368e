//! The official `openai` Python package against a real `cluster up`.

#[path = "../harness/mod.rs"]
mod harness;

use harness::{Cluster, python};
use std::path::Path;
use std::process::Command;

const OPENAI_VERSION: &str = "3.54.0";

#[test]
fn the_official_client_drives_it() {
    let python = python::environment("openai", OPENAI_VERSION).join("python");
    let cluster = Cluster::up(&["--workers", "2", "--tp", "2"]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openai/drive.py");
    let out = Command::new(python)
        .arg(script)
        .args([&cluster.base(), cluster.api_key(), cluster.model()])
        .output()
        .expect("python starts");
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    assert!(out.status.success(), "{text}\n{}", cluster.logs());
    assert!(text.contains("all checks hold"), "{text}");
}
