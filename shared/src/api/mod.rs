//! JSON bodies of the admin API and of the billing API: what `cluster status`, `tenant`, `usage` and the
//! others read and write. `cluster`, `accounts`, `billing`, `export` and `webhooks` hold them; `GET /openapi.json` tells all of it.
//!
//! | method and path | body -> answer |
//! |---|---|
//! | GET /admin/v1/status | -> `StatusReport` |
//! | GET /admin/v1/plan | -> `Vec<ReplicaPlan>` (nonces zeroed) |
//! | PUT /admin/v1/deployments | `DeploymentSpec` -> `DeploymentReport` |
//! | DELETE /admin/v1/deployments/{name} | -> `Removed` |
//! | GET, POST /admin/v1/tokens | `TokenRequest` -> `TokenCreated`; list: `Vec<TokenReport>` |
//! | DELETE /admin/v1/tokens/{id} | -> `TokenReport` |
//! | GET /admin/v1/tenants | -> `Vec<TenantReport>` |
//! | GET, PUT /admin/v1/tenants/{name} | `TenantSettings` -> `TenantReport` |
//! | POST /admin/v1/tenants/{name}/credits | `MoneyRequest` -> `PostingReport` |
//! | GET /admin/v1/tenants/{name}/usage, /requests, /statements, /statements/{yyyy-mm} | as the tenant's own, below |
//! | GET, POST /admin/v1/keys?tenant= | `KeyRequest` -> `KeyCreated`; list: `Vec<KeyReport>` |
//! | GET, PUT, DELETE /admin/v1/keys/{k3} | `KeySettings` -> `KeyReport`; DELETE revokes |
//! | POST /admin/v1/keys/{k3}/rotate | `RotateRequest` -> `KeyCreated` |
//! | GET /admin/v1/prices | -> `PricesReport` |
//! | PUT /admin/v1/prices/{model} | `PriceRequest` -> `Vec<PriceReport>`, all of the model |
//! | GET, PUT /admin/v1/fee | `Fee` -> `Fee` |
//! | GET /admin/v1/requests/{id} | -> `AdminRequestReport` |
//! | POST /admin/v1/requests/{id}/refunds | `MoneyRequest` -> `PostingReport` |
//! | GET /admin/v1/ledger?account=&after=&limit= | -> `LedgerPage` |
//! | GET /admin/v1/settlements?after=SEQ&limit=N | -> `SettlementsPage`; 410 `settlements_lost` |
//! | GET /admin/v1/providers | -> `Vec<ProviderReport>` |
//! | GET /admin/v1/providers/{name}/earnings?from=&to= | -> `Earnings` |
//! | GET /admin/v1/providers/{name}/statements/{yyyy-mm} | -> `ProviderStatement` |
//! | POST /admin/v1/providers/{name}/payouts | `MoneyRequest` -> `PostingReport` |
//! | GET, POST /admin/v1/members | `MemberRequest` -> `MemberInvited`; list: `Vec<CoordinatorStatus>` |
//! | POST /admin/v1/members/{id}/promote | -> `CoordinatorStatus` |
//! | DELETE /admin/v1/members/{id} | -> `Removed` |
//! | GET /admin/v1/nodes | -> `Vec<NodeReport>` |
//! | DELETE /admin/v1/nodes/{w3 or c2} | -> `Removed` |
//! | GET /admin/v1/ca | -> `CaReport` |
//! | POST /admin/v1/ca/rotate | -> `CaReport` |
//! | GET /admin/v1/audit?after=SEQ&limit=N | -> a JSON line a record; header `AUDIT_HEAD_HEADER` |
//! | GET /admin/v1/backup | -> the state, in the format of a snapshot file |
//! | GET /admin/v1/idempotency-key | -> `IdempotencyKey` |
//!
//! All of these take the admin key as `Authorization: Bearer`. These take a tenant's own key, whose scopes
//! hold `billing`, and tell of that tenant only:
//!
//! | method and path | answer |
//! |---|---|
//! | GET /billing/v1/balance | `Balance` |
//! | GET /billing/v1/usage?from=&to=&group_by=&limit=&cursor= | `UsagePage` |
//! | GET /billing/v1/requests?limit=&cursor=&from=&to=&model=&key= | `RequestsPage` |
//! | GET /billing/v1/requests/{id} | `RequestReport` |
//! | GET /billing/v1/limits | `LimitsReport` |
//! | GET /billing/v1/prices | `Vec<ModelPrices>` |
//! | GET /billing/v1/statements | `Vec<StatementMonth>` |
//! | GET /billing/v1/statements/{yyyy-mm}[.json, .csv, .html] | `Statement`, or as the name or `Accept` says |
//! | GET, PUT, DELETE /billing/v1/webhook | `WebhookReport`; PUT: `WebhookRequest` -> `WebhookSet` |
//! | POST /billing/v1/webhook/test | `WebhookTested` |
//!
//! Errors have OpenAI's shape. Money is in whole nano-dollars (`*_nano_usd`), never a fraction; times are
//! seconds since 1970 (`*_at`). What is not known of a query or a body is refused by name.
//!
//! Every coordinator serves all of it. A write may carry `IDEMPOTENCY_KEY_HEADER`: the same key with
//! the same method and path takes effect once, however often and wherever it is asked. A key that a
//! coordinator gave (`IdempotencyKey`) keeps that promise for ever: once it is forgotten it is refused;
//! one of the client's own making keeps it for `limits::PROPOSAL_WINDOW` commands. 503 with code
//! `in_doubt` means that the effect may be there or may yet come: ask again with the key that the error
//! names. 503 with code `no_leader`: nothing was changed.

mod accounts;
mod billing;
mod cluster;
mod export;
mod webhooks;

pub use accounts::*;
pub use billing::*;
pub use cluster::*;
pub use export::*;
pub use webhooks::*;

/// 1 to `limits::IDEMPOTENCY_KEY_BYTES_MAX` printable ASCII characters.
pub const IDEMPOTENCY_KEY_HEADER: &str = "idempotency-key";

/// The newest audit record, `<seq>:<hash>`: what an export should end at.
pub const AUDIT_HEAD_HEADER: &str = "x-trireme-audit-head";
