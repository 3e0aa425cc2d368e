//! An S3 of as much as an export asks of it: create-if-absent, read, list by pages.

use super::*;
use crate::cmd::export::s3::Connector;
use object_store::aws::AmazonS3Builder;
use object_store::{BackoffConfig, RetryConfig};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Mutex;
use std::time::Duration;

const PAGE: usize = 2;

#[derive(Default)]
struct Bucket {
    objects: BTreeMap<String, Vec<u8>>,
    /// Puts that take effect and are answered 500.
    doubtful: u32,
    asked: Vec<String>,
}

type Shared = Arc<Mutex<Bucket>>;

fn serve(bucket: Shared) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client that leaves is none of its business.
            let _ = answer(stream, &bucket);
        }
    });
    url
}

fn answer(stream: TcpStream, bucket: &Shared) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let method = words.next().unwrap_or_default().to_owned();
    let target = words.next().unwrap_or_default().to_owned();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(": ") else {
            break;
        };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let length = headers
        .get("content-length")
        .map_or(0, |n| n.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let (status, body) = match headers.contains_key("authorization") {
        true => act(
            &method,
            &target,
            &headers,
            body,
            &mut bucket.lock().unwrap(),
        ),
        false => (403, Vec::new()),
    };
    let mut stream = reader.into_inner();
    write!(
        stream,
        "HTTP/1.1 {status} -\r\ncontent-length: {}\r\netag: \"e\"\r\nlast-modified: Fri, 27 Nov 2026 \
         10:00:00 GMT\r\nconnection: close\r\n\r\n",
        body.len()
    )?;
    stream.write_all(&body)
}

fn act(
    method: &str,
    target: &str,
    headers: &BTreeMap<String, String>,
    body: Vec<u8>,
    bucket: &mut Bucket,
) -> (u16, Vec<u8>) {
    bucket.asked.push(format!("{method} {target}"));
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let key = path.trim_start_matches("/b").trim_start_matches('/');
    match method {
        "PUT" if headers.get("if-none-match").map(String::as_str) != Some("*") => (400, Vec::new()),
        "PUT" if bucket.objects.contains_key(key) => (412, Vec::new()),
        "PUT" => {
            bucket.objects.insert(key.to_owned(), body);
            let doubtful = bucket.doubtful > 0;
            bucket.doubtful = bucket.doubtful.saturating_sub(1);
            (if doubtful { 500 } else { 200 }, Vec::new())
        }
        "GET" if query.contains("list-type=2") => (200, list(query, bucket).into_bytes()),
        "GET" => match bucket.objects.get(key) {
            Some(bytes) => (200, bytes.clone()),
            None => (404, Vec::new()),
        },
        _ => (405, Vec::new()),
    }
}

fn list(query: &str, bucket: &Bucket) -> String {
    let of = |name: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let found = pairs.find(|(known, _)| *known == name);
        found
            .map(|(_, value)| value.replace("%2F", "/"))
            .unwrap_or_default()
    };
    let (prefix, after) = (of("prefix"), of("continuation-token"));
    let all = bucket.objects.iter();
    let left = all.filter(|(key, _)| key.starts_with(&prefix) && **key > after);
    let left: Vec<_> = left.collect();
    let mut xml = String::from("<ListBucketResult>");
    for (key, bytes) in left.iter().take(PAGE) {
        let size = bytes.len();
        xml += &format!(
            "<Contents><Key>{key}</Key><Size>{size}</Size>\
             <LastModified>2026-11-27T10:00:00.000Z</LastModified><ETag>\"e\"</ETag></Contents>"
        );
    }
    if left.len() > PAGE {
        let next = left[PAGE - 1].0;
        xml += &format!("<NextContinuationToken>{next}</NextContinuationToken>");
    }
    xml + "</ListBucketResult>"
}

fn on(url: &str) -> Place {
    let backoff = BackoffConfig {
        init_backoff: Duration::from_millis(1),
        max_backoff: Duration::from_millis(1),
        ..BackoffConfig::default()
    };
    let store = AmazonS3Builder::new()
        .with_endpoint(url)
        .with_allow_http(true)
        .with_region("eu")
        .with_bucket_name("b")
        .with_access_key_id("id")
        .with_secret_access_key("secret")
        .with_retry(RetryConfig {
            backoff,
            ..RetryConfig::default()
        })
        .with_http_connector(Connector)
        .build()
        .unwrap();
    Place::new(
        Arc::new(store),
        Path::parse("eu/usage").unwrap(),
        "s3://b/eu/usage",
    )
    .unwrap()
}

#[test]
fn a_bucket_is_a_place_too_and_an_answer_that_was_lost_doubles_nothing() {
    let bucket = Shared::default();
    let url = serve(bucket.clone());
    // Another's, beside and below ours.
    for name in [
        "eu/usage-2/x",
        "eu/usage/old/usage-00000000000000009999.jsonl",
    ] {
        let mut bucket = bucket.lock().unwrap();
        bucket.objects.insert(name.into(), b"theirs".to_vec());
    }
    let log = Log::to(70);
    assert_eq!(finish(&log, &on(&url), Format::Cloudevents, 10).len(), 7);
    log.newest.set(100);
    bucket.lock().unwrap().doubtful = 1;
    let place = on(&url);
    let mut exporter = Exporter::new(log.ask(), &place, Format::Cloudevents, 20, false);
    let steps: Vec<_> = (0..3).map(|_| exporter.step().unwrap()).collect();
    assert_eq!((&steps[0], &steps[2]), (&Step::Theirs, &Step::Done));
    let bucket = bucket.lock().unwrap();
    let ours = bucket.objects.iter().filter_map(|(key, bytes)| {
        let name = key.strip_prefix("eu/usage/").filter(|n| !n.contains('/'))?;
        Some((name.to_owned(), Bytes::from(bytes.clone())))
    });
    assert_eq!(sequences(&ours.collect()), once_each(100));
    let retried = bucket.asked.iter().filter(|asked| {
        asked.starts_with("PUT") && asked.contains(&file_name(SettlementSeq(71), "jsonl"))
    });
    assert_eq!(retried.count(), 2);
}

#[test]
fn plain_http_is_refused_where_it_was_not_allowed() {
    let store = AmazonS3Builder::new()
        .with_endpoint(serve(Shared::default()))
        .with_region("eu")
        .with_bucket_name("b")
        .with_access_key_id("id")
        .with_secret_access_key("secret")
        .with_retry(RetryConfig {
            max_retries: 0,
            ..RetryConfig::default()
        })
        .with_http_connector(Connector)
        .build()
        .unwrap();
    let place = Place::new(Arc::new(store), Path::default(), "s3://b").unwrap();
    assert!(place.newest("jsonl").is_err());
}
