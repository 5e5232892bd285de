//! The smallest function of the world `nexus:function`: it takes an event and answers with nothing.
//!
//! What an invocation of it costs is what Nexus costs. Hence no standard library, no formatting, and an allocator that
//! only ever moves forward.
#![no_std]

extern crate alloc;

#[path = "../../bump.rs"]
mod bump;

use alloc::string::String;
use alloc::vec::Vec;

wit_bindgen::generate!({
    path: "../../../wit",
    world: "function",
});

struct Noop;

impl Guest for Noop {
    fn handle(_event: Vec<u8>) -> Result<Vec<u8>, String> {
        Ok(Vec::new())
    }
}

export!(Noop);
