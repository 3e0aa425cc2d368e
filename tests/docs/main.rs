//! `ARCHITECTURE.md` names files and functions; this holds it to the tree.

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
            let text = read(&path);
            let defined = ["fn ", "struct ", "enum ", "trait ", "const "]
                .iter()
                .any(|kind| text.contains(&format!("{kind}{last}")));
            if !defined {
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
        for file in files(&root().join(room)) {
            // The journal is the state's driver, not the state.
            if file.file_name().is_some_and(|n| n == "journal.rs") {
                continue;
            }
            let text = std::fs::read_to_string(&file).expect("a source file");
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            for word in [
                "SystemTime::now",
                "Instant::now",
                "getrandom",
                "std::fs",
                "tokio::",
            ] {
                assert!(!code.contains(word), "{} uses {word}", file.display());
            }
        }
    }
}

#[test]
fn the_readme_names_commands_that_exist() {
    let readme = read("README.md");
    let commands: BTreeSet<&str> = readme
        .lines()
        .filter_map(|l| l.trim().trim_start_matches("$ ").strip_prefix("cluster "))
        .filter_map(|l| l.split_whitespace().next())
        .filter(|word| word.chars().all(|c| c.is_ascii_lowercase()))
        .collect();
    assert!(commands.len() >= 5, "{commands:?}");
    for command in commands {
        let out = std::process::Command::new(env!("CARGO_BIN_EXE_cluster"))
            .args([command, "--help"])
            .output()
            .expect("the binary starts");
        let help = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success(), "cluster {command} --help");
        assert!(
            help.contains("Example"),
            "cluster {command} --help has no example"
        );
    }
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
