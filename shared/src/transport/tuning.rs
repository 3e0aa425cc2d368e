//! QUIC's own settings: windows, timeouts, packet sizes. Every number stands in `limits`.

use super::Protocol;
use crate::limits;
use quinn::congestion::CubicConfig;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    AckFrequencyConfig, ClientConfig, ConnectionId, ConnectionIdGenerator, EndpointConfig,
    MtuDiscoveryConfig, ServerConfig, TransportConfig,
};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

/// With a `reset_secret` that outlives the process, peers learn at once that a process which was
/// killed has forgotten them: its successor on the same port answers their next packet with a
/// stateless reset that they recognise (RFC 9000, 10.3). Without one they wait out `PEER_SILENCE_MAX`.
pub(super) fn endpoint(reset_secret: Option<&[u8; 32]>) -> EndpointConfig {
    let mut config = EndpointConfig::default();
    // Out of range only below 1,200 bytes; the default would then stand.
    let _ = config.max_udp_payload_size(limits::UDP_PAYLOAD_BYTES_MAX);
    if let Some(secret) = reset_secret {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret);
        config.reset_key(Arc::new(key));
        // quinn's own ids carry a mark of their process and those of another are not answered.
        config.cid_generator(|| Box::new(AnyProcess));
        config.min_reset_interval(limits::RESET_INTERVAL_MIN);
    }
    config
}

/// Random connection ids, each of which may be an earlier process's.
struct AnyProcess;

impl ConnectionIdGenerator for AnyProcess {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; 8];
        getrandom::fill(&mut id).expect("the operating system has a random source");
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        8
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// Asks for buffers that a burst from several peers fits; what the system grants will do.
pub(super) fn socket(socket: &UdpSocket) {
    use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size};
    let asked = set_socket_recv_buffer_size(socket, limits::SOCKET_BUFFER_BYTES)
        .and_then(|()| set_socket_send_buffer_size(socket, limits::SOCKET_BUFFER_BYTES));
    if let Err(error) = asked {
        tracing::debug!(%error, "the UDP socket keeps its default buffers");
    }
}

/// Until the handshake has named the dialler it gets one stream and a small window;
/// [`admitted`] widens both.
pub(super) fn server(tls: QuicServerConfig) -> ServerConfig {
    let mut transport = base();
    transport.max_concurrent_bidi_streams(1u32.into());
    transport.receive_window(limits::UNAUTHENTICATED_WINDOW_BYTES.into());
    let mut config = ServerConfig::with_crypto(Arc::new(tls));
    config.transport_config(Arc::new(transport));
    config.max_incoming(limits::HANDSHAKES_MAX);
    config
}

/// Widens an accepted connection to what its protocol needs.
pub(super) fn admitted(quic: &quinn::Connection, protocol: Protocol) {
    if protocol.dialler().is_some() {
        quic.set_max_concurrent_bi_streams(protocol.streams_max().into());
        quic.set_receive_window(limits::CONNECTION_WINDOW_BYTES.into());
    }
}

pub(super) fn client(tls: QuicClientConfig, to: SocketAddr, protocol: Protocol) -> ClientConfig {
    let mut transport = base();
    // Either end of a link may open streams; elsewhere only the dialler does.
    let streams = match protocol {
        Protocol::Link => protocol.streams_max(),
        _ => 0,
    };
    transport.max_concurrent_bidi_streams(streams.into());
    transport.receive_window(limits::CONNECTION_WINDOW_BYTES.into());
    if to.ip().is_loopback() {
        // The loopback device carries 64 KiB; no need to find that out first.
        transport.initial_mtu(limits::UDP_PAYLOAD_BYTES_MAX);
    }
    let mut config = ClientConfig::new(Arc::new(tls));
    config.transport_config(Arc::new(transport));
    config
}

fn base() -> TransportConfig {
    let mut config = TransportConfig::default();
    // A rank waits for whole messages, so a sender must not stop half-way through one for an
    // acknowledgement: start with a window that holds one, and have the last packet of an odd
    // number acknowledged soon (25 ms otherwise).
    let mut congestion = CubicConfig::default();
    congestion.initial_window(limits::INITIAL_WINDOW_BYTES);
    let mut acks = AckFrequencyConfig::default();
    acks.max_ack_delay(Some(limits::ACK_DELAY_MAX));
    config
        .congestion_controller_factory(Arc::new(congestion))
        .ack_frequency_config(Some(acks));
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(limits::UDP_PAYLOAD_BYTES_MAX);
    let silence = limits::PEER_SILENCE_MAX.try_into();
    config
        .initial_rtt(limits::INITIAL_RTT)
        .mtu_discovery_config(Some(discovery))
        .keep_alive_interval(Some(limits::KEEP_ALIVE_INTERVAL))
        // A timeout that QUIC cannot express (over 2^62 ms) falls back to quinn's own.
        .max_idle_timeout(silence.ok())
        .stream_receive_window(limits::STREAM_WINDOW_BYTES.into())
        .send_window(limits::CONNECTION_WINDOW_BYTES.into())
        .max_concurrent_uni_streams(0u32.into())
        .datagram_receive_buffer_size(None);
    config
}
