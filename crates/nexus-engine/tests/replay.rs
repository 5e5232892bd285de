//! What is recorded of a guest is played back to it, and it does the same again, to the bit.

#[path = "replay/altered.rs"]
mod altered;
#[path = "replay/files.rs"]
mod files;
#[path = "replay/guests.rs"]
mod guests;
#[path = "replay/languages.rs"]
mod languages;
#[path = "replay/scripts.rs"]
mod scripts;
#[path = "replay/whimsy.rs"]
mod whimsy;
