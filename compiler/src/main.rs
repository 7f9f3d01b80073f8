//! The command `qailc`.

use std::process::ExitCode;

fn main() -> ExitCode {
    qailc::cli::main()
}
