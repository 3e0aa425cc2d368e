//! Messages between processes and their encoding.
//!
//! The encoding is bincode's default format (little-endian fixed-width integers, u64 lengths),
//! written by `wincode`. A frame on a QUIC stream is a little-endian u32 length and that many bytes.

pub mod codec;
pub mod control;
pub mod generate;
