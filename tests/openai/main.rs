//! The official `openai` Python package against a real `cluster up`.

#[path = "../harness/mod.rs"]
mod harness;

use harness::Cluster;
use std::path::{Path, PathBuf};
use std::process::Command;

const OPENAI_VERSION: &str = "3.54.0";

#[test]
fn the_official_client_drives_it() {
    let python = virtual_environment();
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

/// A virtual environment under the build folder with the package, made once.
fn virtual_environment() -> PathBuf {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("openai-{OPENAI_VERSION}"));
    let python = home.join("bin/python");
    let has_package = |python: &Path| {
        let check = "import openai,sys; sys.exit(openai.__version__ != sys.argv[1])";
        Command::new(python)
            .args(["-c", check, OPENAI_VERSION])
            .output()
            .is_ok_and(|o| o.status.success())
    };
    if has_package(&python) {
        return python;
    }
    let sure = |command: &mut Command| {
        let out = command.output().unwrap_or_else(|e| {
            panic!("{command:?}: {e}: this test needs python3 with its venv module")
        });
        assert!(
            out.status.success(),
            "{command:?}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
    };
    sure(
        Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(&home),
    );
    sure(
        Command::new(&python)
            .args(["-m", "pip", "install", "--quiet"])
            .arg(format!("openai=={OPENAI_VERSION}")),
    );
    assert!(has_package(&python));
    python
}
