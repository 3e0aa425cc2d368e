//! Encoding and framing.
