//! The noise that a sampler begins with, and that DDPM adds.
//!
//! A counter-based generator (ChaCha with 8 rounds) is keyed by the seed and by
//! the place of the input; its stream is the number of the run. So the noise of
//! a run is a function of seed and run alone: the same on every device, whatever
//! ran before. Numbers are standard normal (Box, Muller 1958) through `libm`.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

use super::Session;
use crate::{PortInfo, RunError, memory::HostMemory};

/// What a session draws before each run.
pub(super) struct Noise {
    seed: u64,
    /// Number of the next run.
    run: u64,
    /// Where the noise goes; empty if the caller gives it.
    pub(super) ports: Vec<PortInfo>,
}

impl Noise {
    pub(super) fn new(seed: u64, ports: Vec<PortInfo>) -> Self {
        Self { seed, run: 0, ports }
    }

    /// Fills the inputs that are noise, and counts the run.
    pub(super) fn draw(&mut self, memory: &mut HostMemory) -> Result<(), RunError> {
        for (port, place) in self.ports.iter().zip(0u64..) {
            let mut key = [0u8; 32];
            for (to, from) in key.iter_mut().zip(self.seed.to_le_bytes().into_iter().chain(place.to_le_bytes())) {
                *to = from;
            }
            let mut generator = ChaCha8Rng::from_seed(key);
            generator.set_stream(self.run);
            let bytes = memory.bytes_mut(port.tensor).get_mut(..port.elements() * 4);
            let bytes = bytes.ok_or(RunError::Internal("noise is longer than its tensor"))?;
            for pair in bytes.chunks_mut(8) {
                let normals = normal_pair(&mut generator).map(f32::to_le_bytes);
                for (to, from) in pair.iter_mut().zip(normals.as_flattened()) {
                    *to = *from;
                }
            }
        }
        self.run = self.run.wrapping_add(1);
        Ok(())
    }
}

/// Two independent standard normal numbers.
fn normal_pair(generator: &mut ChaCha8Rng) -> [f32; 2] {
    // In (0, 1]: the logarithm is finite.
    let unit = |bits: u64| ((bits >> 11) as f64 + 1.0) / (1u64 << 53) as f64;
    let (u, v) = (unit(generator.next_u64()), unit(generator.next_u64()));
    let (radius, angle) = (libm::sqrt(-2.0 * libm::log(u)), 2.0 * std::f64::consts::PI * v);
    [(radius * libm::cos(angle)) as f32, (radius * libm::sin(angle)) as f32]
}

impl Session {
    /// Inputs that the session draws itself.
    pub fn noise(&self) -> &[PortInfo] {
        &self.noise.ports
    }

    /// Begins the noise anew from a seed: the runs behind it are those of a
    /// fresh session with that seed.
    pub fn reseed(&mut self, seed: u64) {
        (self.noise.seed, self.noise.run) = (seed, 0);
    }
}
