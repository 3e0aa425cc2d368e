//! How `object_store` asks an object store: by the HTTP client that the command line has anyway, whose TLS
//! is rustls with ring. Its own would bring another TLS provider and HTTP/2.

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::BodyExt;
use object_store::ClientConfigKey;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService,
};
use trireme_shared::limits;
use ureq::Agent;
use ureq::http::{Request, Response};

#[derive(Debug)]
pub struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let plain = options.get_config_value(&ClientConfigKey::AllowHttp);
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // What a redirect names is not what was signed.
            .max_redirects(0)
            .https_only(plain.as_deref() != Some("true"))
            .timeout_connect(Some(limits::CONNECT_DEADLINE))
            .timeout_global(Some(limits::EXPORT_STORE_DEADLINE))
            .user_agent(concat!("cluster/", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(HttpClient::new(Service(config.new_agent())))
    }
}

#[derive(Debug)]
struct Service(Agent);

#[async_trait]
impl HttpService for Service {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let agent = self.0.clone();
        let asked =
            tokio::task::spawn_blocking(move || ask(&agent, Request::from_parts(parts, body)));
        asked
            .await
            .map_err(|error| HttpError::new(HttpErrorKind::Unknown, error))?
            .map_err(|error| HttpError::new(kind(&error), error))
    }
}

fn ask(agent: &Agent, request: Request<Bytes>) -> Result<HttpResponse, ureq::Error> {
    let (parts, body) = request.into_parts();
    let response = match body.is_empty() && !parts.method.as_str().starts_with('P') {
        true => agent.run(Request::from_parts(parts, ()))?,
        false => agent.run(Request::from_parts(parts, &body[..]))?,
    };
    let (parts, body) = response.into_parts();
    let mut body = body;
    let bytes = body
        .with_config()
        .limit(limits::EXPORT_FILE_BYTES_MAX)
        .read_to_vec()?;
    Ok(Response::from_parts(parts, HttpResponseBody::from(bytes)))
}

/// What `object_store` may try again: whatever was asked is safe to ask twice, as files are only created.
fn kind(error: &ureq::Error) -> HttpErrorKind {
    match error {
        ureq::Error::ConnectionFailed | ureq::Error::HostNotFound => HttpErrorKind::Connect,
        ureq::Error::Timeout(_) => HttpErrorKind::Timeout,
        ureq::Error::Io(_) => HttpErrorKind::Interrupted,
        _ => HttpErrorKind::Unknown,
    }
}
