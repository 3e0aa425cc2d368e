//! Every decoder of bytes that a disk or a peer may have got wrong, fed with changed and cut examples:
//! none may panic, and none may allocate more than a stated multiple of what it was given.
//!
//!     cargo test --release --test fuzz
//!     TRIREME_FUZZ_ROUNDS=1000000 TRIREME_FUZZ_SEED=7 cargo test --release --test fuzz
//!
//! `network` has what peers send, `files` what disks hold, and here is what the group keeps and says to
//! itself.
//!
//! Mutation without coverage feedback: examples of every kind, then flips, cuts, splices, repeats, and
//! length fields set to the numbers that break arithmetic. A failure prints its target, seed and round.
#![allow(clippy::print_stdout)]

mod files;
mod network;

use peak_alloc::PeakAlloc;
use std::io::Read;
use trireme_coordinator::raft::codec::{self, MessageKind, PeerMessage};
use trireme_coordinator::raft::storage::snapshot_format::{Encoder, Reader};
use trireme_coordinator::raft::storage::{SnapshotRef, record};
use trireme_coordinator::raft::types::{Ballot, EntryKind, LogEntry, Membership, SnapshotMeta};
use trireme_coordinator::state::codec as state_codec;
use trireme_coordinator::state::{
    Account, Amounts, Ask, ClusterId, Command, Counts, Ended, Final, KeySettings, Origin, Progress,
    Proposal, ProposalId, Report, Return, State, Subject, Work, apply,
};
use trireme_shared::identity::JoinToken;
use trireme_shared::ids::{GatewayLife, KeyId, NanoUsd, RequestId, TenantId, Tokens};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// What a decoder may hold at once beside a multiple of its input: one message's declared bound.
const SLACK_BYTES: usize = 20 << 20;
const MULTIPLE: usize = 64;

struct Target {
    name: &'static str,
    examples: Vec<Vec<u8>>,
    decode: fn(&[u8]),
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

fn meta() -> SnapshotMeta {
    SnapshotMeta {
        index: 9,
        term: 4,
        members: Membership {
            voters: vec![1, 2, 3],
            learners: vec![4],
            ..Membership::default()
        },
    }
}

fn report() -> Report {
    let (tenant, key) = (TenantId(1), KeyId(1));
    let some = Amounts {
        money: NanoUsd(1_000),
        requests: 2,
        tokens: Tokens(300),
        slots: 1,
    };
    let progress = Progress {
        request: RequestId::parse("req_fuzz").expect("a request's id"),
        caller_id: RequestId::parse("mine"),
        tenant,
        key,
        model: "m".into(),
        began_at_ms: 1_700_000_000_000,
        idempotency: Some([9; 32]),
        counts: Counts::new(10, 4, 5),
        work: vec![Work {
            provider: Some("hosts".into()),
            units: 30,
        }],
    };
    let subject = Subject::Tenant(tenant);
    Report {
        asks: vec![Ask {
            subject,
            least: some,
            most: some,
        }],
        returns: vec![Return {
            subject,
            unneeded: some,
        }],
        finals: vec![Final {
            progress: progress.clone(),
            ended: Ended::Finished,
        }],
        progress: vec![progress],
        ..Report::new(GatewayLife(1))
    }
}

fn proposals() -> Vec<Proposal> {
    let commands = [
        Command::Bootstrap {
            name: "fuzz".into(),
            cluster: ClusterId([1; 16]),
            authority_pem: String::new(),
            admin_key_hash: [2; 32],
        },
        Command::CreateKey {
            tenant: "acme".into(),
            key_hash: [3; 32],
            settings: KeySettings::default(),
        },
        Command::Report { report: report() },
        Command::RecordAct {
            what: "fuzz".into(),
            detail: "a detail".into(),
        },
    ];
    let proposal = |(n, command)| Proposal {
        id: ProposalId([n; 16]),
        base: 0,
        at_ms: 1_700_000_000_000,
        origin: Some(Origin {
            who: "admin".into(),
            from: "127.0.0.1:9".into(),
        }),
        command,
    };
    (1u8..).zip(commands).map(proposal).collect()
}

fn state() -> State {
    let mut state = State::with_ledger_rows(50, "m");
    for proposal in proposals() {
        apply(&mut state, &proposal);
    }
    assert!(state.balance(&Account::Platform).0 >= 0);
    state
}

fn messages() -> Vec<Vec<u8>> {
    let kinds = [
        MessageKind::Append,
        MessageKind::RequestPreVote,
        MessageKind::Heartbeat,
        MessageKind::ReadIndex,
        MessageKind::Snapshot,
    ];
    let message = |kind| PeerMessage {
        kind,
        from: 1,
        to: 2,
        term: 5,
        log_term: 4,
        index: 7,
        entries: vec![LogEntry {
            index: 8,
            term: 5,
            kind: EntryKind::Commands,
            data: vec![7; 40],
        }],
        commit: 7,
        commit_term: 4,
        request_snapshot: 0,
        reject: false,
        reject_hint: 0,
        context: vec![1; 16],
        snapshot: (kind == MessageKind::Snapshot).then(meta),
    };
    let encoded = |kind| codec::encode_message(&message(kind)).expect("it encodes");
    kinds.into_iter().map(encoded).collect()
}

fn records() -> Vec<Vec<u8>> {
    let place = record::Place {
        log: record::LogId([1; 16]),
        segment: 1,
    };
    let mark = record::Mark {
        ballot: Some(Ballot {
            term: 5,
            vote: 1,
            commit: 7,
        }),
        resets: true,
        snapshot: Some(SnapshotRef {
            meta: meta(),
            file: "snapshot".into(),
        }),
    };
    let entry = LogEntry {
        index: 8,
        term: 5,
        kind: EntryKind::Commands,
        data: vec![7; 40],
    };
    let whole = |entries: &[LogEntry]| {
        record::encode(&place, 1, &mark, entries).expect("it encodes")
            [record::RECORD_HEADER_BYTES..]
            .to_vec()
    };
    vec![
        whole(&[]),
        whole(std::slice::from_ref(&entry)),
        whole(&[entry.clone(), entry]),
    ]
}

fn snapshot() -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new(), &meta()).expect("a header");
    state_codec::write_state(&state(), &mut encoder).expect("a body");
    encoder.finish().expect("an end")
}

