//! Newtypes for every identifier and unit that crosses a function boundary, so that two bare
//! integers never stand side by side in a signature.

use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::ToSchema;
use wincode::{SchemaRead, SchemaWrite};

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash,
            Serialize, Deserialize, SchemaRead, SchemaWrite, ToSchema,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

number_id!(
    /// A Raft member; also the gateway and control endpoint in the same process.
    CoordinatorId(u32), "c"
);
number_id!(
    /// A process that joined with a worker token.
    WorkerId(u32), "w"
);
number_id!(
    /// A model served under a name.
    DeploymentId(u32), "d"
);
number_id!(
    /// The account that calls the API and pays.
    TenantId(u32), "t"
);
number_id!(
    /// One API key of a tenant.
    KeyId(u32), "k"
);
number_id!(
    /// A join token's public half.
    TokenRecordId(u32), "j"
);
number_id!(
    /// The number of a replica's current plan. It only grows; a message of another epoch is refused.
    Epoch(u64), "e"
);
number_id!(
    /// Which full copy of the model, counted from 0 within a deployment.
    Replica(u16), "r"
);
number_id!(
    /// The pipeline-parallel unit: a contiguous span of layers, counted from 0.
    Stage(u16), "s"
);
number_id!(
    /// One share of a stage's heads and FFN columns, counted from 0 within its stage.
    Rank(u16), ""
);
number_id!(
    /// A count of tokens.
    Tokens(u64), ""
);
number_id!(
    /// One run of a coordinator's gateway; the state gives it, and never twice.
    GatewayLife(u64), "g"
);
number_id!(
    /// A settled request, counted from 1 in the order of settlement.
    RequestNumber(u64), "n"
);
number_id!(
    /// One settlement of a request, counted from 1 in their order.
    SettlementSeq(u64), ""
);
number_id!(
    /// One event for a tenant's webhook, counted from 1 in the order in which they came about.
    EventSeq(u64), ""
);
number_id!(
    /// One movement of money, counted from 1.
    PostingId(u64), "p"
);
number_id!(
    /// Hundredths of a percent.
    BasisPoints(u32), ""
);
number_id!(
    /// Money, in thousand-millionths of a US dollar. Never a float.
    NanoUsd(i64), ""
);

/// The name one request carries through gateway, driver and logs; echoed as `x-request-id`.
///
/// 1 to 128 printable ASCII characters without spaces.
#[derive(
    Clone,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    SchemaRead,
    SchemaWrite,
    ToSchema,
)]
#[serde(transparent)]
pub struct RequestId(String);

impl RequestId {
    /// Takes a caller's own id, or `None` where it is empty, too long or not printable ASCII.
    pub fn parse(text: &str) -> Option<Self> {
        let fits = (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
        fits.then(|| Self(text.to_owned()))
    }

    /// An id drawn from the operating system's random source.
    pub fn random() -> Self {
        let mut bytes = [0u8; 12];
        getrandom::fill(&mut bytes).expect("the operating system has a random source");
        Self(format!("req_{}", hex::encode(bytes)))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
