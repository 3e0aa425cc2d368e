//! The OpenAI-compatible HTTP endpoint, the admin API, health and metrics.
//!
//! The life of a request here: `server` accepts it, `envelope` names and bounds it, `auth` finds
//! who pays, `openai::{chat, completions}` parse it, `openai::generation` dispatches its sequences,
//! `session` turns tokens into certain text, `openai::stream` or `openai::answer` sends it, and
//! `usage` records it. Neighbours: `fleet` (dispatch, status), `state` (keys, deployments, usage).

mod admin;
mod auth;
mod body;
mod envelope;
pub mod error;
mod health;
mod metrics;
pub mod openai;
mod server;
mod session;
mod stall;
mod stop;
#[cfg(test)]
mod tests;
pub mod text;
mod texts;
mod usage;

pub use server::{GatewayParts, GatewayState, router, serve};
