//! As much of etcd's gRPC v3 API as is measured: `KV.Put` and `Maintenance.Status`
//! (`etcdserverpb/rpc.proto` of etcd 3.4; fields that nobody reads are left out).

use anyhow::{Context, Result};
use tonic::Request;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic_prost::ProstCodec;

#[derive(Clone, PartialEq, prost::Message)]
pub struct Header {
    #[prost(uint64, tag = "2")]
    pub member: u64,
    #[prost(int64, tag = "3")]
    pub revision: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct PutResponse {
    #[prost(message, optional, tag = "1")]
    pub header: Option<Header>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusRequest {}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Status {
    #[prost(message, optional, tag = "1")]
    pub header: Option<Header>,
    #[prost(uint64, tag = "4")]
    pub leader: u64,
}

/// One client of one connection, which clones share.
#[derive(Clone)]
pub struct Client(Grpc<Channel>);

impl Client {
    pub async fn connect(address: &str) -> Result<Self> {
        let endpoint = Channel::from_shared(format!("http://{address}"))?.tcp_nodelay(true);
        Ok(Self(Grpc::new(endpoint.connect().await?)))
    }

    pub async fn put(&mut self, put: PutRequest) -> Result<PutResponse> {
        self.ask("/etcdserverpb.KV/Put", put).await
    }

    pub async fn status(&mut self) -> Result<Status> {
        let path = "/etcdserverpb.Maintenance/Status";
        self.ask(path, StatusRequest {}).await
    }

    async fn ask<Q, A>(&mut self, path: &'static str, question: Q) -> Result<A>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        self.0.ready().await.context("the connection broke")?;
        let path = PathAndQuery::from_static(path);
        let codec = ProstCodec::<Q, A>::default();
        let answer = self.0.unary(Request::new(question), path, codec).await?;
        Ok(answer.into_inner())
    }
}
