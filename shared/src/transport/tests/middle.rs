//! Somebody stands between a joiner and its coordinator. What they may learn is what any router
//! sees: that a join took place. Counted are the packets that can carry application data (QUIC's
//! short-header packets), what reaches a stream, and the secret's own bytes.

use super::*;
use crate::identity::JoinToken;
use crate::ids::TokenRecordId;
use crate::transport::join::{Admission, JoinError, join, serve_join};
use quinn::crypto::rustls::QuicServerConfig;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// A wire with somebody listening on it: passes datagrams on between one client and `server`.
struct Tap {
    address: String,
    stop: tokio::sync::oneshot::Sender<()>,
    task: tokio::task::JoinHandle<Vec<Vec<u8>>>,
}

impl Tap {
    async fn before(server: SocketAddr) -> Self {
        let near = tokio::net::UdpSocket::bind(loopback()).await.unwrap();
        let far = tokio::net::UdpSocket::bind(loopback()).await.unwrap();
        far.connect(server).await.unwrap();
        let address = near.local_addr().unwrap().to_string();
        let (stop, mut stopped) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(async move {
            let (mut there, mut back) = ([0; 65_536], [0; 65_536]);
            let (mut heard, mut client) = (Vec::new(), None);
            loop {
                tokio::select! {
                    biased;
                    Ok((len, from)) = near.recv_from(&mut there) => {
                        client = Some(from);
                        heard.push(there[..len].to_vec());
                        let _ = far.send(&there[..len]).await;
                    }
                    Ok(len) = far.recv(&mut back) => if let Some(client) = client {
                        let _ = near.send_to(&back[..len], client).await;
                    },
                    _ = &mut stopped => return heard,
                }
            }
        });
        Self {
            address,
            stop,
            task,
        }
    }

    /// All datagrams that the client sent.
    async fn heard(self) -> Vec<Vec<u8>> {
        let _ = self.stop.send(());
        self.task.await.unwrap()
    }
}

/// Datagrams of the client with a short-header packet (RFC 9000, 17.3). Packets before them in the same
/// datagram have long headers, which tell their length (17.2).
fn data_packets(datagrams: &[Vec<u8>]) -> usize {
    let has_data = |datagram: &&Vec<u8>| {
        let mut rest = &datagram[..];
        while let Some(&first) = rest.first() {
            if first & 0x80 == 0 {
                return true;
            }
            let Some(length) = long_packet(rest) else {
                return false;
            };
            rest = &rest[length..];
        }
        false
    };
    datagrams.iter().filter(has_data).count()
}

/// Bytes of the long-header packet that `datagram` begins with.
fn long_packet(datagram: &[u8]) -> Option<usize> {
    let number = |at: &mut usize| {
        let first = *datagram.get(*at)?;
        let bytes = 1usize << (first >> 6);
        let rest = datagram.get(*at + 1..*at + bytes)?;
        *at += bytes;
        let start = usize::from(first & 0x3F);
        Some(
            rest.iter()
                .fold(start, |sum, &byte| sum << 8 | usize::from(byte)),
        )
    };
    let mut at = 5;
    for _ in 0..2 {
        at += 1 + usize::from(*datagram.get(at)?);
    }
    let kind = datagram.first()? >> 4 & 3;
    if kind == 0 {
        at += number(&mut at)?;
    }
    let length = number(&mut at)?;
    Some((at + length).min(datagram.len()))
}

fn holds(datagrams: &[Vec<u8>], secret: &[u8]) -> bool {
    let mut all = datagrams.iter();
    all.any(|one| one.windows(secret.len()).any(|part| part == secret))
}

/// Serves joins with the truth; gives how many there were.
fn honest(authority: &Arc<ClusterAuthority>) -> (Endpoint, tokio::task::JoinHandle<usize>) {
    let endpoint = node(authority, COORDINATOR, &[Protocol::Join]);
    let (serving, authority) = (endpoint.clone(), authority.clone());
    let task = tokio::spawn(async move {
        let mut joined = 0;
        while let Some(connection) = serving.accept().await {
            let admit = async |_| {
                Ok(Admission {
                    node: WORKER,
                    authority: authority.clone(),
                    authorities: vec![authority.certificate().clone()],
                    coordinators: Vec::new(),
                })
            };
            joined += usize::from(serve_join(&connection, admit).await.is_ok());
        }
        joined
    });
    (endpoint, task)
}

/// A relay that ends TLS itself, with this chain and key, and reads what it passes on to `server`.
struct Middle {
    endpoint: quinn::Endpoint,
    /// Connections made, and what came on their streams.
    task: tokio::task::JoinHandle<(usize, Vec<u8>)>,
}

