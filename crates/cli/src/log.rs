//! The log of a server: lines for people, or one JSON object each, on stderr.

use clap::{Args, ValueEnum};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// What is logged, and how.
#[derive(Args, Clone, Copy, Debug)]
pub struct LogArgs {
    /// How log lines on stderr are written
    #[arg(long, value_enum, default_value = "text")]
    pub log_format: LogFormat,
    /// What is logged: errors only, or also warnings, requests (info), connections (debug)
    #[arg(long, value_enum, default_value = "info")]
    pub log_level: LogLevel,
}

/// A form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people
    Text,
    /// One JSON object per line
    Json,
}

/// The least important of what is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// What failed
    Error,
    /// What may be wrong
    Warn,
    /// Every request, and what the server does
    Info,
    /// Connections too
    Debug,
    /// Nothing
    Off,
}

impl LogArgs {
    /// Logs from now on. `quiet`: errors and warnings only.
    pub fn start(self, quiet: bool) {
        let level = match self.log_level {
            LogLevel::Off => LevelFilter::OFF,
            LogLevel::Error => LevelFilter::ERROR,
            LogLevel::Warn => LevelFilter::WARN,
            LogLevel::Info if quiet => LevelFilter::WARN,
            LogLevel::Info => LevelFilter::INFO,
            LogLevel::Debug => LevelFilter::DEBUG,
        };
        // Other crates have their say at warnings: their details are no business of a server's operator.
        let targets = Targets::new().with_target("ashlar", level).with_default(level.min(LevelFilter::WARN));
        let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
        let registry = tracing_subscriber::registry().with(targets);
        // Whoever set a subscriber before keeps it: there is none in this program.
        let _ = match self.log_format {
            LogFormat::Text => registry.with(lines.with_ansi(false)).try_init(),
            LogFormat::Json => registry.with(lines.json().flatten_event(true).with_current_span(false)).try_init(),
        };
    }
}
