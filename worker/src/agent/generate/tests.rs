//! A gateway and a worker's streams over real QUIC, with a test in the engine's place.

use super::*;
use std::net::{Ipv4Addr, SocketAddr};
use tokio_util::sync::CancellationToken;
use trireme_shared::identity::{ClusterAuthority, NodeId, NodeIdentity};
use trireme_shared::ids::{
    CoordinatorId, DeploymentId, Epoch, Replica, RequestId, TenantId, WorkerId,
};
use trireme_shared::transport::{Endpoint, Protocol};
use trireme_shared::wire::generate::{FinishReason, Priority, Sampling};

const WORKER: NodeId = NodeId::Worker(WorkerId(1));

/// A gateway's connection to a worker, both ends.
struct Pair {
    gateway: Connection,
    worker: Connection,
    /// Kept open for the test's time.
    _endpoints: [Endpoint; 2],
}

async fn pair() -> Pair {
    let authority = ClusterAuthority::new("test").unwrap();
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let coordinator = NodeId::Coordinator(CoordinatorId(1));
    let identity = NodeIdentity::issue(&authority, coordinator).unwrap();
    let gateway = Endpoint::bind(loopback, &identity, &[]).unwrap();
    let identity = NodeIdentity::issue(&authority, WORKER).unwrap();
    let worker = Endpoint::bind(loopback, &identity, &[Protocol::Generate]).unwrap();
    let address = worker.local_addr().to_string();
    let (dialled, accepted) = tokio::join!(
        gateway.connect(&address, WORKER, Protocol::Generate),
        worker.accept()
    );
    Pair {
        gateway: dialled.unwrap(),
        worker: accepted.unwrap(),
        _endpoints: [gateway, worker],
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
        epoch: Epoch(1),
        prompt: vec![1],
        emitted: Vec::new(),
        max_tokens: 8,
        sampling: Sampling::default(),
        stop_tokens: Vec::new(),
        logprobs: None,
        prompt_logprobs: None,
    }
}

fn token(index: u32) -> GenerateEvent {
    GenerateEvent::Token {
        index,
        token: index + 10,
        logprobs: None,
    }
}

async fn ask(gateway: &Connection) -> (quinn::SendStream, quinn::RecvStream) {
    let (mut send, recv) = gateway.quic().open_bi().await.unwrap();
    write_frame(&mut send, &request(), GENERATE_FRAME_BYTES_MAX)
        .await
        .unwrap();
    (send, recv)
}

async fn next(recv: &mut quinn::RecvStream) -> Option<GenerateEvent> {
    read_frame(recv, GENERATE_FRAME_BYTES_MAX).await.unwrap()
}

/// The worker's end of a stream on which the gateway has asked, pumping from the returned sender.
async fn pumping(pair: &Pair) -> (mpsc::Sender<GenerateEvent>, tokio::task::JoinHandle<End>) {
    let (mut send, mut recv) = pair.worker.quic().accept_bi().await.unwrap();
    let asked = read_frame::<GenerateRequest>(&mut recv, GENERATE_FRAME_BYTES_MAX).await;
    assert_eq!(asked.unwrap(), Some(request()));
    let (engine, events) = mpsc::channel(8);
    let pump = tokio::spawn(async move { pump(events, &mut send, &mut recv).await });
    (engine, pump)
}

#[tokio::test]
async fn events_arrive_in_order_and_the_stream_ends_after_the_last() {
    let pair = pair().await;
    let (mut send, mut recv) = ask(&pair.gateway).await;
    let (engine, pump) = pumping(&pair).await;
    // A gateway that has no more to say still listens.
    send.finish().unwrap();
    engine.send(token(0)).await.unwrap();
    assert_eq!(next(&mut recv).await, Some(token(0)));
    for index in 1..100 {
        engine.send(token(index)).await.unwrap();
    }
    let last = GenerateEvent::Finished {
        reason: FinishReason::Length,
    };
    engine.send(last.clone()).await.unwrap();
    for index in 1..100 {
        assert_eq!(next(&mut recv).await, Some(token(index)));
    }
    assert_eq!(next(&mut recv).await, Some(last));
    assert_eq!(next(&mut recv).await, None);
    assert_eq!(pump.await.unwrap(), End::Complete);
}

#[tokio::test]
async fn a_gateway_that_goes_away_cancels_the_sequence() {
    let pair = pair().await;
    // By resetting its side, by dropping the stream, and by closing the connection.
    for way in 0..3 {
        let (mut send, mut recv) = ask(&pair.gateway).await;
        let (engine, pump) = pumping(&pair).await;
        engine.send(token(0)).await.unwrap();
        assert_eq!(next(&mut recv).await, Some(token(0)));
        match way {
            0 => send.reset(0u32.into()).unwrap(),
            1 => drop(recv),
            _ => pair.gateway.quic().close(0u32.into(), b""),
        }
        engine.closed().await;
        assert_eq!(pump.await.unwrap(), End::Cancelled);
    }
}

#[tokio::test]
async fn an_engine_that_ends_without_a_word_is_reported_as_lost() {
    let pair = pair().await;
    let (_send, mut recv) = ask(&pair.gateway).await;
    let (engine, _pump) = pumping(&pair).await;
    engine.send(token(0)).await.unwrap();
    drop(engine);
    assert_eq!(next(&mut recv).await, Some(token(0)));
    let last = next(&mut recv).await.unwrap();
    assert!(matches!(
        last,
        GenerateEvent::Failed {
            kind: FailureKind::ReplicaLost,
            ..
        }
    ));
    assert_eq!(next(&mut recv).await, None);
}

#[tokio::test]
async fn without_a_rank_and_during_a_drain_requests_are_sent_elsewhere() {
    let pair = pair().await;
    let admission = Admission::default();
    let server = serve(
        pair.worker.clone(),
        CurrentRank::default(),
        admission.clone(),
    );
    tokio::spawn(server);
    for closed in [false, true] {
        if closed {
            admission.close();
        }
        let (_send, mut recv) = ask(&pair.gateway).await;
        match next(&mut recv).await {
            Some(GenerateEvent::Failed { kind, reason }) => {
                assert_eq!(kind, FailureKind::WrongEpoch);
                assert_eq!(reason.contains("leaving"), closed, "{reason}");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(next(&mut recv).await, None);
    }
    // What is not a request gets an answer too.
    let (mut send, mut recv) = pair.gateway.quic().open_bi().await.unwrap();
    send.write_all(&[3, 0, 0, 0, 1, 2, 3]).await.unwrap();
    match next(&mut recv).await {
        Some(GenerateEvent::Failed { kind, .. }) => assert_eq!(kind, FailureKind::Invalid),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_drain_waits_for_the_streams_it_let_in() {
    let admission = Admission::default();
    let place = admission.enter().unwrap();
    admission.close();
    assert!(admission.enter().is_none());
    let ended = CancellationToken::new();
    let waiting = {
        let (admission, ended) = (admission.clone(), ended.clone());
        tokio::spawn(async move {
            admission.empty().await;
            assert!(ended.is_cancelled(), "the drain ended before the stream");
        })
    };
    tokio::task::yield_now().await;
    ended.cancel();
    drop(place);
    waiting.await.unwrap();
}
