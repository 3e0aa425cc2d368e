//! What peers send: nodes that have a certificate, and for joins anybody.

use crate::{Target, messages, proposals};
use trireme_coordinator::raft::member::{Follower, MemberStatus, Office};
use trireme_coordinator::raft::{Answer, Opening, Question, codec as raft_codec};
use trireme_coordinator::state::codec::encode as encode_proposal;
use trireme_coordinator::state::{Outcome, Refusal};
use trireme_shared::identity::{
    CertificateMark, ClusterAuthority, KeyRequest, NodeId, NodeIdentity, check_csr,
};
use trireme_shared::ids::{
    CoordinatorId, DeploymentId, Epoch, Rank, Replica, RequestId, Stage, TenantId, TokenRecordId,
    WorkerId,
};
use trireme_shared::limits::PAGE_TOKENS;
use trireme_shared::model::{Precision, RankShare, Span};
use trireme_shared::plan::{Assignment, LinkPolicy, ModelRef, RankPlacement, ReplicaPlan};
use trireme_shared::transport::join::{JoinAnswer, JoinRequest};
use trireme_shared::wire::codec::{decode, encode};
use trireme_shared::wire::control::{
    CoordinatorAddress, Inventory, RankReport, RankState, ToCoordinator, ToWorker,
};
use trireme_shared::wire::generate::{
    FailureKind, GenerateEvent, GenerateRequest, Priority, Sampling, TokenLogprobs,
};
use trireme_worker::engine::plan::{
    AddedSequence, Drawn, EntryResult, PlanEntry, Sampled, Score, SequenceKey, SequenceTable,
    StepPlan, StepResults,
};
use trireme_worker::parallel::frame::{FramedLink, Kind};
use trireme_worker::parallel::incoming::{HELLO_BYTES, Hello};
use trireme_worker::parallel::topology::{Channel, LinkSpec};
use trireme_worker::parallel::{Link, LinkError};

pub fn targets() -> Vec<Target> {
    let mut all = vec![wire(), joins(), group(), greetings()];
    all.extend(links());
    all.extend(certificates());
    all
}

fn addresses() -> Vec<CoordinatorAddress> {
    let address = |id| CoordinatorAddress {
        id: CoordinatorId(id),
        control: format!("127.0.0.1:{id}"),
    };
    (1..=3).map(address).collect()
}

fn assignment() -> Assignment {
    let span = Span::new(0, 3);
    let rank = |worker| RankPlacement {
        share: RankShare {
            stage: Stage(0),
            rank: Rank(0),
            stages: 1,
            ranks: 1,
            layers: span,
            kv_heads: span,
            ffn: span,
            vocab: span,
        },
        worker: WorkerId(worker),
        address: "127.0.0.1:1".into(),
        host: "host".into(),
        weight_bytes: 1,
    };
    Assignment {
        plan: ReplicaPlan {
            deployment: DeploymentId(1),
            replica: Replica(0),
            epoch: Epoch(1),
            model: ModelRef {
                name: "m".into(),
                source: "m.gguf".into(),
                sha256: None,
            },
            tensor_parallel: 2,
            pipeline_parallel: 1,
            link: LinkPolicy::Auto,
            precision: Precision::default(),
            ranks: vec![rank(1), rank(2)],
            kv_pages: 8,
            context: 128,
            nonce: [7; 16],
        },
        index: 0,
    }
}

fn inventory() -> Inventory {
    Inventory {
        host: "h".into(),
        hostname: "h".into(),
        pid: 1,
        threads: 2,
        memory_bytes: 1 << 30,
        isa: "avx2".into(),
        data_port: 1,
        advertise: Some("127.0.0.1:1".into()),
        version: "0".into(),
    }
}

fn logprobs() -> TokenLogprobs {
    TokenLogprobs {
        token: 1,
        logprob: -0.5,
        top: vec![(1, -0.5), (2, -1.5)],
    }
}

