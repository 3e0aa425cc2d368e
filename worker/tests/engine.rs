//! Ranks as the agent starts them: the model from a source, real certificates, real QUIC between
//! "hosts" and shared memory within one. Each "worker" is an endpoint with its accept loop.

mod workers;

use std::path::PathBuf;
use std::time::Duration;
use trireme_shared::ids::{DeploymentId, Epoch, Replica, RequestId, TenantId};
use trireme_shared::model::random::RandomModel;
use trireme_shared::model::{DType, Manifest, Precision, Quantize};
use trireme_shared::plan::{Assignment, LinkPolicy, ModelRef, RankPlacement, ReplicaPlan};
use trireme_shared::wire::control::RankState;
use trireme_shared::wire::generate::{
    GenerateEvent, GenerateRequest, Priority, Sampling, TokenLogprobs,
};
use trireme_worker::backend::Isa;
use trireme_worker::engine::{RankHandle, RankSpec};
use workers::{Worker, worker_id, workers};

/// Only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(120);

/// A model file of its own for each test; gone with it.
struct ModelFile(PathBuf);

impl ModelFile {
    fn write(name: &str) -> Self {
        Self::of(name, &RandomModel::tiny(21))
    }

    fn of(name: &str, model: &RandomModel) -> Self {
        let file = format!("trireme-{name}-{}.gguf", std::process::id());
        let path = std::env::temp_dir().join(file);
        model.write_gguf(&path).unwrap();
        Self(path)
    }
}

impl Drop for ModelFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn plan(file: &ModelFile, workers: &[Worker], (tp, pp): (u16, u16), hosts: &[&str]) -> ReplicaPlan {
    let manifest = Manifest::open(&file.0).unwrap();
    let weights = vec![vec![1; usize::from(tp)]; usize::from(pp)];
    let shares = manifest.shares(&weights).unwrap();
    let place = |(index, (share, worker)): (usize, (_, &Worker))| RankPlacement {
        weight_bytes: manifest.share_bytes(&share),
        share,
        worker: worker_id(index),
        address: worker.endpoint.local_addr().to_string(),
        host: hosts[index].to_owned(),
    };
    let mut nonce = [0; 16];
    nonce[..4].copy_from_slice(&std::process::id().to_le_bytes());
    nonce[4..6].copy_from_slice(&tp.to_le_bytes());
    nonce[6..8].copy_from_slice(&pp.to_le_bytes());
    nonce[8..16].copy_from_slice(&(file.0.as_os_str().len() as u64).to_le_bytes());
    ReplicaPlan {
        deployment: DeploymentId(1),
        replica: Replica(0),
        epoch: Epoch(4),
        model: ModelRef {
            name: "tiny".into(),
            source: file.0.display().to_string(),
            sha256: None,
        },
        tensor_parallel: tp,
        pipeline_parallel: pp,
        link: LinkPolicy::Auto,
        precision: Precision::default(),
        ranks: shares
            .into_iter()
            .zip(workers)
            .enumerate()
            .map(place)
            .collect(),
        kv_pages: 32,
        context: 512,
        nonce,
    }
}

fn start(plan: &ReplicaPlan, index: u16, worker: &Worker) -> RankHandle {
    RankHandle::start(RankSpec {
        assignment: Assignment {
            plan: plan.clone(),
            index,
        },
        threads: 1,
        host_threads: 0,
        isa: Isa::detect(),
        endpoint: worker.endpoint.clone(),
        incoming: worker.incoming.clone(),
        runtime: tokio::runtime::Handle::current(),
        cache_dir: None,
    })
}

/// The state that the rank settles in.
async fn settled(rank: &RankHandle) -> RankState {
    let mut state = rank.state();
    let settled = state.wait_for(|s| matches!(s, RankState::Ready | RankState::Failed { .. }));
    let settled = tokio::time::timeout(PATIENCE, settled).await;
    settled.expect("no hang").unwrap().clone()
}

fn request(prompt: &[u32]) -> GenerateRequest {
    GenerateRequest {
        request: RequestId::parse("test").unwrap(),
        tenant: TenantId(1),
        weight: 1,
        priority: Priority::default(),
        deployment: DeploymentId(1),
        replica: Replica(0),
        epoch: Epoch(4),
        prompt: prompt.to_vec(),
        emitted: vec![],
        max_tokens: 40,
        sampling: Sampling::default(),
        stop_tokens: vec![],
        logprobs: None,
        prompt_logprobs: None,
    }
}

