//! What the black-box tests have in common: the program as a process, a client, and receivers that are real.

pub mod collector;
pub mod gate;
pub mod nats;
pub mod otlp;
pub mod privilege;
pub mod problem;
pub mod receiver;
pub mod redact;
pub mod server;
pub mod spans;
pub mod wait;

pub use server::{Cli, Server, ServerBuilder};
pub use wait::until;
