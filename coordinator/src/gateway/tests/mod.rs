//! The gateway from request to answer, with the real state, a real (tiny) model's words, and a
//! scripted engine behind the dispatcher's queue.

mod accounts;
mod admin;
mod admission;
mod bad_bodies;
mod billing;
mod chat;
mod completions;
mod connection;
mod engine;
mod house;
mod isolation;
mod money;
mod openapi;
mod paid;
mod places;
mod settlements;
mod stream;
mod webhook;
