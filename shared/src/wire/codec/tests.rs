//! Messages as scenarios: what is written is read, and what an enemy writes is refused cheaply.

use super::*;
use crate::ids::*;
use crate::wire::control::*;
use crate::wire::generate::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Remembers the largest single allocation of the current thread.
struct Watching;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system allocator unchanged; the note beside it allocates nothing.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A thread that is ending has no such local any more; its allocations are not watched.
        let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(layout.size())));
        // SAFETY: the caller's own promise about `layout`.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's own promise: `pointer` came from `alloc`, which is the system's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

fn largest_allocation(work: impl FnOnce()) -> usize {
    LARGEST.set(0);
    work();
    LARGEST.get()
}

/// xorshift64*: the same bytes on every run.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
}

fn round_trip<T: Message + PartialEq + std::fmt::Debug>(message: &T) {
    let bytes = encode(message).unwrap();
    assert_eq!(&decode::<T>(&bytes).unwrap(), message);
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(decode::<T>(&longer).is_err(), "a trailing byte was taken");
    for end in 0..bytes.len() {
        assert!(
            decode::<T>(&bytes[..end]).is_err(),
            "{end} bytes were enough"
        );
    }
}

fn inventory() -> Inventory {
    Inventory {
        host: "b-1".into(),
        hostname: "node".into(),
        pid: 7,
        threads: 2,
        memory_bytes: 1 << 33,
        isa: "avx2".into(),
        data_port: 4433,
        advertise: Some("10.0.0.7:4433".into()),
        version: "0.1.0".into(),
    }
}

fn request() -> GenerateRequest {
    GenerateRequest {
        request: RequestId::parse("req_1").unwrap(),
        tenant: TenantId(1),
        weight: 1,
        priority: Priority::default(),
        deployment: DeploymentId(1),
        replica: Replica(0),
        epoch: Epoch(9),
        prompt: vec![1, 2, 3],
        emitted: vec![4],
        max_tokens: 16,
        sampling: Sampling {
            logit_bias: vec![(5, -1.5)],
            ..Sampling::default()
        },
        stop_tokens: vec![2],
        logprobs: Some(2),
        prompt_logprobs: None,
    }
}

fn logprobs() -> TokenLogprobs {
    TokenLogprobs {
        token: 3,
        logprob: -0.25,
        top: vec![(3, -0.25), (4, -2.0)],
    }
}

#[test]
fn every_control_message_is_read_as_it_was_written() {
    let report = |state| RankReport {
        deployment: DeploymentId(1),
        replica: Replica(2),
        epoch: Epoch(3),
        state,
        stats: Some(EngineStats {
            running: 1,
            ..EngineStats::default()
        }),
    };
    let states = [
        RankState::Fetching {
            done_bytes: 1,
            total_bytes: 2,
        },
        RankState::Loading {
            done_bytes: 3,
            total_bytes: 4,
        },
        RankState::Connecting,
        RankState::Ready,
        RankState::Failed {
            reason: "no file".into(),
        },
    ];
    round_trip(&ToCoordinator::Hello {
        inventory: inventory(),
    });
    round_trip(&ToCoordinator::Heartbeat {
        ranks: states.into_iter().map(report).collect(),
    });
    round_trip(&ToCoordinator::Renew { csr: vec![1, 2] });
    round_trip(&ToCoordinator::Trusting {
        fingerprints: vec![[7; 32]],
    });
    round_trip(&ToCoordinator::Goodbye);
    let coordinators = vec![CoordinatorAddress {
        id: CoordinatorId(2),
        control: "10.0.0.2:7400".into(),
    }];
    round_trip(&ToWorker::Welcome {
        worker: WorkerId(3),
        term: 4,
        coordinators: coordinators.clone(),
        authorities: vec![vec![1], vec![2, 3]],
        removed: vec![WorkerId(1)],
    });
    round_trip(&ToWorker::Coordinators {
        term: 5,
        coordinators,
    });
    round_trip(&ToWorker::Certificate {
        certificate: vec![1],
        authorities: vec![vec![2]],
    });
    round_trip(&ToWorker::Trust {
        authorities: vec![vec![2]],
    });
    round_trip(&ToWorker::Removed {
        workers: vec![WorkerId(9)],
    });
    let assignment = Box::new(crate::plan::Assignment {
        plan: crate::plan::ReplicaPlan {
            deployment: DeploymentId(1),
            replica: Replica(0),
            epoch: Epoch(4),
            model: crate::plan::ModelRef {
                name: "m".into(),
                source: "m.gguf".into(),
                sha256: None,
            },
            tensor_parallel: 1,
            pipeline_parallel: 1,
            link: crate::plan::LinkPolicy::Quic,
            precision: crate::model::Precision::default(),
            ranks: Vec::new(),
            kv_pages: 64,
            context: 1_024,
            nonce: [9; 16],
        },
        index: 0,
    });
    round_trip(&ToWorker::Assign {
        term: 2,
        assignment,
    });
    round_trip(&ToWorker::Release {
        term: 2,
        deployment: DeploymentId(1),
        replica: Replica(2),
        epoch: Epoch(3),
    });
    round_trip(&ToWorker::Drain { term: 2 });
}

