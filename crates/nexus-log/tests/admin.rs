//! Backup, restore and check of a data directory.

#[path = "admin/damage.rs"]
mod damage;
#[path = "admin/files.rs"]
mod files;
#[path = "admin/older.rs"]
mod older;
#[path = "admin/round_trip.rs"]
mod round_trip;
#[path = "admin/running.rs"]
mod running;
#[path = "admin/stores.rs"]
mod stores;
