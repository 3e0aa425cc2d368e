//! Who a node is: the cluster's certificate authority, node certificates and join tokens.

use crate::ids::{CoordinatorId, WorkerId};
use std::fmt;

/// A node as its certificate names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NodeId {
    Coordinator(CoordinatorId),
    Worker(WorkerId),
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Coordinator(id) => write!(f, "coordinator {id}"),
            Self::Worker(id) => write!(f, "worker {id}"),
        }
    }
}

/// A node's key, its certificate and the cluster's CA certificate.
#[derive(Clone)]
pub struct NodeIdentity {}