#[test]
fn every_generate_message_is_read_as_it_was_written() {
    round_trip(&request());
    round_trip(&GenerateEvent::Started { cached_tokens: 16 });
    round_trip(&GenerateEvent::PromptLogprobs {
        first: 1,
        entries: vec![logprobs(), logprobs()],
    });
    round_trip(&GenerateEvent::Token {
        index: 0,
        token: 3,
        logprobs: Some(logprobs()),
    });
    for reason in [FinishReason::Stop, FinishReason::Length] {
        round_trip(&GenerateEvent::Finished { reason });
    }
    for kind in [
        FailureKind::Overloaded,
        FailureKind::WrongEpoch,
        FailureKind::Invalid,
        FailureKind::ReplicaLost,
    ] {
        round_trip(&GenerateEvent::Failed {
            kind,
            reason: "why".into(),
        });
    }
}

#[test]
fn the_longest_prompt_fits_its_frame() {
    let longest = GenerateRequest {
        prompt: (0..limits::PROMPT_TOKENS_MAX as u32).collect(),
        ..request()
    };
    let bytes = frame(&longest, limits::GENERATE_FRAME_BYTES_MAX).unwrap();
    assert_eq!(decode::<GenerateRequest>(&bytes[4..]).unwrap(), longest);
    assert!(matches!(
        frame(&longest, limits::CONTROL_FRAME_BYTES_MAX),
        Err(WireError::TooLarge { .. })
    ));
}

/// Random bytes, and good messages with bytes overwritten (a damaged length field is the dangerous
/// case), are refused or read, but neither panic nor make us allocate far beyond what arrived.
#[test]
fn hostile_bytes_neither_panic_nor_exhaust_memory() {
    let good = [
        encode(&ToCoordinator::Hello {
            inventory: inventory(),
        })
        .unwrap(),
        encode(&request()).unwrap(),
        encode(&GenerateEvent::PromptLogprobs {
            first: 1,
            entries: vec![logprobs(); 3],
        })
        .unwrap(),
    ];
    let mut noise = Noise(0x9E37_79B9_7F4A_7C15);
    for round in 0..20_000usize {
        let mut bytes = if round % 2 == 0 {
            let len = noise.next() as usize % 200;
            (0..len).map(|_| noise.next() as u8).collect()
        } else {
            good[round / 2 % good.len()].clone()
        };
        for _ in 0..noise.next() % 4 {
            if !bytes.is_empty() {
                let at = noise.next() as usize % bytes.len();
                bytes[at] = [0, 1, 0x7F, 0xFF, noise.next() as u8][noise.next() as usize % 5];
            }
        }
        let largest = largest_allocation(|| {
            let _ = decode::<ToCoordinator>(&bytes);
            let _ = decode::<ToWorker>(&bytes);
            let _ = decode::<GenerateRequest>(&bytes);
            let _ = decode::<GenerateEvent>(&bytes);
        });
        let allowed = EXPANSION * SMALL_MESSAGE;
        assert!(largest <= allowed, "{largest} bytes for {bytes:02x?}");
    }
}

#[test]
fn a_claimed_length_is_refused_before_it_is_allocated() {
    let mut bytes = encode(&request()).unwrap();
    let mut refused = 0;
    for at in 0..bytes.len() - 8 {
        let kept: [u8; 8] = bytes[at..at + 8].try_into().unwrap();
        bytes[at..at + 8].copy_from_slice(&(u64::MAX / 2).to_le_bytes());
        let largest = largest_allocation(|| {
            refused += usize::from(decode::<GenerateRequest>(&bytes).is_err());
        });
        assert!(largest <= EXPANSION * SMALL_MESSAGE);
        bytes[at..at + 8].copy_from_slice(&kept);
    }
    assert!(refused > 0);

    let mut partial = Partial::default();
    partial.bytes.extend_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(
        partial.wanted(limits::CONTROL_FRAME_BYTES_MAX),
        Err(WireError::TooLarge { .. })
    ));
}
