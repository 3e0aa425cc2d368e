//! Holds the documents to the tree: what `ARCHITECTURE.md` names exists, rooms keep their doors,
//! cores stay pure, and the commands that documents show are commands.

use std::collections::BTreeSet;
use std::path::Path;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Texts between single backquotes, code blocks left out.
fn quoted(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut in_block = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        } else if !in_block {
            found.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    found
}

#[test]
fn every_path_and_function_that_architecture_names_exists() {
    let mut missing = Vec::new();
    let mut hops = 0;
    for name in quoted(&read("ARCHITECTURE.md")) {
        // `path/to/file.rs::function` or `path/to/file.rs` or `path/to/folder/`
        let (path, function) = match name.split_once(".rs::") {
            Some((path, function)) => (format!("{path}.rs"), Some(function)),
            None => (name.clone(), None),
        };
        let is_path = path.contains('/')
            && !path.contains([' ', ':', '<', '*', '$', '{'])
            && !path.starts_with(['/', '.', '~']);
        if !is_path {
            continue;
        }
        if !root().join(&path).exists() {
            missing.push(name);
            continue;
        }
        if let Some(function) = function {
            hops += 1;
            let last = function.rsplit("::").next().expect("a name");
            if !defines(&read(&path), last) {
                missing.push(name);
            }
        }
    }
    assert!(
        missing.is_empty(),
        "ARCHITECTURE.md names what is not there: {missing:#?}"
    );
    assert!(
        hops >= 12,
        "the life of a request names its functions ({hops} found)"
    );
}

/// Whether a source text defines an item of exactly that name.
fn defines(text: &str, name: &str) -> bool {
    ["fn", "struct", "enum", "trait", "const", "type"]
        .iter()
        .any(|kind| {
            text.match_indices(&format!("{kind} {name}"))
                .any(|(at, found)| {
                    let rest = &text[at + found.len()..];
                    !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_')
                })
        })
}

/// `shared` imports neither of the others, and those two never import each other.
#[test]
fn rooms_keep_their_doors() {
    for (room, forbidden) in [
        ("shared", &["trireme-coordinator", "trireme-worker"][..]),
        ("coordinator", &["trireme-worker"]),
        ("worker", &["trireme-coordinator"]),
    ] {
        let manifest = read(&format!("{room}/Cargo.toml"));
        for other in forbidden {
            assert!(!manifest.contains(other), "{room} imports {other}");
        }
    }
    for room in ["coordinator/src/state", "coordinator/src/placement"] {
        let mut checked = 0;
        for file in files(&root().join(room)) {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            // What reads an older release's file is not the state; tests bring time and folders along.
            if name == "import.rs" || name == "tests.rs" || name.ends_with("_tests.rs") {
                continue;
            }
            assert_pure(&file);
            checked += 1;
        }
        assert!(checked >= 3, "{room} holds {checked} files of code");
    }
}

/// Cores outside those rooms: events and the time go in, effects come out.
#[test]
fn cores_are_pure() {
    for core in [
        "coordinator/src/fleet/reconcile.rs",
        "coordinator/src/fleet/reconcile/adopt.rs",
        "coordinator/src/fleet/reconcile/events.rs",
        "coordinator/src/fleet/slot.rs",
        "coordinator/src/raft/codec.rs",
        "coordinator/src/raft/member.rs",
        "coordinator/src/raft/roster.rs",
        "coordinator/src/raft/view.rs",
        "coordinator/src/fleet/progress.rs",
        "coordinator/src/gateway/stop.rs",
        "coordinator/src/places.rs",
        "coordinator/src/webhooks/letter.rs",
        "coordinator/src/gateway/billing/statement_csv.rs",
        "coordinator/src/gateway/billing/statement_html.rs",
        "coordinator/src/gateway/openapi/page.rs",
        "coordinator/src/gateway/view/money.rs",
        "coordinator/src/gateway/view/requests.rs",
        "coordinator/src/gateway/view/settings.rs",
        "shared/src/money.rs",
        "shared/src/model/partition.rs",
        "worker/src/agent/core.rs",
        "worker/src/agent/links.rs",
        "worker/src/engine/batcher.rs",
        "worker/src/engine/sequence.rs",
        "worker/src/engine/pages.rs",
        "worker/src/engine/prefix.rs",
        "worker/src/engine/sampler.rs",
        "worker/src/engine/waiting.rs",
        "worker/src/parallel/topology.rs",
        "src/cmd/up/supervise.rs",
        "src/cmd/up/split.rs",
    ] {
        assert_pure(&root().join(core));
    }
}

