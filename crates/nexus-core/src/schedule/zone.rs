//! Time zones by their IANA names.

use std::fmt;
use std::str::FromStr;

use jiff::tz::{TimeZone, TimeZoneDatabase};

/// The longest name of a zone, in bytes. The longest there is has half of it.
pub const ZONE_BYTES_MAX: usize = 64;

/// Names that databases have, and that are no zones: another one on each machine, or none at all.
const NO_ZONES: [&str; 4] = ["localtime", "posixrules", "Factory", "Etc/Unknown"];

/// A time zone of which neither the machine's database nor the copy in the binary knows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is not the name of a time zone")]
pub struct UnknownZone {
    /// What was given, shortened.
    pub name: String,
}

/// A time zone, with its rules as they were when it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone(TimeZone);

impl Zone {
    /// Coordinated Universal Time.
    pub const UTC: Self = Self(TimeZone::UTC);

    /// Finds a zone by its name, in any case: `Europe/Berlin`, `UTC`.
    pub fn parse(name: &str) -> Result<Self, UnknownZone> {
        let unknown = || UnknownZone { name: name.chars().take(ZONE_BYTES_MAX).collect() };
        if name.len() > ZONE_BYTES_MAX {
            return Err(unknown());
        }
        let found = TimeZone::get(name).or_else(|_| TimeZoneDatabase::bundled().get(name));
        match found {
            Ok(zone) if zone.iana_name().is_some_and(|name| !NO_ZONES.contains(&name)) => Ok(Self(zone)),
            Ok(_) | Err(_) => Err(unknown()),
        }
    }

    /// The name, in the database's spelling.
    pub fn name(&self) -> &str {
        self.0.iana_name().unwrap_or("UTC")
    }

    pub(super) fn rules(&self) -> &TimeZone {
        &self.0
    }
}

impl FromStr for Zone {
    type Err = UnknownZone;
    fn from_str(name: &str) -> Result<Self, UnknownZone> {
        Self::parse(name)
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_found_by_name() {
        for (given, name) in [
            ("Europe/Berlin", "Europe/Berlin"),
            ("america/new_york", "America/New_York"),
            ("UTC", "UTC"),
            ("Etc/GMT+5", "Etc/GMT+5"),
            ("US/Pacific", "US/Pacific"),
        ] {
            assert_eq!(Zone::parse(given).expect(given).name(), name);
        }
        let long = "x".repeat(100_000);
        let unknown = [
            "",
            " ",
            "Mars/Olympus",
            "+02:00",
            "Etc/Unknown",
            "/etc/passwd",
            "../UTC",
            "posix/UTC",
            "localtime",
            "LOCALTIME",
            "Factory",
            "EST5EDT4",
            "Europe/Berlin\0",
            &long,
        ];
        for bad in unknown {
            let error = Zone::parse(bad).expect_err(bad);
            assert!(error.name.len() <= ZONE_BYTES_MAX, "{error}");
        }
    }

    #[test]
    fn the_copy_in_the_binary_has_the_zones() {
        let bundled = TimeZoneDatabase::bundled();
        for name in ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "Africa/Cairo"] {
            assert_eq!(bundled.get(name).expect(name).iana_name(), Some(name));
        }
    }
}
