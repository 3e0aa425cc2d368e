//! Schemathesis, which makes requests out of an OpenAPI document, against a real `cluster up`: nothing that
//! the document allows, and nothing beside it, gets an answer of ours that failed or that the document
//! does not tell of.

#[path = "../harness/mod.rs"]
mod harness;

use harness::{Cluster, python, tiny_model};
use std::process::Command;

const SCHEMATHESIS_VERSION: &str = "4.32.5";
/// Failures in these are ours: a 5xx, or a status, a type or a body that the document does not have.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
                      response_schema_conformance";

/// Asks as the owner of `key`, at the routes that match.
fn asked(cluster: &Cluster, key: &str, include: &str, exclude: &str) {
    let tool = python::environment("schemathesis", SCHEMATHESIS_VERSION).join("st");
    let out = Command::new(tool)
        .args(["run", &format!("{}/openapi.json", cluster.base())])
        .args(["--header", &format!("Authorization: Bearer {key}")])
        .args(["--include-path-regex", include])
        .args(["--exclude-path-regex", exclude])
        .args(["--checks", CHECKS])
        // The same requests at each run.
        .args(["--seed", "1", "--generation-deterministic"])
        .args(["--max-examples", "25", "--no-color"])
        .current_dir(cluster.dir.path())
        .output()
        .expect("it starts");
    let text = String::from_utf8_lossy(&out.stdout);
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{text}{said}\n{}", cluster.logs());
    // It asked something.
    assert!(text.contains("generated"), "{text}{said}");
}

#[test]
fn nothing_that_is_asked_fails_or_is_answered_as_the_document_does_not_say() {
    let (_folder, model) = tiny_model();
    let cluster = Cluster::up(&[
        "--model",
        &model,
        "--workers",
        "1",
        "--threads-per-worker",
        "1",
    ]);
    asked(&cluster, cluster.api_key(), "^/(v1|billing)/", "^$");
    // Not what would fetch models, or remove this very coordinator.
    let exclude = "deployments|/nodes/|/members/|/ca/rotate";
    asked(
        &cluster,
        cluster.admin_key(),
        "^/(admin|health|ready|metrics|docs|openapi)",
        exclude,
    );
    // A stranger, and a tenant where only the admin may.
    asked(&cluster, "sk-nobody", "^/(v1|billing|admin)/", "^$");
    asked(&cluster, cluster.api_key(), "^/admin/", "^$");
}
