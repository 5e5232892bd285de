//! Clocks and random numbers, by the tape.

use std::convert::Infallible;
use std::time::{Duration, Instant, SystemTime};

use rand::rand_core::TryRng;
use wasmtime_wasi::{HostMonotonicClock, HostWallClock, WasiCtxBuilder};

use super::{Draw, Tape};

/// The clocks' steps, as guests are told: the kernel's, on all machines that Nexus runs on.
const RESOLUTION: Duration = Duration::from_nanos(1);

impl Tape {
    /// Has a guest's clocks and random numbers come from the tape.
    pub(crate) fn install(&self, wasi: &mut WasiCtxBuilder) {
        if !self.is_there() {
            return;
        }
        wasi.wall_clock(Wall(self.clone()))
            .monotonic_clock(Monotonic(self.clone(), Instant::now()))
            .secure_random(Numbers(self.clone(), Draw::Secret))
            .insecure_random(Numbers(self.clone(), Draw::Insecure));
    }
}

struct Wall(Tape);

impl HostWallClock for Wall {
    fn resolution(&self) -> Duration {
        RESOLUTION
    }

    fn now(&self) -> Duration {
        let since_1970 = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = self.0.wall(|| i64::try_from(since_1970().as_nanos()).unwrap_or(i64::MAX));
        Duration::from_nanos(now.max(0).cast_unsigned())
    }
}

struct Monotonic(Tape, Instant);

impl HostMonotonicClock for Monotonic {
    fn resolution(&self) -> u64 {
        RESOLUTION.as_nanos() as u64
    }

    fn now(&self) -> u64 {
        self.0.monotonic(|| u64::try_from(self.1.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}

struct Numbers(Tape, Draw);

impl TryRng for Numbers {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let mut bytes = [0; 4];
        self.0.draw(self.1, &mut bytes);
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut bytes = [0; 8];
        self.0.draw(self.1, &mut bytes);
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        self.0.draw(self.1, bytes);
        Ok(())
    }
}
