//! The protocols, who may speak them, and how many streams they get.

use crate::api::Role;
use crate::limits;

/// What a connection is for; the ALPN name carries the version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// A joiner without a certificate asks for one: `trireme-join/1`.
    Join,
    /// Worker to coordinator: `trireme-control/2`.
    Control,
    /// Gateway to driver: `trireme-generate/4`.
    Generate,
    /// Rank to rank: `trireme-link/3`.
    Link,
    /// Member to member, Raft's own messages and snapshots: `trireme-raft/1`.
    Raft,
    /// Member to member, what one forwards for its clients: `trireme-group/1`.
    Group,
}

impl Protocol {
    const ALL: [Self; 6] = [
        Self::Join,
        Self::Control,
        Self::Generate,
        Self::Link,
        Self::Raft,
        Self::Group,
    ];

    /// The protocol of an ALPN name.
    pub(super) fn of_alpn(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.alpn() == name)
    }

    pub fn alpn(self) -> &'static [u8] {
        match self {
            Self::Join => b"trireme-join/1",
            Self::Control => b"trireme-control/2",
            Self::Generate => b"trireme-generate/4",
            Self::Link => b"trireme-link/3",
            Self::Raft => b"trireme-raft/1",
            Self::Group => b"trireme-group/1",
        }
    }

    /// Who may dial; `None` is anyone, without a certificate.
    pub(super) fn dialler(self) -> Option<Role> {
        match self {
            Self::Join => None,
            Self::Control | Self::Link => Some(Role::Worker),
            Self::Generate | Self::Raft | Self::Group => Some(Role::Coordinator),
        }
    }

    /// Who may be dialled.
    pub(super) fn server(self) -> Role {
        match self {
            Self::Join | Self::Control | Self::Raft | Self::Group => Role::Coordinator,
            Self::Generate | Self::Link => Role::Worker,
        }
    }

    /// Streams the peer may have open at once.
    pub(super) fn streams_max(self) -> u32 {
        match self {
            Self::Join => 1,
            Self::Control => limits::CONTROL_STREAMS_MAX,
            Self::Generate => limits::GENERATE_STREAMS_MAX,
            Self::Link => limits::LINK_STREAMS_MAX,
            Self::Raft => limits::RAFT_STREAMS_MAX,
            Self::Group => limits::GROUP_STREAMS_MAX,
        }
    }
}
