//! The OpenAI-compatible HTTP endpoint.

pub mod text;
