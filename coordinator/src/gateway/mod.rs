//! The OpenAI-compatible HTTP endpoint, the admin and the billing API, health, metrics, and the document
//! of all of them (`openapi`).
//!
//! The life of a request here: `server` accepts it, `envelope` names and bounds it, `auth` finds
//! who pays, `openai::{chat, completions}` parse it, `openai::generation` dispatches its sequences,
//! `session` turns tokens into certain text, `openai::stream` or `openai::answer` sends it,
//! `desk` has let it in by then, and `usage` has it settled there.
//!
//! What a client gets when it is wrong: a request that is HTTP is answered by us, in OpenAI's shape
//! and with `x-request-id`, and its body is read to the end (within `limits::HTTP_DISCARD_*`), so
//! that the connection can be used again. What is not HTTP never reaches us; hyper answers with an
//! empty body and closes: 400 (not HTTP/1, or a malformed method, target, version, header or
//! length), 414 (target too long), 431 (headers too many or too large); to an HTTP/2 preface, or
//! headers slower than `limits::HTTP_HEADER_DEADLINE`, it only closes. A body that breaks off or is
//! framed wrongly is a 400 in shape where we can still answer. Compressed bodies are refused (415).
//! A client that closes its sending half before the answer has left: its work is cancelled.
//!
//! Neighbours: `fleet` (dispatch, status), `state` (keys, deployments, usage).

mod act;
mod admin;
mod auth;
mod billing;
mod body;
pub mod desk;
mod envelope;
pub mod error;
mod health;
mod idempotency;
mod metrics;
pub mod openai;
mod openapi;
mod server;
mod session;
mod stall;
mod stop;
#[cfg(test)]
mod tests;
pub mod text;
mod texts;
pub mod traces;
mod usage;
mod view;

pub use server::{GatewayParts, GatewayState, router, serve};
