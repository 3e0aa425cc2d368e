//! Reads and parses request bodies.
//!
//! Keeps true: a body is bounded in bytes, time and depth (`serde_json` stops at 128 levels);
//! whatever is wrong with it is a 4xx; large ones are parsed off the async runtime; and a refused
//! one is still read, within bounds, so that its sender sees the answer instead of a reset.

use super::error::ApiError;
use axum::body::Body;
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use serde_json::Value;
use sha2::{Digest, Sha256};
use trireme_shared::limits;

/// Parses a JSON body and makes a `T` of it.
pub async fn parse<T: Send + 'static>(
    headers: &HeaderMap,
    body: Body,
    make: fn(Value) -> Result<T, ApiError>,
) -> Result<T, ApiError> {
    let bytes = admitted(headers, body).await?;
    parsed(bytes, make).await
}

/// Like `parse`, and gives the SHA-256 of the body's bytes.
pub async fn parse_hashed<T: Send + 'static>(
    headers: &HeaderMap,
    body: Body,
    make: fn(Value) -> Result<T, ApiError>,
) -> Result<(T, [u8; 32]), ApiError> {
    let bytes = admitted(headers, body).await?;
    let digest = Sha256::digest(&bytes).into();
    Ok((parsed(bytes, make).await?, digest))
}

async fn admitted(headers: &HeaderMap, body: Body) -> Result<Bytes, ApiError> {
    match admit(headers) {
        Ok(()) => read(body).await,
        Err(error) => {
            discard(body).await;
            Err(error)
        }
    }
}

async fn parsed<T: Send + 'static>(
    bytes: Bytes,
    make: fn(Value) -> Result<T, ApiError>,
) -> Result<T, ApiError> {
    if bytes.len() <= limits::INLINE_JSON_BYTES_MAX {
        return from_json(&bytes, make);
    }
    tokio::task::spawn_blocking(move || from_json(&bytes, make))
        .await
        .unwrap_or_else(|_| Err(ApiError::internal("The gateway failed to parse the body.")))
}

/// Reads a body that will not be used, up to the bounds.
pub async fn discard(body: Body) {
    let reading = async {
        let mut stream = body.into_data_stream();
        let mut bytes = 0;
        while let Some(Ok(piece)) = stream.next().await {
            bytes += piece.len();
            if bytes > limits::HTTP_DISCARD_BYTES_MAX {
                return;
            }
        }
    };
    // Out of time is as good as read: the answer is sent either way.
    let _ = tokio::time::timeout(limits::HTTP_DISCARD_DEADLINE, reading).await;
}

fn admit(headers: &HeaderMap) -> Result<(), ApiError> {
    let media = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .map(str::trim);
    if !media.is_some_and(|media| media.eq_ignore_ascii_case("application/json")) {
        return Err(ApiError::media_type());
    }
    let compressed = headers
        .get_all(header::CONTENT_ENCODING)
        .iter()
        .any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity"));
    if compressed {
        return Err(ApiError::content_encoding());
    }
    let length = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.parse::<u64>().ok());
    if length.is_some_and(|length| length > limits::HTTP_BODY_BYTES_MAX as u64) {
        return Err(ApiError::too_large(limits::HTTP_BODY_BYTES_MAX));
    }
    Ok(())
}

async fn read(body: Body) -> Result<Bytes, ApiError> {
    let reading = async {
        let mut stream = body.into_data_stream();
        let mut bytes = BytesMut::new();
        while let Some(piece) = stream.next().await {
            let piece = piece.map_err(|_| ApiError::body("The request body broke off."))?;
            if bytes.len() + piece.len() > limits::HTTP_BODY_BYTES_MAX {
                discard(Body::from_stream(stream)).await;
                return Err(ApiError::too_large(limits::HTTP_BODY_BYTES_MAX));
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes.freeze())
    };
    tokio::time::timeout(limits::HTTP_BODY_DEADLINE, reading)
        .await
        .unwrap_or_else(|_| Err(ApiError::body_too_slow()))
}

fn from_json<T>(bytes: &[u8], make: fn(Value) -> Result<T, ApiError>) -> Result<T, ApiError> {
    // The error's own text may repeat the input, so only its place is told.
    let value = serde_json::from_slice(bytes).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        ApiError::body(format!(
            "The request body is not valid JSON (line {line}, column {column}): check quotes and \
             commas; text must be UTF-8, numbers finite, and nesting below 128 levels."
        ))
    })?;
    make(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_json_within_the_limit_is_admitted() {
        let with = |pairs: &[(header::HeaderName, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.insert(name.clone(), value.parse().unwrap());
            }
            admit(&headers).map_err(|error| error.status.as_u16())
        };
        assert_eq!(with(&[]), Err(415));
        assert_eq!(with(&[(header::CONTENT_TYPE, "text/plain")]), Err(415));
        let json = (header::CONTENT_TYPE, "Application/JSON; charset=utf-8");
        assert_eq!(with(std::slice::from_ref(&json)), Ok(()));
        let gzip = (header::CONTENT_ENCODING, "gzip");
        assert_eq!(with(&[json.clone(), gzip]), Err(415));
        let length = (header::CONTENT_LENGTH, "4194305");
        assert_eq!(with(&[json, length]), Err(413));
    }

    #[test]
    fn hostile_json_is_refused_without_repeating_it() {
        for bad in [
            &b"{"[..],
            b"{\"secret\": nan}",
            b"[1e999]",
            b"\"\\ud800\"",
            b"{\"secret\": \"\xff\xfe\"}",
            b"",
        ] {
            let error = from_json(bad, Ok).unwrap_err();
            assert_eq!(error.status, 400);
            assert!(!error.message.contains("secret"));
        }
        let deep = "[".repeat(10_000) + &"]".repeat(10_000);
        assert_eq!(from_json(deep.as_bytes(), Ok).unwrap_err().status, 400);
    }
}
