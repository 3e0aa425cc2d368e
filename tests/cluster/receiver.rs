//! An HTTP server of a test's own, which others send things to.

use super::harness::DEADLINE;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// One request as it came.
pub struct Heard {
    pub path: String,
    /// Names in lower case.
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Heard {
    pub fn header(&self, wanted: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(name, _)| name == wanted);
        found.map(|(_, value)| value.as_str())
    }
}

/// Answers as it is told to, with 200 at first, and tells of all that comes.
pub struct Receiving {
    /// `http://127.0.0.1:PORT`
    pub base: String,
    heard: Receiver<Heard>,
    status: Arc<Mutex<u16>>,
}

impl Receiving {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let base = format!("http://{}", listener.local_addr().expect("an address"));
        let (tell, heard) = channel();
        let status = Arc::new(Mutex::new(200));
        let answers = status.clone();
        // It ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                take(stream, &tell, &answers);
            }
        });
        Self {
            base,
            heard,
            status,
        }
    }

    pub fn answer(&self, status: u16) {
        *self.status.lock().expect("no test panics with it") = status;
    }

    pub fn next(&self) -> Heard {
        self.heard.recv_timeout(DEADLINE).expect("a request comes")
    }
}

/// Takes one request; what breaks off is nothing.
fn take(stream: TcpStream, tell: &Sender<Heard>, status: &Mutex<u16>) -> Option<()> {
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .ok()?;
    let mut reader = BufReader::new(stream);
    let (mut headers, mut line) = (Vec::new(), String::new());
    reader.read_line(&mut line).ok()?;
    let path = line.split(' ').nth(1)?.to_owned();
    loop {
        line.clear();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        headers.push((name.to_lowercase(), value.to_owned()));
    }
    let mut heard = Heard {
        path,
        headers,
        body: Vec::new(),
    };
    heard.body = vec![0; heard.header("content-length")?.parse().ok()?];
    reader.read_exact(&mut heard.body).ok()?;
    let status = *status.lock().ok()?;
    // Told of before it is answered: whoever waits for it finds the sender waiting still.
    tell.send(heard).ok()?;
    let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    reader.into_inner().write_all(answer.as_bytes()).ok()
}
