//! Python packages that drive us, each in a virtual environment under the build folder, made once.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The `bin` folder of an environment that holds that package.
pub fn environment(package: &str, version: &str) -> PathBuf {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{package}-{version}"));
    let python = home.join("bin/python");
    let has_package = || {
        let check =
            "import importlib.metadata as m,sys; sys.exit(m.version(sys.argv[1]) != sys.argv[2])";
        Command::new(&python)
            .args(["-c", check, package, version])
            .output()
            .is_ok_and(|o| o.status.success())
    };
    if !has_package() {
        sure(
            Command::new("python3")
                .args(["-m", "venv", "--clear"])
                .arg(&home),
        );
        sure(
            Command::new(&python)
                .args(["-m", "pip", "install", "--quiet"])
                .arg(format!("{package}=={version}")),
        );
        assert!(has_package());
    }
    home.join("bin")
}

fn sure(command: &mut Command) {
    let out = command.output().unwrap_or_else(|e| {
        panic!("{command:?}: {e}: this test needs python3 with its venv module")
    });
    assert!(
        out.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
}
