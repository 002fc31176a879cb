//! stub

/// Options
#[derive(clap::Args)]
pub struct Options {}

/// run
/// # Errors
pub async fn run(_binary: crate::Binary, _options: Options) -> anyhow::Result<()> {
    Ok(())
}
