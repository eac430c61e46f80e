//! How fast this model computes prompts here, and so how much of them a step may take on while streams run.

use std::time::{Duration, Instant};

/// Tokens of prompts that a step takes on at least, so that nobody starves behind streams on a slow machine.
const LEAST: usize = 16;
/// How much of what is known gives way to a faster step. A slower one counts at once.
const EASING: f64 = 0.2;

/// What the steps so far took.
#[derive(Default)]
pub(super) struct Pace {
    /// Seconds of a step that only decodes.
    decode: f64,
    /// Seconds that a token of a prompt adds to it.
    token: f64,
    /// Tokens of prompts in the last step that had any.
    last: usize,
    /// Tokens of prompts that this turn of the engine and the ones before it queued, newest first.
    queued: [usize; 3],
    /// The end of the last turn, if it waited for the device, and for the work of which turn.
    waited: Option<(Instant, usize)>,
}

impl Pace {
    /// A turn of the engine ends, in which it has queued so many tokens of prompts, and waited until the work of `lag`
    /// turns before was done (`None`: for nothing, or for what says little about one turn). The time from one such
    /// end to the next is what that work took.
    pub fn turn(&mut self, prompt_tokens: usize, lag: Option<usize>) {
        let [newest, before, _] = self.queued;
        self.queued = [prompt_tokens, newest, before];
        let waited = lag.map(|lag| (Instant::now(), lag));
        if let (Some((now, lag)), Some((then, lag_then))) = (waited, self.waited)
            && lag == lag_then
            && let Some(tokens) = self.queued.get(lag)
        {
            self.observe(*tokens, now - then);
        }
        self.waited = waited;
    }

    /// A step with `prompt_tokens` tokens of prompts, besides those of sequences that decode, took so long.
    fn observe(&mut self, prompt_tokens: usize, took: Duration) {
        let took = took.as_secs_f64();
        let (known, new) = match prompt_tokens {
            0 => (&mut self.decode, took),
            n => (&mut self.token, (took - self.decode).max(0.0) / n as f64),
        };
        *known = if new > *known { new } else { *known + EASING * (new - *known) };
        if prompt_tokens > 0 {
            self.last = prompt_tokens;
        }
    }

    /// Tokens of prompts that a step may have so that it takes no longer than `limit`, as far as is known: at most
    /// twice as many as were last tried, and never fewer than [`LEAST`].
    pub fn prompt_tokens(&self, limit: Duration) -> usize {
        let tried = (2 * self.last).max(LEAST);
        let fit = (limit.as_secs_f64() - self.decode) / self.token;
        // As long as a token costs nothing (0 / 0 among them), what was tried decides.
        if fit.is_finite() { (fit.max(0.0) as usize).clamp(LEAST, tried) } else { tried }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A step of `decode` milliseconds, and `token` more for each token of a prompt.
    fn run(pace: &mut Pace, steps: usize, decode: f64, token: f64, limit: Duration) -> Vec<f64> {
        let took = |tokens| decode + token * tokens as f64;
        let duration = |ms: f64| Duration::from_secs_f64(ms / 1e3);
        pace.observe(0, duration(decode));
        (0..steps)
            .map(|_| {
                let tokens = pace.prompt_tokens(limit);
                pace.observe(tokens, duration(took(tokens)));
                pace.observe(0, duration(decode));
                took(tokens)
            })
            .collect()
    }

    #[test]
    fn steps_grow_to_the_limit_and_stay_below_it() {
        let limit = Duration::from_millis(100);
        let mut pace = Pace::default();
        let took = run(&mut pace, 40, 10.0, 0.05, limit);
        assert!(took.iter().all(|ms| *ms <= 100.0), "{took:?}");
        assert!(took[39] > 90.0, "{took:?}");
        // The machine becomes eight times slower: one step is too long, the next ones are not.
        let took = run(&mut pace, 40, 20.0, 0.4, limit);
        assert!(took[1..].iter().all(|ms| *ms <= 100.0), "{took:?}");
        // And fast again.
        let took = run(&mut pace, 80, 10.0, 0.05, limit);
        assert!(took[79] > 90.0, "{took:?}");
    }

    #[test]
    fn prompts_go_on_however_slow_a_step_is() {
        let mut pace = Pace::default();
        run(&mut pace, 5, 500.0, 30.0, Duration::from_millis(1));
        assert_eq!(pace.prompt_tokens(Duration::from_millis(1)), LEAST);
    }
}
