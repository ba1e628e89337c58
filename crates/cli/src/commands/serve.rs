//! `ashlar serve`: the model over HTTP, for everything that speaks OpenAI's API.

use crate::args::Globals;
use crate::device::{self, DeviceArgs};
use crate::exit::{CommandResult, Failure, OrUsage, Outcome};
use crate::hub;
use crate::log::LogArgs;
use crate::output;
use crate::sampling::SamplingArgs;
use anyhow::{Context, anyhow};
use ashlar_runtime::engine::{Engine, EngineOptions};
use ashlar_runtime::prefixes::PrefixOptions;
use ashlar_runtime::{Chat, OpenOptions, fingerprint};
use ashlar_server::{Defaults, Served, ServerOptions, Worker, serve};
use ashlar_tensor::Silent;
use clap::Args;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::ctrl_c;
use tokio::signal::unix::{SignalKind, signal};

/// Serve a model over HTTP: OpenAI's API, a page to chat on, metrics
///
/// Point a client at http://HOST:PORT/v1. Several requests are answered at once; those that find no place wait in a queue of
/// --queue, and only when that is full the answer is 429 with Retry-After. A request that can never fit is refused at once.
/// Ctrl-C lets running requests end (for --grace seconds); a second one ends the process.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  ashlar serve Qwen3-30B-A3B-4bit
  ashlar serve Qwen3-30B-A3B-4bit --kv-dir ~/.cache/ashlar/kv --kv-dir-size 20GiB
  ashlar serve Qwen3-30B-A3B-4bit --host 0.0.0.0 --key-file key.txt --max-sequences 16 --kv-budget 8GiB
  curl http://127.0.0.1:8080/v1/chat/completions -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}]}'")]
