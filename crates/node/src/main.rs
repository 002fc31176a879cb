//! The one binary: the agent and the command line.

fn main() -> std::process::ExitCode {
    synapsedb::cli::main()
}
