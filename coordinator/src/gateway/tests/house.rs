//! A gateway with one tenant, one deployment and a scripted engine.

use super::engine::Engine;
use crate::fleet::dispatch::Dispatcher;
use crate::fleet::{Fleet, FleetSetup};
use crate::gateway::{GatewayParts, GatewayState, router};
use crate::raft::group::Group;
use crate::scratch::{Scratch, group_of_one};
use crate::state::{Command, KeySettings, Outcome, TokenRole, UsageTotals};
use crate::webhooks::reach::Reach;
use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::time::Duration;
use tokio::sync::mpsc;
use tower::ServiceExt;
use trireme_shared::api::CoordinatorReport;
use trireme_shared::identity::ClusterAuthority;
use trireme_shared::ids::{CoordinatorId, GatewayLife};
use trireme_shared::model::Precision;
use trireme_shared::model::random::RandomModel;
use trireme_shared::plan::{DeploymentSpec, LinkPolicy, ModelRef};

pub const KEY: &str = "sk-tr-test";
pub const ADMIN: &str = "sk-admin-test";
pub const MODEL: &str = "tiny";
/// The tiny model's context, in tokens.
pub const CONTEXT: u32 = 256;

pub struct House {
    pub gateway: GatewayState,
    pub engine: Engine,
    pub cancels: mpsc::UnboundedReceiver<()>,
    pub group: Group,
    _dir: Scratch,
}

/// An answer read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: axum::http::HeaderMap,
    pub text: String,
}

impl Answer {
    pub async fn read(response: Response<Body>) -> Self {
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Self {
            status: parts.status,
            headers: parts.headers,
            text: String::from_utf8(bytes.to_vec()).unwrap(),
        }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    /// The error's code, after checking OpenAI's shape.
    pub fn error_code(&self) -> Option<String> {
        let error = &self.json()["error"];
        assert!(error["message"].as_str().is_some_and(|m| !m.is_empty()));
        assert!(error["type"].is_string(), "{}", self.text);
        for name in ["param", "code"] {
            let value = &error[name];
            assert!(value.is_null() || value.is_string(), "{}", self.text);
            assert!(error.get(name).is_some(), "{}", self.text);
        }
        error["code"].as_str().map(str::to_owned)
    }

    /// The `data:` payloads of an event stream, its framing checked.
    pub fn events(&self) -> Vec<String> {
        assert_eq!(
            self.headers["content-type"],
            "text/event-stream; charset=utf-8"
        );
        let body = self
            .text
            .strip_suffix("\n\n")
            .expect("a blank line ends it");
        body.split("\n\n")
            .map(|event| {
                let data = event.strip_prefix("data: ").expect(event);
                assert!(!data.contains('\n'), "{data}");
                data.to_owned()
            })
            .collect()
    }

    /// The stream's chunks, after checking that `[DONE]` and nothing else follows them.
    pub fn chunks(&self) -> Vec<Value> {
        let mut events = self.events();
        assert_eq!(events.pop().as_deref(), Some("[DONE]"));
        events
            .iter()
            .map(|event| serde_json::from_str(event).unwrap())
            .collect()
    }
}

impl House {
    pub async fn new() -> Self {
        let dir = Scratch::new();
        let path = dir.path().join("tiny.gguf");
        let mut model = RandomModel::tiny(1);
        model.context = CONTEXT;
        model.write_gguf(&path).unwrap();
        let group = group_of_one(dir.path()).await;
        let hash = |key: &str| Sha256::digest(key.as_bytes()).into();
        for command in [
            Command::Bootstrap {
                name: "test".into(),
                cluster: crate::state::ClusterId([1; 16]),
                authority_pem: ClusterAuthority::new("test").unwrap().to_pem(),
                admin_key_hash: hash(ADMIN),
            },
            Command::CreateKey {
                tenant: "acme".into(),
                key_hash: hash(KEY),
                settings: KeySettings::default(),
            },
            Command::PutDeployment {
                spec: DeploymentSpec {
                    model: ModelRef {
                        name: MODEL.into(),
                        source: path.display().to_string(),
                        sha256: None,
                    },
                    tensor_parallel: 1,
                    pipeline_parallel: 1,
                    replicas: 1,
                    link: LinkPolicy::Auto,
                    precision: Precision::default(),
                },
            },
        ] {
            group.propose(command).await.unwrap();
        }
        let fleet = Fleet::new(FleetSetup {
            group: group.clone(),
            this: CoordinatorReport {
                id: CoordinatorId(1),
                pid: 1,
                http: String::new(),
                control: String::new(),
            },
            cache_dir: Some(dir.path().to_owned()),
        });
        let (dispatcher, queue) = Dispatcher::new();
        let (engine, cancels) = Engine::serve(queue);
        let gateway = GatewayState::new(GatewayParts {
            dispatcher,
            fleet,
            group: group.clone(),
            cache_dir: Some(dir.path().to_owned()),
            traces: Default::default(),
            reach: Reach::Public,
        })
        .unwrap();
        Self {
            gateway,
            engine,
            cancels,
            group,
            _dir: dir,
        }
    }