fn wire() -> Target {
    let report = RankReport {
        deployment: DeploymentId(1),
        replica: Replica(0),
        epoch: Epoch(1),
        state: RankState::Failed {
            reason: "why".into(),
        },
        stats: Some(Default::default()),
    };
    let from_workers = [
        ToCoordinator::Hello {
            inventory: inventory(),
        },
        ToCoordinator::Heartbeat {
            ranks: vec![report],
        },
        ToCoordinator::Renew { csr: vec![1; 300] },
        ToCoordinator::Trusting {
            fingerprints: vec![[1; 32]; 2],
        },
        ToCoordinator::Goodbye,
    ];
    let to_workers = [
        ToWorker::Welcome {
            worker: WorkerId(1),
            term: 1,
            coordinators: addresses(),
            authorities: vec![vec![1; 300]],
            removed: vec![WorkerId(2)],
        },
        ToWorker::Assign {
            term: 1,
            assignment: Box::new(assignment()),
        },
        ToWorker::Removed {
            workers: vec![WorkerId(2); 3],
        },
    ];
    let request = GenerateRequest {
        request: RequestId::random(),
        tenant: TenantId(1),
        weight: 1,
        priority: Priority::default(),
        deployment: DeploymentId(1),
        replica: Replica(0),
        epoch: Epoch(1),
        prompt: vec![1; 40],
        emitted: vec![2; 4],
        max_tokens: 8,
        sampling: Sampling {
            logit_bias: vec![(1, 1.0)],
            ..Sampling::default()
        },
        stop_tokens: vec![3],
        logprobs: Some(2),
        prompt_logprobs: None,
    };
    let events = [
        GenerateEvent::PromptLogprobs {
            first: 1,
            entries: vec![logprobs(); 3],
        },
        GenerateEvent::Token {
            index: 1,
            token: 2,
            logprobs: Some(logprobs()),
        },
        GenerateEvent::Failed {
            kind: FailureKind::Overloaded,
            reason: "why".into(),
        },
    ];
    let mut examples: Vec<Vec<u8>> = from_workers
        .iter()
        .map(|m| encode(m).expect("it encodes"))
        .collect();
    examples.extend(to_workers.iter().map(|m| encode(m).expect("it encodes")));
    examples.push(encode(&request).expect("it encodes"));
    examples.extend(events.iter().map(|m| encode(m).expect("it encodes")));
    Target {
        name: "wire frames",
        examples,
        decode: |bytes| {
            let _ = decode::<ToCoordinator>(bytes);
            let _ = decode::<ToWorker>(bytes);
            let _ = decode::<GenerateRequest>(bytes);
            let _ = decode::<GenerateEvent>(bytes);
        },
    }
}

fn joins() -> Target {
    // As `JoinRequest` is laid out.
    let request = (TokenRecordId(1), [7u8; 32], vec![1u8; 300]);
    let granted = JoinAnswer::Granted {
        certificate: vec![1; 400],
        authorities: vec![vec![2; 300]; 2],
        coordinators: addresses(),
    };
    let refused = JoinAnswer::Refused {
        reason: "why".into(),
    };
    let request = encode(&request).expect("it encodes");
    assert!(decode::<JoinRequest>(&request).is_ok(), "the layout moved");
    Target {
        name: "join frames",
        examples: vec![
            request,
            encode(&granted).expect("it encodes"),
            encode(&refused).expect("it encodes"),
        ],
        decode: |bytes| {
            let _ = decode::<JoinRequest>(bytes);
            let _ = decode::<JoinAnswer>(bytes);
        },
    }
}

/// Between coordinators, beside Raft's own messages.
fn group() -> Target {
    let status = MemberStatus {
        id: 1,
        office: Office {
            term: 2,
            leader: 1,
            leads: true,
        },
        first: 1,
        last: 9,
        commit: 9,
        applied: 9,
        snapshot: 1,
        members: crate::meta().members,
        followers: vec![Follower {
            id: 2,
            matched: 9,
            active: true,
            receives_snapshot: false,
        }],
    };
    let refused = Outcome::Refused(Refusal::UnknownWorker(WorkerId(1)));
    let message = messages().pop().expect("a snapshot's");
    let message = raft_codec::decode_message(&message).expect("it decodes");
    let proposal = encode_proposal(&proposals()[0]).expect("it encodes");
    let questions = [Question::Propose(proposal), Question::Status];
    let answers = [
        Answer::Applied {
            outcome: refused,
            index: 3,
        },
        Answer::NotLeader {
            leader: Some(CoordinatorId(2)),
        },
        Answer::Status(status),
    ];
    let openings = [
        Opening::Messages {
            control: "127.0.0.1:1".into(),
        },
        Opening::Snapshot {
            message: Box::new(message),
        },
    ];
    let mut examples: Vec<Vec<u8>> = questions
        .iter()
        .map(|m| encode(m).expect("it encodes"))
        .collect();
    examples.extend(answers.iter().map(|m| encode(m).expect("it encodes")));
    examples.extend(openings.iter().map(|m| encode(m).expect("it encodes")));
    Target {
        name: "group frames",
        examples,
        decode: |bytes| {
            let _ = decode::<Question>(bytes);
            let _ = decode::<Answer>(bytes);
            let _ = decode::<Opening>(bytes);
        },
    }
}

const KV_PAGES: u32 = 8;
const VOCAB: u32 = 100;
const EPOCH: Epoch = Epoch(3);

fn step_plan() -> StepPlan {
    let key = SequenceKey(5);
    StepPlan {
        step: 0,
        removed: Vec::new(),
        added: vec![AddedSequence {
            key,
            sampling: Sampling {
                logit_bias: vec![(1, 1.0)],
                ..Sampling::default()
            },
            logprobs: Some(2),
            prompt_logprobs: Some(1),
            generated: vec![(1, 2)],
            held: vec![3],
        }],
        entries: vec![PlanEntry {
            key,
            context: PAGE_TOKENS as u32,
            tokens: vec![1, 2, 3],
            new_pages: vec![4],
            score: Some(Score {
                first_row: 0,
                targets: vec![2, 3],
            }),
            sample: Some(0),
            drafts: 0,
        }],
    }
}

