//! Finding the other ranks.

/// Links opened by peers, waiting to be claimed by the rank they are for. Cheap to clone.
#[derive(Clone, Default)]
pub struct IncomingLinks {}

impl IncomingLinks {
    /// The agent calls this for every accepted stream of `Protocol::Link`; `peer` is the worker id
    /// from the peer's certificate. Reads the stream's hello and keeps it until the rank claims it.
    pub async fn accept(
        &self,
        _peer: trireme_shared::ids::WorkerId,
        _send: quinn::SendStream,
        _recv: quinn::RecvStream,
    ) {
    }
}
