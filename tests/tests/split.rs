//! What the kernel's account tells with the privilege apart is what it tells with all in one process: the same tests, of
//! servers that have no capability, each beside a collector that has two. See `nexus_tests::server`.

mod kernel;
mod profile;
