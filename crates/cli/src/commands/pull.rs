//! `ashlar pull`: a model from the Hugging Face hub into the cache.

use crate::args::Globals;
use crate::exit::{CommandResult, Failure, Outcome};
use crate::{hub, output, units};
use anyhow::anyhow;
use ashlar_hub::Repo;
use clap::Args;
use serde_json::json;

/// Download a model from the Hugging Face hub, with resume and hash check
///
/// The cache is the one that other tools of the hub use (HF_HOME), so that nothing is downloaded twice. A download that
/// broke off goes on where it stopped. HF_ENDPOINT names another hub, HF_TOKEN (or `hf auth login`) opens private and
/// gated models. Weights are taken from safetensors files, or one GGUF file; small files beside them come along.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  ashlar pull Qwen/Qwen3-30B-A3B
  ashlar pull deepseek-ai/DeepSeek-V4-Flash@main
  ashlar run hf:unsloth/Qwen3-30B-A3B-GGUF:Q4_K_M          one of several GGUF files
  ashlar run hf:Qwen/Qwen3-0.6B --chat                     every command takes hf:ORG/NAME
  ashlar plan hf:deepseek-ai/DeepSeek-V4-Flash --recipe v4-flash-2bit-experts    reads a few megabytes of headers")]
pub struct Pull {
    /// The model: ORG/NAME, ORG/NAME@REVISION with a branch, tag or commit; of several GGUF files ORG/NAME:Q4_K_M or the like
    pub model: String,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

impl Pull {
    /// Downloads, prints where it is.
    ///
    /// # Errors
    /// A name that is none, or a model that does not exist, is the user's mistake.
    pub fn run(&self, _globals: Globals) -> CommandResult {
        let repo: Repo = self.model.parse().map_err(|e| Failure::usage(anyhow!("{e}")))?;
        let snapshot = hub::open()?.pull(&repo, &hub::progress()).map_err(hub::failure)?;
        let path = snapshot.path.display();
        if self.json {
            output::print_json(&json!({
                "model": repo.to_string(),
                "commit": snapshot.commit,
                "directory": snapshot.dir.display().to_string(),
                "path": path.to_string(),
                "bytes": snapshot.bytes,
                "downloaded_bytes": snapshot.downloaded,
            }))?;
        } else {
            output::print(&format!(
                "{repo} at {}: {}, {} downloaded now\n{path}\nuse it: ashlar inspect hf:{repo}\n",
                snapshot.commit,
                units::bytes(snapshot.bytes),
                units::bytes(snapshot.downloaded),
            ))?;
        }
        Ok(Outcome::Done)
    }
}
