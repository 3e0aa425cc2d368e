//! Small disks and separate hosts for the members, made and removed by the test. Needs root, as CI has.

use crate::members::Host;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

fn run(program: &str, args: &[&str]) -> bool {
    let ended = Command::new(program).args(args).output();
    ended.is_ok_and(|out| out.status.success())
}

/// A file system of its own, in memory, mounted at a folder.
pub struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    pub fn at(folder: &Path, size: &str) -> Self {
        std::fs::create_dir_all(folder).expect("a folder");
        let (size, at) = (format!("size={size},mode=700"), folder.to_string_lossy());
        assert!(
            run("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", &at]),
            "a small disk can be mounted (root is needed)"
        );
        Self {
            at: folder.to_owned(),
        }
    }

    /// Takes all the room there is, until dropped.
    pub fn fill(&self) -> Filler {
        use std::io::Write;
        let path = self.at.join("filler");
        let mut file = std::fs::File::create(&path).expect("a file");
        let block = vec![1; 64 << 10];
        while file.write_all(&block).is_ok() {}
        while file.write_all(&block[..512]).is_ok() {}
        Filler(path)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process of the test may be on its way out.
        run("umount", &["-l", &self.at.to_string_lossy()]);
    }
}

pub struct Filler(PathBuf);

impl Drop for Filler {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Network namespaces on one bridge, a host for each member.
pub struct Net {
    prefix: String,
    count: usize,
}

impl Net {
    /// `None` where this machine does not let us make them.
    pub fn new(count: usize) -> Option<Self> {
        // Names of interfaces have at most 15 characters.
        let net = Self {
            prefix: format!("tr{}", std::process::id() % 100_000),
            count,
        };
        net.make().then_some(net)
    }

    fn make(&self) -> bool {
        let bridge = self.bridge();
        let mut ok = run("ip", &["link", "add", &bridge, "type", "bridge"])
            && run("ip", &["addr", "add", "10.77.7.254/24", "dev", &bridge])
            && run("ip", &["link", "set", &bridge, "up"]);
        for n in 0..self.count {
            let (name, out, inside) = (self.name(n), self.port(n), format!("{}i{n}", self.prefix));
            let address = format!("{}/24", address(n));
            ok = ok
                && run("ip", &["netns", "add", &name])
                && run(
                    "ip",
                    &["link", "add", &out, "type", "veth", "peer", "name", &inside],
                )
                && run("ip", &["link", "set", &inside, "netns", &name])
                && run("ip", &["link", "set", &out, "master", &bridge])
                && run("ip", &["link", "set", &out, "up"])
                && run(
                    "ip",
                    &["-n", &name, "addr", "add", &address, "dev", &inside],
                )
                && run("ip", &["-n", &name, "link", "set", &inside, "up"])
                && run("ip", &["-n", &name, "link", "set", "lo", "up"]);
        }
        ok
    }

    fn bridge(&self) -> String {
        format!("{}b", self.prefix)
    }

    fn name(&self, n: usize) -> String {
        format!("{}n{n}", self.prefix)
    }

    fn port(&self, n: usize) -> String {
        format!("{}o{n}", self.prefix)
    }

    pub fn hosts(&self) -> Vec<Host> {
        let host = |n| Host::Namespace {
            name: self.name(n),
            address: address(n),
        };
        (0..self.count).map(host).collect()
    }

    /// Nothing reaches the host or leaves it, its clients' questions included.
    pub fn cut(&self, n: usize) {
        assert!(run("ip", &["link", "set", &self.port(n), "down"]));
    }

    pub fn mend(&self, n: usize) {
        assert!(run("ip", &["link", "set", &self.port(n), "up"]));
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for n in 0..self.count {
            run("ip", &["link", "del", &self.port(n)]);
            run("ip", &["netns", "del", &self.name(n)]);
        }
        run("ip", &["link", "del", &self.bridge()]);
    }
}

fn address(n: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 7, n as u8 + 1)
}
