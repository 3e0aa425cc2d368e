//! What is sent, to receivers on this machine, and what never is.

use super::*;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;
use std::thread::JoinHandle;

const DEADLINE: Duration = Duration::from_secs(30);

fn letter() -> Letter {
    Letter {
        id: "test-t1-1".into(),
        at: 7,
        signature: "v1,c2ln".into(),
        body: "{\"a\":1}".into(),
    }
}

/// Answers one request with those bytes, and gives what was asked.
fn receiver(answer: &'static str) -> (String, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/hook?a=b", listener.local_addr().unwrap());
    let heard = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut heard = String::new();
        while !heard.ends_with(&letter().body) {
            let mut piece = [0; 1_024];
            let length = stream.read(&mut piece).unwrap();
            assert!(length > 0, "it broke off after {heard}");
            heard.push_str(std::str::from_utf8(&piece[..length]).unwrap());
        }
        stream.write_all(answer.as_bytes()).unwrap();
        heard
    });
    (url, heard)
}

#[test]
fn an_event_is_posted_with_its_headers_and_taken_by_a_2xx() {
    // The body that is announced never comes, and nobody waits for it.
    let answer = "HTTP/1.1 202 Accepted\r\ncontent-length: 99999999\r\n\r\n";
    let (url, heard) = receiver(answer);
    let courier = Courier::new(Reach::Private, DEADLINE);
    assert_eq!(courier.post(&url, &letter()), Ok(()));
    let heard = heard.join().unwrap().to_lowercase();
    for line in [
        "post /hook?a=b http/1.1\r\n",
        "content-type: application/json\r\n",
        "content-length: 7\r\n",
        "webhook-id: test-t1-1\r\n",
        "webhook-timestamp: 7\r\n",
        "webhook-signature: v1,c2ln\r\n",
    ] {
        assert!(heard.contains(line), "{line}: {heard}");
    }
}

#[test]
fn what_is_no_2xx_is_told_in_words_and_no_redirect_is_followed() {
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let moved = format!(
        "HTTP/1.1 307 Moved\r\nlocation: http://{}/\r\ncontent-length: 0\r\n\r\n",
        elsewhere.local_addr().unwrap()
    );
    for (answer, told) in [
        (
            "HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n",
            "it answered 500",
        ),
        (
            moved.leak(),
            "it answered 307, and redirects are not followed",
        ),
    ] {
        let (url, heard) = receiver(answer);
        let sent = Courier::new(Reach::Private, DEADLINE).post(&url, &letter());
        assert_eq!(sent.unwrap_err(), told);
        heard.join().unwrap();
    }
    let nobody = elsewhere.accept().unwrap_err();
    assert_eq!(nobody.kind(), ErrorKind::WouldBlock);
    for garbage in ["", "SSH-2.0-x\r\n", "HTTP/1.1 200 OK\r\nx: "] {
        let (url, heard) = receiver(garbage);
        let sent = Courier::new(Reach::Private, DEADLINE).post(&url, &letter());
        assert!(sent.is_err(), "{garbage}");
        heard.join().unwrap();
    }
}

#[test]
fn a_head_without_end_is_cut_off() {
    let answer = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "a".repeat(64 << 10));
    let (url, heard) = receiver(answer.leak());
    let sent = Courier::new(Reach::Private, DEADLINE).post(&url, &letter());
    assert!(sent.is_err());
    // It may have been cut off in the middle of its answer.
    let _ = heard.join();
}

#[test]
fn a_receiver_that_does_not_answer_is_left() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let courier = Courier::new(Reach::Private, Duration::from_millis(200));
    let sent = courier.post(&url, &letter());
    assert_eq!(sent.unwrap_err(), "it did not answer in time");
}

/// Whatever its name is, and however it is asked for: nothing is even connected to.
#[test]
fn a_private_address_is_not_connected_to() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let courier = Courier::new(Reach::Public, DEADLINE);
    for host in [
        "localhost",
        "127.0.0.1",
        "127.1",
        "0x7f000001",
        "[::ffff:127.0.0.1]",
    ] {
        let sent = courier.post(&format!("https://{host}:{port}/"), &letter());
        let why = sent.unwrap_err();
        assert!(why.contains("no public address"), "{host}: {why}");
    }
    let plain = courier.post(&format!("http://localhost:{port}/"), &letter());
    assert!(plain.is_err());
    // Plain http goes to this machine only, even where private addresses may be reached.
    let courier = Courier::new(Reach::Private, DEADLINE);
    let there = courier.post("http://10.255.255.1/", &letter());
    assert!(there.unwrap_err().contains("no public address"));
    let nobody = listener.accept().unwrap_err();
    assert_eq!(nobody.kind(), ErrorKind::WouldBlock);
}
