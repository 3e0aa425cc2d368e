//! The gateway from request to answer, with the real state, a real (tiny) model's words, and a
//! scripted engine behind the dispatcher's queue.

mod admin;
mod admission;
mod bad_bodies;
mod chat;
mod completions;
mod connection;
mod engine;
mod house;
mod paid;
mod places;
mod stream;
