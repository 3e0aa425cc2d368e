//! `cluster bench commits`, as anybody runs it.

use crate::{Options, Speed};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::process::Command;
use std::time::Duration;

/// Its speed, and the bytes of one of its commands.
pub fn measure(options: &Options) -> Result<(Speed, usize)> {
    let out = Command::new(&options.cluster)
        .args(["bench", "commits", "--members", "3", "--json"])
        .args(["--clients", &options.clients.to_string()])
        .args(["--seconds", &options.duration.as_secs().to_string()])
        .arg("--dir")
        .arg(&options.dir)
        .output()
        .with_context(|| format!("cannot run {}", options.cluster.display()))?;
    if !out.status.success() {
        bail!("{}", String::from_utf8_lossy(&out.stderr));
    }
    let report: Value = serde_json::from_slice(&out.stdout)?;
    let number = |value: &Value| value.as_f64().context("the report lacks a number");
    let speed = &report["speeds"][0];
    let measured = Speed {
        writes_per_second: number(&speed["commands_per_second"])?,
        p50_us: number(&speed["p50_us"])?,
        p99_us: number(&speed["p99_us"])?,
        servers_cpu: number(&speed["cpus"])?,
        driver_cpu: 0.0,
    };
    Ok((measured, number(&report["command_bytes"])? as usize))
}

/// Processor time of this process so far, all threads.
pub fn own_cpu() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}