/// The tokens, with their logprobs where the request asks for them.
async fn answer(
    driver: &RankHandle,
    request: GenerateRequest,
) -> Vec<(u32, Option<TokenLogprobs>)> {
    let mut stream = driver.submit(request).unwrap();
    let mut tokens = Vec::new();
    loop {
        let event = tokio::time::timeout(PATIENCE, stream.recv()).await;
        match event.expect("no hang").expect("a last event") {
            GenerateEvent::Token {
                token, logprobs, ..
            } => tokens.push((token, logprobs)),
            GenerateEvent::Started { .. } => {}
            GenerateEvent::Finished { .. } => return tokens,
            other => panic!("{other:?}"),
        }
    }
}

async fn greedy(driver: &RankHandle, prompt: &[u32]) -> Vec<u32> {
    let answer = answer(driver, request(prompt)).await;
    answer.into_iter().map(|(token, _)| token).collect()
}

/// Off the runtime, as the agent does it.
async fn stop(ranks: Vec<RankHandle>) {
    let stopping = tokio::task::spawn_blocking(|| ranks.into_iter().for_each(RankHandle::stop));
    stopping.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranks_on_one_and_on_two_hosts_serve_the_same_tokens() {
    let file = ModelFile::write("serve");
    let prompt: Vec<u32> = (0..30).map(|i| i * 8).collect();
    let mut texts = Vec::new();
    for (shape, hosts) in [
        ((1, 1), &["a"][..]),
        ((2, 1), &["a", "a"]),
        ((2, 2), &["a", "a", "b", "b"]),
        ((2, 1), &["a", "b"]),
    ] {
        let workers = workers(hosts.len());
        let mut plan = plan(&file, &workers, shape, hosts);
        plan.nonce[15] = texts.len() as u8;
        let ranks: Vec<_> = (0u16..)
            .zip(&workers)
            .map(|(index, worker)| start(&plan, index, worker))
            .collect();
        for rank in &ranks {
            assert_eq!(settled(rank).await, RankState::Ready);
        }
        texts.push(greedy(&ranks[0], &prompt).await);
        stop(ranks).await;
    }
    assert_eq!(texts[0].len(), 40);
    for text in &texts {
        assert_eq!(text, &texts[0]);
    }
}

/// What a plan says of precision is what its ranks do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranks_quantise_as_their_plan_says() {
    let written = RandomModel {
        dtype: DType::Q4_1,
        embedding_dtype: DType::Q8_0,
        ..RandomModel::tiny(21)
    };
    let (floats, written) = (
        ModelFile::write("floats"),
        ModelFile::of("written", &written),
    );
    let prompt: Vec<u32> = (0..30).map(|i| i * 8).collect();
    let mut answers = Vec::new();
    for (file, quantize) in [
        (&floats, None),
        (&written, None),
        (&floats, Some(Quantize::Q4)),
    ] {
        let workers = workers(1);
        let mut plan = plan(file, &workers, (1, 1), &["a"]);
        plan.precision.quantize = quantize;
        let ranks = vec![start(&plan, 0, &workers[0])];
        assert_eq!(settled(&ranks[0]).await, RankState::Ready);
        let request = GenerateRequest {
            logprobs: Some(2),
            ..request(&prompt)
        };
        answers.push(answer(&ranks[0], request).await);
        stop(ranks).await;
    }
    assert_eq!(answers[2], answers[1]);
    assert_ne!(answers[2], answers[0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rank_that_cannot_load_says_why_and_frees_its_peers() {
    let file = ModelFile::write("fail");
    let workers = workers(2);
    let plan = plan(&file, &workers, (2, 1), &["a", "a"]);
    let mut without = plan.clone();
    without.model.source = file.0.with_extension("missing.gguf").display().to_string();
    let ranks = vec![
        start(&without, 0, &workers[0]),
        start(&plan, 1, &workers[1]),
    ];
    let RankState::Failed { reason } = settled(&ranks[0]).await else {
        panic!("it has no model");
    };
    assert!(reason.contains("missing.gguf"), "{reason}");
    // The peer either never met it, or met it and saw its links close; it does not wait for long.
    let mut state = ranks[1].state();
    let failed = state.wait_for(|s| matches!(s, RankState::Failed { .. }));
    let failed = tokio::time::timeout(PATIENCE, failed).await;
    drop(failed.expect("no hang").unwrap());
    stop(ranks).await;
}
