//! What wgpu reports beside return values: errors without a scope, and the loss
//! of a device. Both would otherwise end the program.

use std::sync::{Arc, Mutex, PoisonError};

/// Collects reports of one device. Cloning shares them.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults(Arc<Mutex<Reports>>);

#[derive(Debug, Default)]
struct Reports {
    /// The first error since the last look.
    error: Option<String>,
    /// Why the device is gone, for good.
    lost: Option<String>,
}

impl Faults {
    /// Collects what a device reports from now on.
    pub(super) fn watch(device: &wgpu::Device) -> Self {
        let faults = Self::default();
        let errors = faults.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| errors.add_error(error.to_string())));
        let losses = faults.clone();
        device.set_device_lost_callback(move |reason, message| {
            // Dropping the device is no loss.
            if reason != wgpu::DeviceLostReason::Destroyed {
                losses.set_lost(message);
            }
        });
        faults
    }

    /// Notes an error.
    pub(super) fn add_error(&self, message: String) {
        self.with(|reports| reports.error.get_or_insert(message).len());
    }

    /// Notes that the device cannot be used any more.
    pub(super) fn set_lost(&self, message: String) {
        self.with(|reports| reports.lost.get_or_insert(message).len());
    }

    /// Why nothing works, if so; an error is reported once, a loss every time.
    pub(super) fn take(&self) -> Option<String> {
        self.with(|reports| match &reports.lost {
            Some(reason) => Some(format!("lost: {reason}")),
            None => reports.error.take(),
        })
    }

    fn with<T>(&self, f: impl FnOnce(&mut Reports) -> T) -> T {
        // A panic elsewhere leaves the reports as they were: still the truth.
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_reported_once_and_a_loss_for_ever() {
        let faults = Faults::default();
        faults.add_error("first".to_owned());
        faults.add_error("second".to_owned());
        assert_eq!(faults.take().as_deref(), Some("first"));
        assert_eq!(faults.take(), None);
        faults.set_lost("unplugged".to_owned());
        faults.add_error("third".to_owned());
        assert_eq!(faults.take().as_deref(), Some("lost: unplugged"));
        assert_eq!(faults.take().as_deref(), Some("lost: unplugged"));
    }
}