/// raft-rs brings protobuf 2.28, whose parser nested bytes can crash (RUSTSEC-2024-0437), so that no
/// byte from a disk or a peer may reach it: we read and write raft-rs's types in our own format and
/// never call the parser. raft-rs itself calls it in one place, where a leader is asked to propose a
/// change of the members (`MsgPropose`): from this process it is what `propose_conf_change` has just
/// encoded, and from a peer no such message may be taken.
#[test]
fn nothing_of_ours_calls_protobufs_parser() {
    for room in ["", "shared/", "coordinator/", "worker/"] {
        let manifest = read(&format!("{room}Cargo.toml"));
        let direct = manifest.lines().any(|line| line.starts_with("protobuf"));
        assert!(!direct, "{room}Cargo.toml depends on protobuf");
    }
    let mut checked = 0;
    for room in ["src", "shared/src", "coordinator/src", "worker/src"] {
        for file in files(&root().join(room)) {
            let code = std::fs::read_to_string(&file).expect("a source file");
            for word in ["protobuf::", "merge_from", "parse_from", "CodedInputStream"] {
                assert!(!code.contains(word), "{} uses {word}", file.display());
            }
            checked += 1;
        }
    }
    assert!(checked > 100, "{checked} files of code");
}

fn assert_pure(file: &Path) {
    let text = std::fs::read_to_string(file).expect("a source file");
    // Tests stand last in a file.
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    for word in [
        "SystemTime::now",
        "Instant::now",
        "wall_clock",
        "getrandom",
        "std::fs",
        "std::env",
        "std::net",
        "std::thread",
        "tokio::",
        ".await",
    ] {
        assert!(!code.contains(word), "{} uses {word}", file.display());
    }
}

/// Every line of the documents for users that begins with `cluster `: its subcommands exist, their
/// help has an example, and every option on the line is one of theirs.
#[test]
fn documents_name_commands_that_exist() {
    let documents = ["README.md", "deploy/README.md", "CONTRIBUTING.md"].map(read);
    let mut commands = BTreeSet::new();
    for line in documents.iter().flat_map(|text| text.lines()) {
        let line = line.trim().trim_start_matches("$ ");
        let Some(line) = line.strip_prefix("cluster ") else {
            continue;
        };
        let words: Vec<&str> = line.split_whitespace().collect();
        let path: Vec<&str> = subcommands(&words);
        let Some(first) = path.first() else {
            continue;
        };
        commands.insert(first.to_string());
        let out = std::process::Command::new(env!("CARGO_BIN_EXE_cluster"))
            .args(&path)
            .arg("--help")
            .output()
            .expect("the binary starts");
        let help = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success(), "cluster {path:?} --help");
        assert!(
            help.contains("Example"),
            "cluster {path:?} --help has no example"
        );
        for option in words.iter().filter(|w| w.starts_with("--")) {
            assert!(
                help.contains(&format!("{option} ")) || help.contains(&format!("{option}\n")),
                "cluster {path:?} has no {option}"
            );
        }
    }
    assert!(commands.len() >= 5, "{commands:?}");
}

/// The leading words that choose a command: `bench serve --url U` gives `bench serve`.
fn subcommands<'a>(words: &[&'a str]) -> Vec<&'a str> {
    let grouped = [
        "audit", "bench", "ca", "key", "member", "model", "node", "price", "provider", "tenant",
        "token", "webhook",
    ];
    let plain = |w: &&&str| w.chars().all(|c| c.is_ascii_lowercase());
    let count = 1 + usize::from(words.first().is_some_and(|w| grouped.contains(w)));
    words
        .iter()
        .take(count)
        .take_while(plain)
        .copied()
        .collect()
}

fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a room").flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}
