//! The cluster's CA, its audit log, and backups of its state.

use super::{admit_bare, fresh};
use crate::authority;
use crate::backup;
use crate::gateway::auth;
use crate::gateway::error::ApiError;
use crate::gateway::openapi::{Refused, RefusedAct};
use crate::gateway::server::GatewayState;
use crate::raft::types::SnapshotMeta;
use crate::state::{Authority, AuthorityStage, audit};
use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderName, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Deserialize;
use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;
use trireme_shared::api::{AUDIT_HEAD_HEADER, AuthorityReport, CaReport};
use trireme_shared::identity::{ClusterAuthority, IdentityError};
use trireme_shared::limits;

/// The cluster's CAs, and what a rotation is at.
#[utoipa::path(get, path = "/admin/v1/ca", tag = "cluster", security(("key" = [])),
    responses((status = 200, body = CaReport), Refused))]
pub async fn authorities(
    State(gateway): State<GatewayState>,
    request: Request,
) -> Result<Json<CaReport>, ApiError> {
    auth::admin(&gateway.group, request.headers())?;
    fresh(&gateway).await;
    Ok(Json(ca_report(&gateway).await?))
}

/// Begins a rotation: `crate::authority` has its steps.
#[utoipa::path(post, path = "/admin/v1/ca/rotate", tag = "cluster", security(("key" = [])),
    responses((status = 200, body = CaReport), RefusedAct))]
pub async fn rotate(
    State(gateway): State<GatewayState>,
    request: Request,
) -> Result<Json<CaReport>, ApiError> {
    let act = admit_bare(&gateway, request).await?;
    act.told(gateway.fleet.rotate_authority(act.terms()).await)?;
    Ok(Json(ca_report(&gateway).await?))
}

async fn ca_report(gateway: &GatewayState) -> Result<CaReport, ApiError> {
    let all: Vec<Authority> = gateway
        .group
        .read(|s| s.trusted_authorities().cloned().collect());
    let unusable = |e: IdentityError| {
        ApiError::internal(format!("An authority in the state is not usable: {e}."))
    };
    let report = |one: &Authority| {
        let seconds = |at: SystemTime| at.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let parsed = ClusterAuthority::from_pem(&one.pem)?;
        Ok(AuthorityReport {
            fingerprint: one.fingerprint.clone(),
            signs: one.stage == AuthorityStage::Signing,
            created_at: seconds(parsed.begins_at()? + limits::CLOCK_SKEW_MAX),
            expires_at: seconds(parsed.ends_at()?),
        })
    };
    let authorities: Result<Vec<_>, _> = all.iter().map(report).collect();
    let facts = authority::facts(&gateway.group, &gateway.fleet).await;
    Ok(CaReport {
        authorities: authorities.map_err(unusable)?,
        rotation: gateway.group.read(|s| authority::waits(s, facts.as_ref())),
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditPage {
    #[serde(default)]
    after: u64,
    limit: Option<usize>,
}

/// Records after `after`, oldest first, a JSON line each.
#[utoipa::path(get, path = "/admin/v1/audit", tag = "cluster", security(("key" = [])),
    params(("after" = Option<u64>, Query, description = "Records after this one"), ("limit" = Option<u64>, Query, description = "Records of a page")),
    responses((status = 200, description = "A JSON line a record", body = String, content_type = "application/x-ndjson"), Refused))]
pub async fn audit(
    State(gateway): State<GatewayState>,
    page: Result<Query<AuditPage>, QueryRejection>,
    request: Request,
) -> Result<Response, ApiError> {
    auth::admin(&gateway.group, request.headers())?;
    let Query(page) = page.map_err(|e| ApiError::body(format!("{}.", e.body_text())))?;
    let limit = page.limit.unwrap_or(limits::AUDIT_PAGE_RECORDS);
    if !(1..=limits::AUDIT_PAGE_RECORDS).contains(&limit) {
        let max = limits::AUDIT_PAGE_RECORDS;
        return Err(ApiError::value("limit", format!("'limit' is 1 to {max}.")));
    }
    fresh(&gateway).await;
    let (records, head) = gateway.group.read(|s| {
        let newer = s.audit_records().skip_while(|r| r.seq <= page.after);
        let records: Vec<_> = newer.take(limit).cloned().collect();
        (records, s.audit_head())
    });
    let mut lines = String::new();
    for record in &records {
        lines.push_str(&audit::to_json_line(record));
        lines.push('\n');
    }
    let head = format!("{}:{}", head.seq, hex::encode(head.hash));
    let headers = [
        (header::CONTENT_TYPE, "application/x-ndjson".to_owned()),
        (HeaderName::from_static(AUDIT_HEAD_HEADER), head),
    ];
    Ok((headers, lines).into_response())
}

/// The state as it is once the backup itself stands in the audit log.
#[utoipa::path(get, path = "/admin/v1/backup", tag = "cluster", security(("key" = [])),
    responses((status = 200, description = "The state, in the format of a snapshot file", body = Vec<u8>, content_type = "application/octet-stream"), Refused))]
pub async fn backup(
    State(gateway): State<GatewayState>,
    request: Request,
) -> Result<Response, ApiError> {
    let act = admit_bare(&gateway, request).await?;
    let recorded = gateway.fleet.record_act(act.terms(), "back up the cluster");
    act.told(recorded.await)?;
    let meta = SnapshotMeta {
        // Only for people: a restored log begins anew.
        index: *gateway.group.applied().borrow(),
        ..SnapshotMeta::default()
    };
    let state = gateway.group.snapshot();
    let (pieces, arrived) = mpsc::channel(limits::BACKUP_PIECES_MAX);
    tokio::task::spawn_blocking(move || {
        let pipe = Pipe(pieces.clone());
        if let Err(error) = backup::write(&state, &meta, pipe) {
            tracing::warn!(%error, "a backup broke off");
            // Breaks the answer, so that nobody takes it for whole.
            let _ = pieces.blocking_send(Err(io::Error::other("the backup broke off")));
        }
    });
    let stream = futures_util::stream::unfold(arrived, |mut arrived| async move {
        let piece: io::Result<Bytes> = arrived.recv().await?;
        Some((piece, arrived))
    });
    let kind = [(header::CONTENT_TYPE, "application/octet-stream")];
    Ok((kind, Body::from_stream(stream)).into_response())
}

/// A thread's end of an answer.
struct Pipe(mpsc::Sender<io::Result<Bytes>>);

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = Bytes::copy_from_slice(bytes);
        match self.0.blocking_send(Ok(piece)) {
            Ok(()) => Ok(bytes.len()),
            Err(_) => Err(io::Error::new(io::ErrorKind::BrokenPipe, "the client left")),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