pub struct Serve {
    /// A pack or a checkpoint folder
    pub src: PathBuf,
    /// Address to listen on; anything but this machine's own is open to others: give a key
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    pub host: IpAddr,
    /// Port to listen on; 0 for any free one, which is told
    #[arg(long, value_name = "N", default_value_t = 8080)]
    pub port: u16,
    /// The name that clients see [default: the folder's]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// A file with the key that clients must send as `Authorization: Bearer KEY` [default: none is asked for]
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// The origin whose web pages may call, or * for all [default: none but the server's own page]
    #[arg(long, value_name = "ORIGIN")]
    pub cors: Option<String>,
    /// Requests that are answered at the same time
    #[arg(long, value_name = "N", default_value = "8")]
    pub max_sequences: NonZeroUsize,
    /// Requests that may wait for that
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub queue: usize,
    /// Tokens that prompt and answer of one request may have together [default: 4096, or what the model was made for if less]
    #[arg(long, value_name = "N")]
    pub context: Option<usize>,
    /// Tokens that go through the model at once
    #[arg(long, value_name = "N", default_value_t = NonZeroUsize::new(ashlar_runtime::DEFAULT_CHUNK).unwrap_or(NonZeroUsize::MIN))]
    pub chunk: NonZeroUsize,
    /// Of them, tokens of prompts while others are being answered, so that these keep their pace
    #[arg(long, value_name = "N", default_value = "64")]
    pub shared_chunk: NonZeroUsize,
    /// Memory that keys and values of all requests may take, such as 8GiB [default: as much as --max-sequences full contexts]
    #[arg(long, value_name = "BYTES", value_parser = ashlar_recipe::parse_bytes)]
    pub kv_budget: Option<u64>,
    /// A folder in which beginnings of texts are kept, so that a restart need not read long prompts again [default: none]
    #[arg(long, value_name = "DIR")]
    pub kv_dir: Option<PathBuf>,
    /// Bytes of that folder; what was used longest ago goes first
    #[arg(long, value_name = "BYTES", default_value = "8GiB", value_parser = ashlar_recipe::parse_bytes)]
    pub kv_dir_size: u64,
    /// The largest request
    #[arg(long, value_name = "BYTES", default_value = "16MiB", value_parser = ashlar_recipe::parse_bytes)]
    pub max_body: u64,
    /// Seconds a client may take to send a request
    #[arg(long, value_name = "S", default_value_t = 30)]
    pub read_timeout: u64,
    /// Seconds an answer may take
    #[arg(long, value_name = "S", default_value_t = 3600)]
    pub answer_timeout: u64,
    /// Connections at the same time; more wait
    #[arg(long, value_name = "N", default_value = "512")]
    pub connections: NonZeroUsize,
    /// Seconds that running requests may go on after Ctrl-C
    #[arg(long, value_name = "S", default_value_t = 30)]
    pub grace: u64,
    #[command(flatten)]
    pub log: LogArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

impl Serve {
    /// Serves until it is told to stop.
    ///
    /// # Errors
    /// If the model cannot be opened, or the address cannot be listened on.
    pub fn run(&self, globals: Globals) -> CommandResult {
        crate::model::check_path(&self.src)?;
        self.log.start(globals.quiet);
        let key = self.key()?;
        // Before the model is loaded: a taken port should be told at once.
        let address = SocketAddr::new(self.host, self.port);
        let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}")).or_usage()?;
        let options = OpenOptions {
            context: self.context,
            chunk: self.chunk.get(),
            sequences: self.max_sequences.get(),
            kv_budget: self.kv_budget,
            ..self.device.options()?
        };
        let model = device::open(&self.src, &options, globals)?;
        let chosen = self.sampling.choose(model.dir())?;
        let chat = Chat::open(model.dir(), model.config()).map_err(|e| e.to_string());
        let engine_options =
            EngineOptions { queue: self.queue, chunk: self.chunk.get(), shared_chunk: self.shared_chunk.get() };
        let mut engine = Engine::new(model, engine_options).map_err(device::failure)?;
        if let Some(dir) = &self.kv_dir {
            let model = fingerprint(&hub::local(&self.src)?, &Silent).map_err(device::failure)?;
            let options = PrefixOptions { dir: dir.clone(), limit: self.kv_dir_size, model };
            engine.keep_prefixes(&options).map_err(device::failure)?;
        }
        let model = engine.model();
        let served = Served {
            tokenizer: Arc::clone(engine.tokenizer()),
            chat,
            context: model.capacity(),
            places: engine.places(),
            holdings: model.holdings().to_vec(),
            caches: model.cache_places().to_vec(),
        };
        let name = self.name.clone().unwrap_or_else(|| self.folder());
        let local = listener.local_addr().context("the address that is listened on")?;
        if !globals.quiet {
            output::say(&format!(
                "{name}: http://{local}/v1 (page: http://{local}/), {}, context {}",
                engine.model().device(),
                served.context
            ));
            output::say(&format!(
                "sampling where a request does not say: {}",
                chosen.told_of_requests(self.sampling.seed)
            ));
            if let Err(why) = &served.chat {
                output::say(&format!("note: only /v1/completions: {why}"));
            }
            if key.is_none() && !self.host.is_loopback() {
                output::say("warning: anyone who reaches this address may use the model; --key-file asks for a key");
            }
        }
        let options = ServerOptions {
            model: name,
            key,
            cors: self.cors.clone(),
            max_body: usize::try_from(self.max_body).unwrap_or(usize::MAX),
            read_timeout: Duration::from_secs(self.read_timeout),
            answer_timeout: Duration::from_secs(self.answer_timeout),
            connections: self.connections.get(),
            grace: Duration::from_secs(self.grace),
            defaults: Defaults { sampling: chosen.sampling, seed: self.sampling.seed },
        };
        let worker = Worker::start(engine).context("no thread for the engine")?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .context("no threads for connections")?;
        runtime.block_on(serve(listener, worker, served, options, stopped())).context("serving")?;
        Ok(Outcome::Done)
    }

    fn folder(&self) -> String {
        let full = self.src.canonicalize().unwrap_or_else(|_| self.src.clone());
        full.file_name().map_or_else(|| "model".into(), |n| n.to_string_lossy().into_owned())
    }

    fn key(&self) -> Result<Option<String>, Failure> {
        let Some(file) = &self.key_file else { return Ok(None) };
        let text =
            std::fs::read_to_string(file).with_context(|| format!("cannot read the key from {}", file.display()));
        let key = text.map_err(Failure::usage)?.trim().to_owned();
        if key.is_empty() {
            return Err(Failure::usage(anyhow!("{}: there is no key in it", file.display())));
        }
        Ok(Some(key))
    }
}

/// Ends with the first Ctrl-C or SIGTERM; the second Ctrl-C ends the process.
async fn stopped() {
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut signals) => drop(signals.recv().await),
            // Nobody may listen: Ctrl-C is left.
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = ctrl_c() => {}
        () = terminated => {}
    }
    tokio::spawn(async {
        if ctrl_c().await.is_ok() {
            std::process::exit(130);
        }
    });
}
