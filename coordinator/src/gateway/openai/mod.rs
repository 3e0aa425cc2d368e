//! OpenAI's API.

pub mod chat;
pub mod completions;
pub mod fields;
pub mod params;
