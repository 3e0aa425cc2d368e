//! `cluster undeploy`: asks a running cluster to serve a model no more.

use super::WriteArgs;
use crate::term;
use anyhow::Result;
use clap::Args;
use std::fmt::Write;
use trireme_shared::api::Removed;

#[derive(Args)]
#[command(
    after_help = "Example:\n  cluster undeploy smollm2\n\nIts workers are free for other models. What runs on \
                        it ends."
)]
pub struct UndeployArgs {
    #[command(flatten)]
    write: WriteArgs,
    /// The name that it is served under, as `cluster status` shows it
    name: String,
}

impl UndeployArgs {
    pub fn run(self) -> Result<()> {
        let removed: Removed = self.write.admin()?.delete(&path(&self.name))?;
        if self.write.json() {
            return term::json(&removed);
        }
        term::out(format!("{} is not served any more", removed.removed));
        Ok(())
    }
}

/// A name may hold anything; its slashes are part of the path (RFC 3986).
fn path(name: &str) -> String {
    let mut path = "/admin/v1/deployments/".to_owned();
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                path.push(byte.into());
            }
            // Writing into a text does not fail.
            _ => drop(write!(path, "%{byte:02X}")),
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::path;

    #[test]
    fn any_name_is_one_path() {
        let root = "/admin/v1/deployments/";
        for (name, wanted) in [
            ("smollm2", "smollm2"),
            ("org/m-Q4.v2", "org/m-Q4.v2"),
            ("a b?c#d%", "a%20b%3Fc%23d%25"),
            ("ü", "%C3%BC"),
        ] {
            assert_eq!(path(name), format!("{root}{wanted}"));
        }
    }
}
