//! Peers that die without a word, come back, or never answer.

use super::*;
use std::time::Duration;

/// A node in a process of its own, so to say: `kill` ends it without a packet.
struct Process {
    runtime: tokio::runtime::Runtime,
    endpoint: Endpoint,
}

impl Process {
    fn start(authority: &ClusterAuthority, listen: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let identity = NodeIdentity::issue(authority, COORDINATOR).unwrap();
        let endpoint = runtime.block_on(async {
            let endpoint = Endpoint::bind(listen, &identity, &[Protocol::Raft]).unwrap();
            echo(&endpoint);
            endpoint
        });
        Self { runtime, endpoint }
    }

    /// What would send the farewells is gone before the connections are.
    fn kill(self) -> SocketAddr {
        let address = self.endpoint.local_addr();
        drop(self.runtime);
        address
    }
}

/// Without the reset, which only a successor with the same secret can send, the connection would
/// end by `TimedOut`.
#[test]
fn a_successor_tells_peers_that_their_connection_is_forgotten() {
    let authority = cluster();
    let first = Process::start(&authority, loopback());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (member, connection) = runtime.block_on(async {
        let member = node(&authority, OTHER, &[]);
        let address = first.endpoint.local_addr().to_string();
        let connection = member.connect(&address, COORDINATOR, Protocol::Raft);
        let connection = connection.await.unwrap();
        assert_eq!(ask(&connection).await, Ok(42));
        (member, connection)
    });
    let address = first.kill();
    let second = Process::start(&authority, address);
    runtime.block_on(async {
        assert!(ask(&connection).await.is_err());
        let end = connection.quic().closed().await;
        assert_eq!(end, quinn::ConnectionError::Reset);
        let address = address.to_string();
        let deadline = limits::CONNECT_DEADLINE;
        let again = member.connect_within(&address, COORDINATOR, Protocol::Raft, deadline);
        assert_eq!(ask(&again.await.unwrap()).await, Ok(42));
    });
    second.kill();
}

/// The first packets of the dial go to nobody; one that is sent again finds the server.
#[test]
fn a_dial_finds_a_server_that_starts_after_it() {
    let authority = cluster();
    let address = Process::start(&authority, loopback()).kill();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let member = runtime.block_on(async { node(&authority, OTHER, &[]) });
    let dialling = runtime.spawn(async move {
        let deadline = limits::CONNECT_DEADLINE;
        let address = address.to_string();
        let dialled = member.connect_within(&address, COORDINATOR, Protocol::Raft, deadline);
        ask(&dialled.await.unwrap()).await
    });
    let server = Process::start(&authority, address);
    assert_eq!(runtime.block_on(dialling).unwrap(), Ok(42));
    server.kill();
}

#[tokio::test]
async fn a_silent_address_ends_by_its_deadline_and_holds_up_nobody() {
    let authority = cluster();
    let silent = UdpSocket::bind(loopback()).unwrap();
    let nobody = silent.local_addr().unwrap().to_string();
    let server = node(&authority, COORDINATOR, &[Protocol::Raft]);
    echo(&server);
    let address = server.local_addr().to_string();
    let member = node(&authority, OTHER, &[]);
    let deadline = Duration::from_secs(3_600);
    let waiting = member.connect_within(&nobody, COORDINATOR, Protocol::Raft, deadline);
    let beside = async {
        let dialled = member.connect(&address, COORDINATOR, Protocol::Raft);
        ask(&dialled.await.unwrap()).await
    };
    tokio::select! {
        // `waiting` is polled first: its dial is under way.
        biased;
        dialled = waiting => panic!("{dialled:?}"),
        answer = beside => assert_eq!(answer, Ok(42)),
    }
    let soon = Duration::from_millis(20);
    let refused = member.connect_within(&nobody, COORDINATOR, Protocol::Raft, soon);
    let refused = refused.await.unwrap_err().to_string();
    assert!(refused.ends_with("no answer within 0.02 s"), "{refused}");
}

/// A wire that loses all of the first handshake and nothing of a second one, which comes because the
/// first found no answer. The server sees one connection.
#[tokio::test]
async fn members_begin_again_where_nobody_answers() {
    let authority = cluster();
    let server = node(&authority, COORDINATOR, &[Protocol::Raft]);
    let seen = echo(&server);
    let near = tokio::net::UdpSocket::bind(loopback()).await.unwrap();
    let far = tokio::net::UdpSocket::bind(loopback()).await.unwrap();
    far.connect(server.local_addr()).await.unwrap();
    let address = near.local_addr().unwrap().to_string();
    let relay = tokio::spawn(async move {
        let (mut there, mut back) = ([0; 65_536], [0; 65_536]);
        let (mut client, mut first) = (None, None);
        loop {
            tokio::select! {
                Ok((len, from)) = near.recv_from(&mut there) => {
                    client = Some(from);
                    // An Initial's destination, which its sender draws (RFC 9000, 17.2).
                    let to = there[6..][..usize::from(there[5])].to_vec();
                    if *first.get_or_insert_with(|| to.clone()) != to {
                        far.send(&there[..len]).await.unwrap();
                    }
                }
                Ok(len) = far.recv(&mut back) => {
                    near.send_to(&back[..len], client.unwrap()).await.unwrap();
                }
            }
        }
    });
    let member = node(&authority, OTHER, &[]);
    let dialled = member.connect(&address, COORDINATOR, Protocol::Raft);
    assert_eq!(ask(&dialled.await.unwrap()).await, Ok(42));
    relay.abort();
    server.close().await;
    assert_eq!(seen.await.unwrap(), [(Protocol::Raft, Some(OTHER))]);
}