fn targets() -> Vec<Target> {
    let proposals: Vec<Vec<u8>> = proposals()
        .iter()
        .map(|p| state_codec::encode(p).expect("it encodes"))
        .collect();
    let token = format!("{}.j7.{}", "ab".repeat(32), "cd".repeat(32)).into_bytes();
    let mut targets = vec![
        Target {
            name: "Raft messages",
            examples: messages(),
            decode: |bytes| drop(codec::decode_message(bytes)),
        },
        Target {
            name: "log entries",
            examples: proposals.clone(),
            decode: |bytes| {
                let _ = codec::decode_proposals(bytes);
                let _ = codec::decode_changes(bytes);
            },
        },
        Target {
            name: "commands",
            examples: proposals,
            decode: |bytes| drop(state_codec::decode(bytes)),
        },
        Target {
            name: "log records",
            examples: records(),
            decode: |bytes| {
                let _ = record::decode(bytes);
                let _ = record::decode_segment_header(bytes);
            },
        },
        Target {
            name: "states",
            examples: vec![
                state_codec::encode_state(&state()).expect("it encodes"),
                // As earlier releases wrote them.
                include_bytes!("../../coordinator/src/state/fixtures/state-v1.bin").to_vec(),
                include_bytes!("../../coordinator/src/state/fixtures/state-v2.bin").to_vec(),
            ],
            decode: |bytes| drop(state_codec::decode_state(bytes)),
        },
        Target {
            name: "snapshots",
            examples: vec![snapshot()],
            decode: |bytes| {
                if let Ok(mut reader) = Reader::new(bytes) {
                    let mut body = [0; 4096];
                    while matches!(reader.read(&mut body), Ok(n) if n > 0) {}
                }
            },
        },
        Target {
            name: "join tokens",
            examples: vec![token],
            decode: |bytes| drop(String::from_utf8_lossy(bytes).parse::<JoinToken>()),
        },
    ];
    targets.extend(network::targets());
    targets.extend(files::targets());
    targets
}

fn mutated(example: &[u8], other: &[u8], chance: &mut Chance) -> Vec<u8> {
    let mut bytes = example.to_vec();
    for _ in 0..=chance.below(4) {
        let at = chance.below(bytes.len());
        match chance.below(7) {
            0 => bytes.truncate(at),
            1 if !bytes.is_empty() => bytes[at] ^= 1 << chance.below(8),
            2 if !bytes.is_empty() => bytes[at] = chance.next() as u8,
            3 => {
                // A length, a count or a tag, as little-endian numbers are written here.
                let odd = [
                    0,
                    1,
                    0xFF,
                    u64::MAX,
                    u64::MAX / 2,
                    1 << 32,
                    1 << 20,
                    1 << 40,
                ];
                let value = odd[chance.below(odd.len())].to_le_bytes();
                for (byte, new) in bytes[at..].iter_mut().zip(value) {
                    *byte = new;
                }
            }
            4 => {
                let from = chance.below(other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            5 => {
                let piece = bytes[at..].to_vec();
                bytes.extend_from_slice(&piece);
            }
            _ => bytes.insert(at, chance.next() as u8),
        }
    }
    bytes
}

fn number(name: &str, otherwise: u64) -> u64 {
    let set = std::env::var(name).ok();
    set.map_or(otherwise, |text| text.parse().expect("a number"))
}

/// One test, so that the peak of allocations is its own.
#[test]
fn no_decoder_panics_or_allocates_beyond_its_bound() {
    let rounds = number("TRIREME_FUZZ_ROUNDS", 20_000);
    let seed = number("TRIREME_FUZZ_SEED", 1);
    for target in targets() {
        let mut chance = Chance(seed);
        let mut most = 0;
        for round in 0..rounds {
            let example = &target.examples[chance.below(target.examples.len())];
            let other = &target.examples[chance.below(target.examples.len())];
            let bytes = mutated(example, other, &mut chance);
            MEMORY.reset_peak_usage();
            let before = MEMORY.current_usage();
            let decoded = std::panic::catch_unwind(|| (target.decode)(&bytes));
            let used = MEMORY.peak_usage().saturating_sub(before);
            let place = format!("{}, seed {seed}, round {round}", target.name);
            assert!(decoded.is_ok(), "{place}: it panicked");
            let bound = SLACK_BYTES + MULTIPLE * bytes.len();
            assert!(
                used <= bound,
                "{place}: {used} bytes allocated for {}",
                bytes.len()
            );
            most = most.max(used);
        }
        println!(
            "{}: {rounds} rounds, at most {most} bytes allocated",
            target.name
        );
    }
}
