//! What an interrupted command leaves: nothing that is not whole.
//!
//! Files are written aside and renamed, so what stood there before still stands;
//! what is aside is removed here. The process then ends by the signal, as it would
//! have without, and what it kept before, checkpoints above all, stays.

use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
    low_level::emulate_default_handler,
};

use crate::files;

/// Watches for signals that end the process, from a thread of its own.
pub(super) fn watch() {
    let watched = [SIGINT, SIGTERM].into_iter().filter(|&signal| !is_ignored(signal));
    // Without the watch a file may be left behind; no reason to refuse to work.
    let Ok(mut signals) = Signals::new(watched) else { return };
    std::thread::spawn(move || {
        for signal in signals.forever() {
            files::abandon(|| {
                let _ = emulate_default_handler(signal);
            });
        }
    });
}

/// True if whoever started the process wants it to outlive a signal, as shells do
/// with Ctrl-C and what runs in the background. Only Linux tells.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 == 1
}
