//! The command line: flags in, tables or JSON on stdout, progress on stderr.
//!
//! One file a subcommand. Everything below this module is a library that
//! neither prints nor reads the environment.

mod args;
mod bench;
mod check;
mod compile;
mod data;
mod devices;
mod eval;
mod export;
mod failure;
mod inspect;
mod opt;
mod outputs;
mod run;
#[cfg(unix)]
mod signals;
mod terminal;
mod train;

use std::{io::Write, process::ExitCode, sync::OnceLock};

use clap::{CommandFactory, Parser, Subcommand};

pub use compile::Args as CompileArgs;
pub use devices::{Device, devices};
pub use failure::{Exit, Failure, of_control, of_run, of_runtime};
use terminal::Terminal;

/// Compiles imitation-learned policies (ONNX) to quantized artifacts.
#[derive(Debug, Parser)]
#[command(name = "qailc", version, max_term_width = 100)]
struct Cli {
    /// Print one JSON document on stdout instead of tables.
    #[arg(long, global = true)]
    json: bool,
    /// No progress and no notes.
    #[arg(long, short, global = true)]
    quiet: bool,
    /// Say why passes declined and what was assumed.
    #[arg(long, short, global = true)]
    verbose: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Quantizes and trains a model and builds an artifact; or builds one from a checkpoint.
    Compile(compile::Args),
    /// Trains a quantized model on demonstrations and writes a checkpoint.
    Train(train::Args),
    /// Lists everything that stands in the way of compiling a model; needs no data.
    Check(check::Args),
    /// Runs an artifact on recorded observations.
    Run(run::Args),
    /// Measures how long one action takes.
    Bench(bench::Args),
    /// Says what a policy is worth: on recorded states, in a simulator, beside another one.
    Eval(eval::Args),
    /// Shows what is inside an artifact, after checking it.
    Inspect(inspect::Args),
    /// Looks into recordings.
    Data(data::Args),
    /// Runs passes over a model or a `.qir` file and prints the graph.
    Opt(opt::Args),
    /// Writes the quantized model as ONNX that other engines can check.
    Export(export::Args),
    /// Lists the devices that can run artifacts.
    Devices,
    /// Prints a completion script for a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    #[cfg(unix)]
    signals::watch();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers, not errors.
            let printed = error.print();
            if let (false, Err(error)) = (error.use_stderr(), printed) {
                return terminal::exit(None, Some(&error).filter(|error| terminal::matters(error)));
            }
            // The flags were not understood, so `--json` has to be looked for.
            if error.use_stderr() && std::env::args_os().any(|arg| arg == "--json") {
                let document = serde_json::Value::from(Failure::of_flags(&error).to_json());
                let _ = std::io::stdout().write_all(format!("{document:#}\n").as_bytes());
            }
            return if error.use_stderr() { ExitCode::from(Exit::Usage as u8) } else { ExitCode::SUCCESS };
        }
    };
    let terminal = Terminal {
        json: cli.json,
        quiet: cli.quiet,
        verbose: cli.verbose,
        document: OnceLock::new(),
        unwritten: OnceLock::new(),
    };
    let outcome = match cli.command {
        Command::Compile(args) => compile::main(&args, &terminal),
        Command::Train(args) => train::main(&args, &terminal),
        Command::Check(args) => check::main(&args, &terminal),
        Command::Run(args) => run::main(&args, &terminal),
        Command::Bench(args) => bench::main(&args, &terminal),
        Command::Eval(args) => eval::main(&args, &terminal),
        Command::Inspect(args) => inspect::main(&args, &terminal),
        Command::Data(args) => data::main(&args, &terminal),
        Command::Opt(args) => opt::main(&args, &terminal),
        Command::Export(args) => export::main(&args, &terminal),
        Command::Devices => devices::main(&terminal),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "qailc", &mut script);
            let script = String::from_utf8_lossy(&script).into_owned();
            let document = || serde_json::json!({ "schema": 1, "shell": shell.to_string(), "script": script });
            terminal.result(|| script.clone(), document);
            Ok(())
        }
    };
    terminal.finish(outcome.as_ref().err())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_do_not_contradict_each_other() {
        Cli::command().debug_assert();
    }
}
