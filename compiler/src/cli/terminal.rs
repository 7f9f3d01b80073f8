//! Where output goes: results to stdout, progress and notes to stderr.

use std::{
    io::{IsTerminal, Write},
    sync::OnceLock,
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Failure;

/// How much to say, and in which form.
#[derive(Debug)]
pub(super) struct Terminal {
    /// One JSON document instead of tables.
    pub(super) json: bool,
    /// No progress and no notes.
    pub(super) quiet: bool,
    /// Say what was assumed and declined.
    pub(super) verbose: bool,
    /// The result in JSON, printed at the end: a command that measured something
    /// and then fails a gate still prints one document.
    pub(super) document: OnceLock<serde_json::Value>,
}

impl Terminal {
    /// A bar on stderr; invisible when quiet or when stderr is not a terminal.
    pub(super) fn bar(&self, len: u64, message: &str) -> ProgressBar {
        let visible = !self.quiet && std::io::stderr().is_terminal();
        let target = if visible { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(len), target).with_message(message.to_owned());
        let style = ProgressStyle::with_template("{msg:<16} {bar:30} {human_pos}/{human_len} {eta}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }

    /// A remark on stderr.
    pub(super) fn note(&self, text: &str) {
        if !self.quiet {
            eprintln!("note: {text}");
        }
    }

    /// A remark for those who asked for more.
    pub(super) fn detail(&self, text: &str) {
        if self.verbose && !self.quiet {
            eprintln!("{text}");
        }
    }

    /// The result of the command. A closed pipe is not an error: the reader has
    /// seen enough.
    pub(super) fn result(&self, table: impl FnOnce() -> String, json: impl FnOnce() -> serde_json::Value) {
        if self.json {
            // The first result counts; commands have one.
            self.document.get_or_init(json);
        } else {
            let _ = std::io::stdout().write_all(table().as_bytes());
        }
    }

    /// Lines that belong to the result of a command that stops. In JSON they are
    /// part of the document of the failure.
    pub(super) fn listing(&self, lines: impl Iterator<Item = String>) {
        if !self.json {
            let _ = std::io::stdout().write_all(lines.collect::<String>().as_bytes());
        }
    }

    /// The end of the command, and why it stopped if it did.
    pub(super) fn finish(&self, failure: Option<&Failure>) {
        if self.json {
            let mut document = self.document.get().cloned().unwrap_or_else(|| serde_json::json!({}));
            if let (Some(failure), Some(fields)) = (failure, document.as_object_mut()) {
                fields.extend(failure.to_json());
            }
            let _ = writeln!(std::io::stdout(), "{document:#}");
        }
        if let Some(failure) = failure {
            eprint!("{}", failure.render());
        }
    }
}
