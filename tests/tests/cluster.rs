//! What servers at a cluster of three nats-servers do is what those with a directory do: the same tests. See `nexus_tests::nats`.

mod calls;
mod delivery;
mod drain;
mod events;
mod functions;
mod later;
mod listing;
mod replay;
mod restart;
