//! The served model against reference outputs, on every way to split it.
//!
//! `tests/golden/README.md` says where the references come from. Each split is a real `cluster up`;
//! everything goes through its HTTP endpoint.

// The measures are for whoever reads the run.
#![allow(clippy::print_stdout)]

#[path = "../harness/mod.rs"]
mod harness;

mod golden;
mod greedy;

use harness::Cluster;

/// One way to split, as `cluster up` takes it.
struct Split {
    name: &'static str,
    args: &'static [&'static str],
}

const WHOLE: Split = Split {
    name: "1x1",
    args: &["--workers", "1", "--threads-per-worker", "2"],
};

const SPLITS: &[Split] = &[
    Split {
        name: "tp2",
        args: &["--workers", "2", "--tp", "2", "--threads-per-worker", "1"],
    },
    Split {
        name: "tp3",
        args: &["--workers", "3", "--tp", "3", "--threads-per-worker", "1"],
    },
    Split {
        name: "pp2",
        args: &["--workers", "2", "--pp", "2", "--threads-per-worker", "1"],
    },
    Split {
        name: "tp2 x pp2",
        args: &[
            "--workers",
            "4",
            "--tp",
            "2",
            "--pp",
            "2",
            "--threads-per-worker",
            "1",
        ],
    },
    Split {
        name: "tp2 over QUIC",
        args: &[
            "--workers",
            "2",
            "--tp",
            "2",
            "--threads-per-worker",
            "1",
            "--link",
            "quic",
        ],
    },
    Split {
        name: "tp2 x pp2 over QUIC",
        args: &[
            "--workers",
            "4",
            "--tp",
            "2",
            "--pp",
            "2",
            "--threads-per-worker",
            "1",
            "--link",
            "quic",
        ],
    },
];

/// One test, so that one cluster runs at a time: the splits are compared with each other.
#[test]
fn every_split_gives_the_reference_and_agrees_with_the_whole() {
    let (scores, texts) = {
        let whole = Cluster::up(WHOLE.args);
        (golden::check(WHOLE.name, &whole), greedy::generate(&whole))
    };
    for split in SPLITS {
        let cluster = Cluster::up(split.args);
        let split_scores = golden::check(split.name, &cluster);
        golden::agree(split.name, &scores, &split_scores);
        greedy::agree(split.name, &texts, &greedy::generate(&cluster));
    }
}

/// The other instruction sets give the reference too.
#[test]
fn every_instruction_set_gives_the_reference() {
    for isa in ["portable", "avx2"] {
        if isa == "avx2" && !avx2() {
            println!("skipped {isa}: this machine has no AVX2");
            continue;
        }
        let cluster = Cluster::up(&["--workers", "1", "--threads-per-worker", "2", "--isa", isa]);
        golden::check(isa, &cluster);
    }
}

fn avx2() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx2");
    #[cfg(not(target_arch = "x86_64"))]
    false
}
