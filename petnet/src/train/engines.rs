//! Engines of one network, compiled for each size of images that a training has.

use crate::engine::Engine;
use crate::error::Result;

/// Compiled networks by the side of their input, in pixels.
#[derive(Debug, Default)]
pub(super) struct Engines(Vec<(usize, Engine)>);

impl Engines {
    /// Compiles for images of `side` pixels, unless that was done.
    pub(super) fn prepare(
        &mut self,
        side: usize,
        compile: impl FnOnce() -> Result<Engine>,
    ) -> Result<()> {
        if self.at(side).is_none() {
            self.0.push((side, compile()?));
        }
        Ok(())
    }

    /// The engine for images of `side` pixels, once it was prepared.
    pub(super) fn at(&self, side: usize) -> Option<&Engine> {
        self.0.iter().find(|(known, _)| *known == side).map(|(_, engine)| engine)
    }
}
