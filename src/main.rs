//! The `nexusgate` command.

use std::process::ExitCode;

/// Small allocations come and go with every request, and memory for log rows is freed on another thread, which mimalloc
/// does cheaply.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    nexusgate::cli::run(std::env::args_os())
}
