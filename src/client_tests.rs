//! The client against scripted servers.

use super::*;
use std::io::Write;
use std::net::TcpListener;

/// Answers one connection after another with the given bytes, and gives its address; an empty
/// answer breaks the connection off. What was asked comes out of the second.
pub fn serve_seen(answers: Vec<String>) -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (seen, asked) = sync_channel(answers.len());
    std::thread::spawn(move || {
        for answer in answers {
            let (mut socket, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(socket.try_clone().unwrap());
            let (mut length, mut head) = (0, String::new());
            loop {
                let mut line = String::new();
                lines.read_line(&mut line).unwrap();
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                if line.trim().is_empty() {
                    break;
                }
                head.push_str(&line);
            }
            let mut body = vec![0; length];
            lines.read_exact(&mut body).unwrap();
            // Not every test looks at what was asked.
            let _ = seen.send(head);
            socket.write_all(answer.as_bytes()).unwrap();
        }
    });
    (format!("http://{address}"), asked)
}

pub fn serve(answers: Vec<String>) -> String {
    serve_seen(answers).0
}

pub fn answer(status: &str, kind: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{body}",
        body.len()
    )
}

fn dead_address() -> String {
    // Bound and dropped: nothing listens there now.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

#[test]
fn the_next_address_is_tried_only_where_one_cannot_be_reached() {
    let live = serve(vec![answer("200 OK", "application/json", "[1,2]")]);
    let client = Client::new(&[dead_address(), live], None);
    assert_eq!(client.get::<Vec<u32>>("/x").unwrap(), [1, 2]);

    let refusing = serve(vec![answer(
        "401 Unauthorized",
        "application/json",
        r#"{"error":{"message":"wrong key"}}"#,
    )]);
    // The second would hang the test's server if it were asked: it answers nothing.
    let client = Client::new(&[refusing, dead_address()], Some("k".into()));
    let error = client.get::<Vec<u32>>("/x").unwrap_err().to_string();
    assert!(
        error.contains("401") && error.contains("wrong key"),
        "{error}"
    );
}

fn json(status: &str, body: &str) -> String {
    answer(status, "application/json", body)
}

fn refused(status: &str, code: &str) -> String {
    json(
        status,
        &format!(r#"{{"error":{{"message":"m","code":"{code}"}}}}"#),
    )
}

/// The idempotency key in a request's head.
fn key_in(head: &str) -> Option<String> {
    let mut lines = head.lines();
    let key = lines.find_map(|l| {
        l.to_lowercase()
            .strip_prefix("idempotency-key: ")
            .map(str::to_owned)
    })?;
    Some(key.trim().to_owned())
}

#[test]
fn a_question_goes_to_the_next_address_where_one_breaks_off_or_has_no_leader() {
    let breaks = serve(vec![String::new()]);
    let leaderless = serve(vec![refused("503 Service Unavailable", "no_leader")]);
    let live = serve(vec![json("200 OK", "7")]);
    let client = Client::new(&[breaks, leaderless, live], None);
    assert_eq!(client.get::<u32>("/x").unwrap(), 7);
}

#[test]
fn the_address_that_answered_is_asked_first_the_next_time() {
    let other = serve(vec![String::new(), json("200 OK", "9")]);
    let live = serve(vec![json("200 OK", "1"), json("200 OK", "2")]);
    let client = Client::new(&[other, live], None);
    assert_eq!(client.get::<u32>("/x").unwrap(), 1);
    assert_eq!(client.get::<u32>("/x").unwrap(), 2);
}

#[test]
fn a_write_in_doubt_is_asked_again_under_the_same_key() {
    let (first, asked_first) = serve_seen(vec![json("200 OK", r#"{"key":"k1.a"}"#), String::new()]);
    let (second, asked_second) = serve_seen(vec![refused("503 Service Unavailable", "in_doubt")]);
    let (third, asked_third) = serve_seen(vec![json("200 OK", "5")]);
    let client = Client::new(&[first, second, third], None);
    assert_eq!(client.post::<u32>("/x", &Value::Null).unwrap(), 5);
    assert_eq!(
        key_in(&asked_first.recv().unwrap()),
        None,
        "it asks for a key"
    );
    for asked in [asked_first, asked_second, asked_third] {
        assert_eq!(key_in(&asked.recv().unwrap()).as_deref(), Some("k1.a"));
    }
}

#[test]
fn a_write_that_stays_in_doubt_names_its_key_and_is_bounded() {
    let answers = vec![String::new(); limits::CLIENT_WRITE_ROUNDS];
    let (url, asked) = serve_seen(answers);
    let client = Client::new(&[url], None).with_request_id(Some("mine".into()));
    let error = client.delete::<u32>("/x").unwrap_err();
    assert!(error.to_string().contains("request id mine"), "{error:?}");
    assert_eq!(asked.iter().count(), limits::CLIENT_WRITE_ROUNDS);
}

#[test]
fn a_write_that_is_refused_is_not_asked_again() {
    let (url, asked) = serve_seen(vec![refused("409 Conflict", "done_before")]);
    let client = Client::new(&[url], None).with_request_id(Some("mine".into()));
    let error = client.delete::<u32>("/x").unwrap_err().to_string();
    assert!(error.contains("409"), "{error}");
    assert_eq!(asked.iter().count(), 1);
}

#[test]
fn a_stream_gives_its_events_then_ends() {
    let body = "data: {\"a\":1}\n\n: ping\n\ndata: {\"a\":2}\n\ndata: [DONE]\n\n";
    let url = serve(vec![answer("200 OK", "text/event-stream", body)]);
    let stream = Client::new(&[url], None)
        .stream("/v1/x", &Value::Null)
        .unwrap();
    let mut seen = Vec::new();
    while let Next::Event(event) = stream.next(Duration::from_secs(10)).unwrap() {
        seen.push(event.data["a"].as_i64().unwrap());
    }
    assert_eq!(seen, [1, 2]);
}

#[test]
fn a_stream_that_breaks_or_fails_is_an_error() {
    let cut = "data: {\"a\":1}\n\n";
    let failed = "data: {\"error\":{\"message\":\"replica lost\"}}\n\ndata: [DONE]\n\n";
    for (body, why, good) in [(cut, "ended early", 1), (failed, "replica lost", 0)] {
        let url = serve(vec![answer("200 OK", "text/event-stream", body)]);
        let stream = Client::new(&[url], None)
            .stream("/v1/x", &Value::Null)
            .unwrap();
        for _ in 0..good {
            assert!(matches!(
                stream.next(Duration::from_secs(10)),
                Ok(Next::Event(_))
            ));
        }
        let Err(error) = stream.next(Duration::from_secs(10)) else {
            panic!("no error for {why}");
        };
        assert!(format!("{error:#}").contains(why), "{error:#}");
    }
}

#[test]
fn addresses_are_taken_as_people_write_them() {
    assert_eq!(base("127.0.0.1:80/"), "http://127.0.0.1:80");
    assert_eq!(base("https://a.example/v1"), "https://a.example");
}