fn step_results() -> StepResults {
    StepResults {
        step: 0,
        results: vec![EntryResult {
            key: SequenceKey(5),
            prompt: vec![logprobs(); 2],
            sampled: Sampled::Tokens(vec![Drawn {
                token: 1,
                logprobs: Some(logprobs()),
            }]),
        }],
    }
}

/// A peer that has said these bytes and then closed.
struct Said(std::collections::VecDeque<u8>);

impl Said {
    fn framed(bytes: &[u8]) -> FramedLink {
        FramedLink::new(Box::new(Self(bytes.iter().copied().collect())), EPOCH)
    }
}

impl Link for Said {
    fn write_all(&mut self, bytes: &[u8]) -> Result<(), LinkError> {
        self.0.extend(bytes);
        Ok(())
    }
    fn read_exact(&mut self, bytes: &mut [u8]) -> Result<(), LinkError> {
        for byte in bytes {
            *byte = self.0.pop_front().ok_or(LinkError::Closed { peer: 1 })?;
        }
        Ok(())
    }
    fn read_exact_idle(&mut self, bytes: &mut [u8]) -> Result<(), LinkError> {
        self.read_exact(bytes)
    }
    fn peer(&self) -> usize {
        1
    }
    fn window_bytes(&self) -> usize {
        1 << 16
    }
}

/// A link whose other end is looked at byte by byte.
#[derive(Clone, Default)]
struct Written(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl Link for Written {
    fn write_all(&mut self, bytes: &[u8]) -> Result<(), LinkError> {
        self.0.lock().expect("one thread").extend(bytes);
        Ok(())
    }
    fn read_exact(&mut self, _: &mut [u8]) -> Result<(), LinkError> {
        Err(LinkError::Closed { peer: 1 })
    }
    fn read_exact_idle(&mut self, bytes: &mut [u8]) -> Result<(), LinkError> {
        self.read_exact(bytes)
    }
    fn peer(&self) -> usize {
        1
    }
    fn window_bytes(&self) -> usize {
        1 << 16
    }
}

fn frames(payload: &[u8], kind: Kind) -> Vec<u8> {
    let written = Written::default();
    let mut link = FramedLink::new(Box::new(written.clone()), EPOCH);
    for tag in 0..2 {
        link.send(kind, tag, payload).expect("it is written");
    }
    let bytes = written.0.lock().expect("one thread").clone();
    let mut said = Said::framed(&bytes);
    assert_eq!(said.receive(kind).expect("a frame"), payload);
    bytes
}

fn links() -> Vec<Target> {
    let plan = step_plan().encode().expect("it encodes");
    let results = step_results().encode().expect("it encodes");
    vec![
        Target {
            name: "step plans",
            examples: vec![plan.clone()],
            decode: |bytes| {
                // What decodes is applied: what indexes memory later is checked there.
                if let Ok(plan) = StepPlan::decode(bytes) {
                    let mut table = SequenceTable::new(KV_PAGES, VOCAB);
                    let _ = table.apply(&plan);
                }
            },
        },
        Target {
            name: "step results",
            examples: vec![results.clone()],
            decode: |bytes| drop(StepResults::decode(bytes)),
        },
        Target {
            name: "link frames",
            examples: vec![frames(&plan, Kind::Plan), frames(&results, Kind::Plan)],
            decode: |bytes| {
                let mut link = Said::framed(bytes);
                while link.receive(Kind::Plan).is_ok() {}
                let mut known = [0; 64];
                let _ = Said::framed(bytes).receive_into(Kind::Plan, 0, &mut known);
            },
        },
    ]
}

fn greetings() -> Target {
    let hello = |channel| Hello {
        nonce: [7; 16],
        epoch: EPOCH,
        link: LinkSpec {
            lower: 0,
            higher: 1,
            channel,
        },
    };
    Target {
        name: "link greetings",
        examples: vec![
            hello(Channel::Plan).encode().to_vec(),
            hello(Channel::Stage).encode().to_vec(),
        ],
        decode: |bytes| {
            if let Some(raw) = bytes.first_chunk::<HELLO_BYTES>() {
                let _ = Hello::decode(raw);
            }
        },
    }
}

fn certificates() -> Vec<Target> {
    let authority = ClusterAuthority::new("fuzz").expect("an authority");
    let request = KeyRequest::generate().expect("a key");
    let node = NodeId::Worker(WorkerId(3));
    let lifetime = std::time::Duration::from_secs(60);
    let signed = authority.sign_csr(request.csr(), node, lifetime);
    let signed = signed.expect("a certificate").to_vec();
    assert!(NodeIdentity::issue(&authority, node).is_ok());
    vec![
        Target {
            name: "certificate requests",
            examples: vec![request.csr().to_vec()],
            decode: |bytes| drop(check_csr(bytes)),
        },
        Target {
            name: "certificates",
            examples: vec![signed, authority.certificate().to_vec()],
            decode: |bytes| {
                let certificate = bytes.to_vec().into();
                let _ = CertificateMark::of(&certificate);
                let _ = NodeId::of_certificate(&certificate);
            },
        },
    ]
}