impl Middle {
    fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        server: SocketAddr,
    ) -> Self {
        let provider = rustls::crypto::ring::default_provider();
        let key = provider.key_provider.load_private_key(key).unwrap();
        // Unlike rustls' own, this does not ask whether key and certificate belong together.
        let resolver = SingleCertAndKey::from(CertifiedKey::new(chain, key));
        let mut config = rustls::ServerConfig::builder_with_provider(provider.into())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = vec![Protocol::Join.alpn().to_vec()];
        let tls: QuicServerConfig = config.try_into().unwrap();
        let config = quinn::ServerConfig::with_crypto(Arc::new(tls));
        let endpoint = quinn::Endpoint::server(config, loopback()).unwrap();
        let accepting = endpoint.clone();
        let task = tokio::spawn(async move {
            let (mut made, mut read) = (0, Vec::new());
            while let Some(incoming) = accepting.accept().await {
                let Ok(near) = incoming.await else { continue };
                made += 1;
                let Ok((mut reply, mut asked)) = near.accept_bi().await else {
                    continue;
                };
                let request = asked.read_to_end(limits::JOIN_FRAME_BYTES_MAX).await;
                read.extend(request.as_deref().unwrap_or_default());
                let far = careless(&server.to_string(), None, Protocol::Join).await;
                let (mut send, mut recv) = far.quic().open_bi().await.unwrap();
                send.write_all(&request.unwrap_or_default()).await.unwrap();
                let _ = send.finish();
                let answer = recv.read_to_end(limits::JOIN_FRAME_BYTES_MAX).await;
                reply.write_all(&answer.unwrap_or_default()).await.unwrap();
                let _ = reply.finish();
                let _ = reply.stopped().await;
            }
            (made, read)
        });
        Self { endpoint, task }
    }

    async fn end(self) -> (usize, Vec<u8>) {
        self.endpoint.close(0u32.into(), b"");
        self.task.await.unwrap()
    }
}

/// Shows that the counters count: whoever only passes packets on sees data packets and cannot read
/// them, and a joiner that believed anybody would tell the one in the middle everything.
#[tokio::test]
async fn a_relay_of_packets_learns_nothing_and_a_believer_would_tell_all() {
    let authority = Arc::new(cluster());
    let (coordinator, joins) = honest(&authority);
    let token = JoinToken::generate(authority.fingerprint(), TokenRecordId(1)).unwrap();
    let tap = Tap::before(coordinator.local_addr()).await;
    let joined = join(&[&tap.address], &token).await.unwrap();
    assert_eq!(joined.identity.node(), WORKER);
    let heard = tap.heard().await;
    assert!(data_packets(&heard) > 0);
    assert!(!holds(&heard, &token.secret()));

    let own = NodeIdentity::issue(&cluster(), COORDINATOR).unwrap();
    let middle = Middle::new(own.chain(), own.key(), coordinator.local_addr());
    let address = middle.endpoint.local_addr().unwrap().to_string();
    let believer = careless(&address, None, Protocol::Join).await;
    let (mut send, mut recv) = believer.quic().open_bi().await.unwrap();
    send.write_all(&token.secret()).await.unwrap();
    send.finish().unwrap();
    let _ = recv.read_to_end(limits::JOIN_FRAME_BYTES_MAX).await;
    assert_eq!(middle.end().await, (1, token.secret().to_vec()));
    coordinator.close().await;
    assert_eq!(joins.await.unwrap(), 1);
}

/// In the middle with an authority of its own; the same with the victim's CA (public, after all)
/// shown beside; with the coordinator's whole real chain but without its key; and with a worker's
/// true certificate of the victim's cluster.
#[tokio::test]
async fn whoever_ends_tls_in_the_middle_gets_no_byte() {
    let authority = Arc::new(cluster());
    let (coordinator, joins) = honest(&authority);
    let token = JoinToken::generate(authority.fingerprint(), TokenRecordId(1)).unwrap();
    let own = NodeIdentity::issue(&cluster(), COORDINATOR).unwrap();
    let real = NodeIdentity::issue(&authority, COORDINATOR).unwrap();
    let insider = NodeIdentity::issue(&authority, WORKER).unwrap();
    let mut beside = own.chain();
    beside.push(authority.certificate().clone());
    let mut instead = own.chain();
    instead[1] = authority.certificate().clone();
    for (what, chain, key, wrong_cluster) in [
        ("its own", own.chain(), own.key(), true),
        ("the pinned one beside", beside, own.key(), true),
        ("the pinned one instead", instead, own.key(), true),
        ("the real chain", real.chain(), own.key(), false),
        ("a worker's", insider.chain(), insider.key(), false),
    ] {
        let middle = Middle::new(chain, key, coordinator.local_addr());
        let tap = Tap::before(middle.endpoint.local_addr().unwrap()).await;
        match join(&[&tap.address], &token).await {
            Err(JoinError::Transport(TransportError::WrongCluster { want, .. }))
                if wrong_cluster =>
            {
                assert_eq!(want, authority.fingerprint());
            }
            Err(JoinError::Transport(_)) if !wrong_cluster => {}
            other => panic!("{what}: {other:?}"),
        }
        let heard = tap.heard().await;
        assert!(!heard.is_empty() && !holds(&heard, &token.secret()));
        assert_eq!(data_packets(&heard), 0, "{what}");
        assert_eq!(middle.end().await, (0, Vec::new()), "{what}");
    }
    coordinator.close().await;
    assert_eq!(joins.await.unwrap(), 0);
}

/// A real coordinator at a wrong address: it never gets as far as a connection.
#[tokio::test]
async fn the_secret_never_leaves_for_another_cluster() {
    let impostor = node(&cluster(), COORDINATOR, &[Protocol::Join]);
    let address = impostor.local_addr().to_string();
    let seen = echo(&impostor);
    let ours = cluster();
    let token = JoinToken::generate(ours.fingerprint(), TokenRecordId(1)).unwrap();
    match join(&[&address], &token).await {
        Err(JoinError::Transport(TransportError::WrongCluster { want, .. })) => {
            assert_eq!(want, ours.fingerprint());
        }
        other => panic!("{other:?}"),
    }
    impostor.close().await;
    assert_eq!(seen.await.unwrap(), [], "a connection was made");
}
