//! One large answer: how fast it passes.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Result, bail};

use super::bed::Bed;
use super::grid::turn;
use super::report::Report;
use super::{Options, Route};
use crate::bench::cpu::spent_s;

/// The figure.
pub(super) const SPEED: &str = "COPY out of wide rows";
/// Bytes of a row as it is copied, its line end included.
const ROW_BYTES: u32 = 8_001;
/// The rows, made by the server on the way.
const ROWS: &str = include_str!("copy.sql");

/// One round.
pub(super) async fn measure(
    bed: &Bed,
    options: &Options,
    round: u32,
    report: &mut Report,
) -> Result<()> {
    let bytes = f64::from(options.copy_mb) * 1e6;
    let rows = (bytes / f64::from(ROW_BYTES)) as u64;
    for route in turn(&options.of(&Route::ALL), round) {
        let server = bed.entrance(route, false)?;
        let pid = bed.pid(route, false)?;
        let before = pid.map(spent_s).transpose()?;
        let mut psql = Command::new("psql");
        psql.args([
            "-X",
            "-q",
            "-v",
            "ON_ERROR_STOP=1",
            "-c",
            &ROWS.replace("$rows", &rows.to_string()),
        ])
        .arg(server.url())
        .env("PGSSLMODE", "disable")
        .stdout(Stdio::null());
        let begin = Instant::now();
        let output = tokio::task::spawn_blocking(move || psql.output()).await??;
        let elapsed = begin.elapsed().as_secs_f64();
        if !output.status.success() {
            bail!("psql at {}: {}", route.name(), String::from_utf8_lossy(&output.stderr));
        }
        report.add(SPEED, route, bytes / 1e6 / elapsed, "MB/s");
        if let Some((pid, before)) = pid.zip(before) {
            let spent_s = spent_s(pid)? - before;
            report.add("cost of it", route, spent_s * 1e9 / bytes, "ms/MB");
        }
    }
    Ok(())
}
