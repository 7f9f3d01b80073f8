//! Where output goes: results to stdout, progress and notes to stderr.

use std::{
    io::{self, ErrorKind, IsTerminal, Write},
    path::Path,
    process::ExitCode,
    sync::OnceLock,
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{Exit, Failure};

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
    /// Why the result did not reach stdout.
    pub(super) unwritten: OnceLock<io::Error>,
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
            say(&format!("note: {text}\n"));
        }
    }

    /// A remark for those who asked for more.
    pub(super) fn detail(&self, text: &str) {
        if self.verbose && !self.quiet {
            say(&format!("{text}\n"));
        }
    }

    /// The result of the command.
    pub(super) fn result(&self, table: impl FnOnce() -> String, json: impl FnOnce() -> serde_json::Value) {
        if self.json {
            // The first result counts; commands have one.
            self.document.get_or_init(json);
        } else {
            self.print(&table());
        }
    }

    /// Lines that belong to the result of a command that stops. In JSON they are
    /// part of the document of the failure.
    pub(super) fn listing(&self, lines: impl Iterator<Item = String>) {
        if !self.json {
            self.print(&lines.collect::<String>());
        }
    }

    /// The end of the command: why it stopped if it did, and its exit code.
    pub(super) fn finish(&self, failure: Option<&Failure>) -> ExitCode {
        if self.json {
            let mut document = self.document.get().cloned().unwrap_or_else(|| serde_json::json!({}));
            if let (Some(failure), Some(fields)) = (failure, document.as_object_mut()) {
                fields.extend(failure.to_json());
            }
            self.print(&format!("{document:#}\n"));
        }
        exit(failure, self.unwritten.get())
    }

    fn print(&self, text: &str) {
        let mut stdout = io::stdout().lock();
        if let Err(error) = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush())
            && matters(&error)
        {
            self.unwritten.get_or_init(|| error);
        }
    }
}

/// A closed pipe is not an error: the reader has seen enough.
pub(super) fn matters(error: &io::Error) -> bool {
    error.kind() != ErrorKind::BrokenPipe
}

/// Says why a command stopped, or why its result is not on stdout.
pub(super) fn exit(failure: Option<&Failure>, unwritten: Option<&io::Error>) -> ExitCode {
    let unwritten = unwritten.map(|error| Failure::new(Exit::InvalidInput, "cannot write the result to stdout", error));
    let failures = failure.into_iter().chain(&unwritten);
    failures.clone().for_each(|failure| say(&failure.render()));
    failures.map(|failure| failure.exit).next().map_or(ExitCode::SUCCESS, |exit| ExitCode::from(exit as u8))
}

/// Writes to stderr. If nobody can read it there, there is nobody to tell.
fn say(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

/// A path in a JSON document, which is Unicode: what is not becomes `\u{fffd}`.
pub(super) fn shown(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
