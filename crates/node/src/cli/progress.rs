//! Tells how far something is: a moving line on a terminal, plain lines elsewhere.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A line that says what is being waited for.
pub(super) struct Progress {
    /// `None` when stderr is no terminal.
    bar: Option<ProgressBar>,
    last: String,
}

impl Progress {
    pub(super) fn start(text: &str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        let mut progress = Self { bar, last: String::new() };
        progress.tell(text);
        progress
    }

    /// Says something else; the same again is not repeated.
    pub(super) fn tell(&mut self, text: &str) {
        if self.last == text {
            return;
        }
        text.clone_into(&mut self.last);
        match &self.bar {
            Some(bar) => bar.set_message(text.to_owned()),
            None => super::tell(format_args!("{text}")),
        }
    }

    /// Takes the line away.
    pub(super) fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
