//! Ctrl-C: the first press asks the work to stop, the second ends the process at once.

use anyhow::Context;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Exit code of a process that Ctrl-C ended, as shells count it.
const INTERRUPTED: i32 = 130;

/// A flag that the first Ctrl-C sets.
#[derive(Clone, Debug, Default)]
pub struct Interrupt {
    pressed: Arc<AtomicBool>,
    idle: Arc<AtomicBool>,
}

impl Interrupt {
    /// Installs the handler; once per process. The first press sets [`Interrupt::flag`].
    ///
    /// # Errors
    /// If the operating system refuses.
    pub fn install() -> anyhow::Result<Self> {
        let this = Self::default();
        let handler = this.clone();
        ctrlc::set_handler(move || {
            if handler.pressed.swap(true, Ordering::SeqCst) || handler.idle.load(Ordering::SeqCst) {
                std::process::exit(INTERRUPTED);
            }
        })
        .context("cannot listen for Ctrl-C")?;
        Ok(this)
    }

    /// Installs a handler that prints `message` and ends the process at the first press: for work that leaves a
    /// journal and can be killed at any time.
    ///
    /// # Errors
    /// If the operating system refuses.
    pub fn exit_saying(message: &str) -> anyhow::Result<()> {
        let message = message.to_owned();
        ctrlc::set_handler(move || {
            crate::output::say(&format!("\n{message}"));
            std::process::exit(INTERRUPTED);
        })
        .context("cannot listen for Ctrl-C")
    }

    /// Set by the first press since the last [`Interrupt::reset`].
    #[must_use]
    pub fn flag(&self) -> &AtomicBool {
        &self.pressed
    }

    /// Forgets the press, before the next answer.
    pub fn reset(&self) {
        self.pressed.store(false, Ordering::SeqCst);
    }

    /// Runs `wait`, during which nothing can be stopped, so that a press ends the process.
    pub fn while_idle<T>(&self, wait: impl FnOnce() -> T) -> T {
        self.idle.store(true, Ordering::SeqCst);
        let value = wait();
        self.idle.store(false, Ordering::SeqCst);
        value
    }
}
