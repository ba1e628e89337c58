//! What the environment says, as other tools of the hub read it.

use std::path::PathBuf;

/// Where models come from and where they are kept.
#[derive(Clone)]
pub struct Settings {
    /// The hub, such as `https://huggingface.co`; `HF_ENDPOINT`.
    pub endpoint: String,
    /// For private and gated models; `HF_TOKEN`, or the file that `hf auth login` writes.
    pub token: Option<String>,
    /// The cache; `HF_HUB_CACHE`, or `hub` in `HF_HOME`.
    pub cache: PathBuf,
    /// Only what is in the cache already; `HF_HUB_OFFLINE`.
    pub offline: bool,
    /// Certificates to trust instead of Mozilla's list; `SSL_CERT_FILE`.
    pub certificates: Option<PathBuf>,
    /// Longest wait between two attempts, in seconds, unless the server asks for less.
    pub longest_wait: u64,
}

impl std::fmt::Debug for Settings {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let token = self.token.as_ref().map(|_| "…");
        f.debug_struct("Settings")
            .field("endpoint", &self.endpoint)
            .field("token", &token)
            .field("cache", &self.cache)
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

impl Settings {
    /// From the environment.
    #[must_use]
    pub fn from_env() -> Self {
        Self::from(|name| std::env::var(name).ok())
    }

    /// From any source of variables.
    pub fn from(variable: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name: &str| variable(name).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        let path = |name: &str| get(name).map(PathBuf::from);
        let user = path("HOME").or_else(|| path("USERPROFILE")).unwrap_or_default();
        let shared = path("XDG_CACHE_HOME").unwrap_or_else(|| user.join(".cache"));
        let home = path("HF_HOME").unwrap_or_else(|| shared.join("huggingface"));
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE")).unwrap_or_else(|| home.join("hub"));
        let token_file = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
        let written = || std::fs::read_to_string(token_file).ok().map(|t| t.trim().to_owned());
        let token = get("HF_TOKEN").or_else(|| get("HUGGING_FACE_HUB_TOKEN")).or_else(written);
        let endpoint = get("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            // What cannot stand in a header is no token.
            token: token.filter(|t| !t.is_empty() && t.bytes().all(|b| b.is_ascii_graphic())),
            cache,
            offline: get("HF_HUB_OFFLINE")
                .is_some_and(|v| !matches!(v.to_ascii_lowercase().as_str(), "0" | "false" | "no" | "off")),
            certificates: path("SSL_CERT_FILE"),
            longest_wait: 60,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Settings {
        let pairs: Vec<(String, String)> = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Settings::from(move |name| pairs.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone()))
    }

    #[test]
    fn the_cache_is_where_other_tools_look_for_it() {
        assert_eq!(of(&[("HOME", "/u")]).cache, PathBuf::from("/u/.cache/huggingface/hub"));
        assert_eq!(of(&[("HOME", "/u"), ("HF_HOME", "/h")]).cache, PathBuf::from("/h/hub"));
        assert_eq!(of(&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c")]).cache, PathBuf::from("/c"));
        assert_eq!(of(&[("XDG_CACHE_HOME", "/x")]).cache, PathBuf::from("/x/huggingface/hub"));
    }

    #[test]
    fn a_token_comes_from_the_variable_or_the_file_and_is_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().to_str().unwrap();
        assert_eq!(of(&[("HF_HOME", home)]).token, None);
        std::fs::write(dir.path().join("token"), "hf_file\n").unwrap();
        assert_eq!(of(&[("HF_HOME", home)]).token.as_deref(), Some("hf_file"));
        let both = of(&[("HF_HOME", home), ("HF_TOKEN", "hf_variable")]);
        assert_eq!(both.token.as_deref(), Some("hf_variable"));
        assert!(!format!("{both:?}").contains("hf_variable"));
        assert_eq!(of(&[("HF_TOKEN", "a\r\nHost: b"), ("HF_HOME", "/none")]).token, None);
    }

    #[test]
    fn endpoint_and_offline_mode_are_read() {
        assert_eq!(of(&[("HF_ENDPOINT", "http://127.0.0.1:1/")]).endpoint, "http://127.0.0.1:1");
        assert!(of(&[("HF_HUB_OFFLINE", "1")]).offline);
        assert!(!of(&[("HF_HUB_OFFLINE", "0")]).offline && !of(&[]).offline);
    }
}
