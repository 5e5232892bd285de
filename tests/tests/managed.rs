//! What servers with a nats-server of their own do is what those with a directory do: the same tests. See `nexus_tests::nats`.

mod calls;
mod crash;
mod delivery;
mod drain;
mod events;
mod functions;
mod later;
mod listing;
mod replay;
mod restart;
