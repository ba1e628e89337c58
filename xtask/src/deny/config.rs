//! The two lists of `deny.toml` that we read: `[licenses] allow = […]` and `[bans] deny = […]`.

/// What `deny.toml` allows and bans.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// SPDX identifiers.
    pub allow: Vec<String>,
    /// Crate names.
    pub banned: Vec<String>,
}

impl Config {
    /// Reads the lists; every other key is cargo-deny's own.
    pub fn parse(text: &str) -> Self {
        Self { allow: list(text, "licenses", "allow"), banned: list(text, "bans", "deny") }
    }
}

/// The quoted strings of the array `key` in `[section]`; for tables such as `{ crate = "x", reason = "…" }` the first.
fn list(text: &str, section: &str, key: &str) -> Vec<String> {
    let mut here = false;
    let mut open = false;
    let mut out = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if !open && line.starts_with('[') {
            here = line == format!("[{section}]");
            continue;
        }
        let mut rest = line;
        if !open && here {
            let Some((name, value)) = line.split_once('=') else { continue };
            open = name.trim() == key;
            rest = value;
        }
        if open {
            for item in rest.split('{') {
                let quoted: Vec<_> = item.split('"').skip(1).step_by(2).map(str::to_owned).collect();
                let take = if rest.contains('{') { 1 } else { quoted.len() };
                out.extend(quoted.into_iter().take(take));
            }
            open = !rest.ends_with(']');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_lists_are_read_and_comments_are_not() {
        let text = "[graph]\nall = true\n[licenses]\nversion = 2\nallow = [\n  \"MIT\", # \"GPL\"\n  \"Zlib\",\n]\n\
                    [bans]\nallow = [\"x\"]\ndeny = [\n  { crate = \"openssl\", reason = \"no\" },\n  \"serde_yaml\",\n]\n";
        let want =
            Config { allow: vec!["MIT".into(), "Zlib".into()], banned: vec!["openssl".into(), "serde_yaml".into()] };
        assert_eq!(Config::parse(text), want);
    }

    #[test]
    fn a_list_on_one_line_is_read() {
        assert_eq!(Config::parse("[licenses]\nallow = [\"MIT\", \"ISC\"]\nother = [\"GPL\"]").allow, ["MIT", "ISC"]);
    }
}