    /// A life of another coordinator's gateway, which ends when somebody says so.
    pub async fn life_elsewhere(&self) -> GatewayLife {
        let secret_hash = [77; 32];
        let invite = Command::CreateToken {
            secret_hash,
            role: TokenRole::Learner,
            provider: None,
            uses: 1,
            expires_at: u64::MAX,
        };
        let Outcome::Token(token) = self.group.propose(invite).await.unwrap() else {
            panic!("no token");
        };
        let join = Command::JoinCoordinator { token, secret_hash };
        let Outcome::Coordinator(coordinator) = self.group.propose(join).await.unwrap() else {
            panic!("no coordinator");
        };
        let open = Command::OpenGateway { coordinator };
        match self.group.propose(open).await.unwrap() {
            Outcome::Gateway(life) => life,
            other => panic!("{other:?}"),
        }
    }

    pub async fn send(&self, request: Request<Body>) -> Response<Body> {
        router(self.gateway.clone()).oneshot(request).await.unwrap()
    }

    /// A request as it is, read to its end.
    pub async fn ask(&self, request: Request<Body>) -> Answer {
        Answer::read(self.send(request).await).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.ask(post(path, KEY, body.to_string())).await
    }

    pub async fn get(&self, path: &str, key: &str) -> Answer {
        let request = Request::get(path).header("authorization", format!("Bearer {key}"));
        self.ask(request.body(Body::empty()).unwrap()).await
    }

    /// Asks the admin API; a body that is null is none.
    pub async fn admin(&self, method: &str, path: &str, body: Value) -> Answer {
        self.ask_as(ADMIN, method, path, body).await
    }

    /// Asks under a key; a body that is null is none.
    pub async fn ask_as(&self, key: &str, method: &str, path: &str, body: Value) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        request = request.header("authorization", format!("Bearer {key}"));
        request = request.header("content-type", "application/json");
        let content = match body {
            Value::Null => Body::empty(),
            body => Body::from(body.to_string()),
        };
        self.ask(request.body(content).unwrap()).await
    }

    /// As `admin`, and it must be carried out.
    pub async fn done(&self, method: &str, path: &str, body: Value) -> Value {
        let answer = self.admin(method, path, body).await;
        assert!(
            answer.status.is_success(),
            "{method} {path}: {}",
            answer.text
        );
        answer.json()
    }

    /// A new key of a tenant, with these settings.
    pub async fn key(&self, tenant: &str, extra: Value) -> String {
        let mut body = json!({"tenant": tenant});
        merge(&mut body, extra);
        let made = self.done("POST", "/admin/v1/keys", body).await;
        made["key"].as_str().unwrap().to_owned()
    }

    /// A chat under a key and, perhaps, an id of the caller's.
    pub async fn chat_as(&self, key: &str, id: Option<&str>, extra: Value) -> Answer {
        let mut request = post("/v1/chat/completions", key, chat_body(extra).to_string());
        if let Some(id) = id {
            let id = id.parse().unwrap();
            request.headers_mut().insert("x-request-id", id);
        }
        self.ask(request).await
    }

    /// A chat with one user message "hi" and these fields.
    pub async fn chat(&self, extra: Value) -> Answer {
        self.post("/v1/chat/completions", chat_body(extra)).await
    }

    pub async fn complete(&self, prompt: Value, extra: Value) -> Answer {
        let mut body = json!({"model": MODEL, "prompt": prompt});
        merge(&mut body, extra);
        self.post("/v1/completions", body).await
    }

    /// What was recorded in all, once nothing runs any more.
    pub async fn recorded(&self) -> UsageTotals {
        assert!(self.gateway.idle(Duration::from_secs(30)).await);
        self.group.read(|state| {
            let totals = state.usage().map(|(_, totals)| *totals);
            totals.fold(UsageTotals::default(), UsageTotals::plus)
        })
    }
}

pub fn post(path: &str, key: &str, body: impl Into<Body>) -> Request<Body> {
    Request::post(path)
        .header("authorization", format!("Bearer {key}"))
        .header("content-type", "application/json")
        .body(body.into())
        .unwrap()
}

pub fn chat_body(extra: Value) -> Value {
    let mut body = json!({"model": MODEL, "messages": [{"role": "user", "content": "hi"}]});
    merge(&mut body, extra);
    body
}

/// Tokens of [`chat_body`]'s prompt as the tiny model's template renders it.
pub fn chat_prompt() -> Vec<u32> {
    let mut ids = vec![1];
    ids.extend(super::engine::ids(b"user\nhi"));
    ids.push(2);
    ids.extend(super::engine::ids(b"\n"));
    ids.push(1);
    ids.extend(super::engine::ids(b"assistant\n"));
    ids
}

fn merge(body: &mut Value, extra: Value) {
    for (name, value) in extra.as_object().unwrap() {
        body[name] = value.clone();
    }
}
