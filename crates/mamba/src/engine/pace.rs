//! How fast this model computes prompts here, and so how much of them a step may take on while streams run.

use std::time::{Duration, Instant};

/// Tokens of prompts that a step takes on at least, so that nobody starves behind streams on a slow machine.
const LEAST: usize = 16;
/// How much of what is known gives way to a faster step. A slower one counts at once.
const EASING: f64 = 0.5;

/// What the steps so far took.
pub(super) struct Pace {
    /// Seconds of a step that only decodes; as long as there was none, prompts are thought to cost it all.
    decode: f64,
    /// Seconds that a token of a prompt adds to it.
    token: f64,
    /// The most tokens of prompts that a step lately had.
    tried: usize,
    /// When the turns began that are timed together now; `None` when they began before the device had anything to do.
    since: Option<Instant>,
    turns: Turns,
}

/// Turns of the engine.
#[derive(Clone, Copy, Default)]
struct Turns {
    count: usize,
    prompt_tokens: usize,
    /// Of any one turn.
    most: usize,
}

impl Pace {
    /// Nothing was measured yet; `begin` tokens are what a step may try.
    pub fn new(begin: usize) -> Self {
        Self {
            decode: 0.0,
            token: 0.0,
            tried: begin.div_ceil(2).max(LEAST / 2),
            since: None,
            turns: Turns::default(),
        }
    }

    /// A turn of the engine ends at `now`, in which it has queued so many tokens of prompts. `together` is how many turns
    /// have to be timed together: 1 where it has waited for all that it queued, more where it waits for what it queued
    /// some turns ago (over several, what that leaves out at one end comes in at the other). `None`: it waited for
    /// nothing.
    pub fn turn(&mut self, now: Instant, prompt_tokens: usize, together: Option<usize>) {
        let Some((since, together)) = self.since.zip(together) else {
            (self.since, self.turns) = (together.map(|_| now), Turns::default());
            return;
        };
        let Turns { count, prompt_tokens: before, most } = self.turns;
        self.turns =
            Turns { count: count + 1, prompt_tokens: before + prompt_tokens, most: most.max(prompt_tokens) };
        if self.turns.count >= together {
            self.observe(self.turns, now - since);
            (self.since, self.turns) = (Some(now), Turns::default());
        }
    }

    fn observe(&mut self, Turns { count, prompt_tokens, most }: Turns, took: Duration) {
        let took = took.as_secs_f64();
        let (known, new) = match prompt_tokens {
            0 => (&mut self.decode, took / count as f64),
            n => (&mut self.token, (took - self.decode * count as f64).max(0.0) / n as f64),
        };
        *known = if new > *known { new } else { *known + EASING * (new - *known) };
        if prompt_tokens > 0 {
            self.tried = most;
        }
    }

    /// Tokens of prompts that a step may have so that it takes no longer than `limit`, as far as is known: at most
    /// twice as many as were last tried, and never fewer than [`LEAST`].
    pub fn prompt_tokens(&self, limit: Duration) -> usize {
        let most = (2 * self.tried).max(LEAST);
        let fit = (limit.as_secs_f64() - self.decode) / self.token;
        // As long as a token costs nothing (0 / 0 among them), what was tried decides.
        if fit.is_finite() { (fit.max(0.0) as usize).clamp(LEAST, most) } else { most }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(100);

    /// A device on which a step takes `decode` milliseconds, and `token` more for each token of a prompt, and an engine
    /// that waits for what it queued `lag` turns ago.
    struct Device {
        pace: Pace,
        now: Instant,
        /// Milliseconds of the turns that were queued and not waited for.
        queued: Vec<f64>,
        lag: usize,
    }

    impl Device {
        fn new(lag: usize) -> Self {
            Self { pace: Pace::new(32), now: Instant::now(), queued: Vec::new(), lag }
        }

        fn turn(&mut self, decode: f64, token: f64, prompt_tokens: usize) -> f64 {
            let took = decode + token * prompt_tokens as f64;
            self.queued.push(took);
            if self.queued.len() > self.lag {
                self.now += Duration::from_secs_f64(self.queued.remove(0) / 1e3);
            }
            self.pace.turn(self.now, prompt_tokens, Some(if self.lag == 0 { 1 } else { 4 }));
            took
        }

        /// What turns with as many tokens as are allowed take; `between` of them are followed by one without.
        fn run(&mut self, turns: usize, decode: f64, token: f64, between: usize) -> Vec<f64> {
            let mut took = Vec::new();
            for turn in 0..turns {
                took.push(self.turn(decode, token, self.pace.prompt_tokens(LIMIT)));
                if between > 0 && turn % between == 0 {
                    self.turn(decode, token, 0);
                }
            }
            took
        }
    }

    #[test]
    fn steps_grow_to_the_limit_and_stay_below_it() {
        let mut device = Device::new(0);
        for _ in 0..3 {
            device.turn(10.0, 0.05, 0);
        }
        let took = device.run(40, 10.0, 0.05, 1);
        assert!(took.iter().all(|ms| *ms <= 100.001), "{took:?}");
        assert!(took[39] > 90.0, "{took:?}");
        // The machine becomes eight times slower: one step is too long, the next ones are not.
        let took = device.run(40, 20.0, 0.4, 1);
        assert!(took[1..].iter().all(|ms| *ms <= 100.001), "{took:?}");
        // And fast again.
        let took = device.run(40, 10.0, 0.05, 1);
        assert!(took[39] > 90.0, "{took:?}");
    }

    /// As on a GPU: prompts come all the time, so no step only decodes, and what is waited for was queued before.
    #[test]
    fn so_they_do_where_the_engine_runs_ahead() {
        for (lag, between) in [(1, 0), (2, 0), (2, 3)] {
            let mut device = Device::new(lag);
            let took = device.run(200, 10.0, 0.05, between);
            assert!(took.iter().all(|ms| *ms <= 130.0), "{took:?}");
            assert!(took[150..].iter().all(|ms| *ms > 70.0), "{took:?}");
        }
    }

    #[test]
    fn prompts_go_on_however_slow_a_step_is() {
        let mut device = Device::new(0);
        device.run(5, 500.0, 30.0, 1);
        assert_eq!(device.pace.prompt_tokens(LIMIT), LEAST);
    }

    #[test]
    fn idle_times_are_not_counted() {
        let mut device = Device::new(0);
        for _ in 0..3 {
            device.turn(10.0, 0.05, 0);
        }
        device.pace.turn(device.now, 0, None);
        device.now += Duration::from_secs(100);
        for _ in 0..3 {
            device.turn(10.0, 0.05, 0);
        }
        assert!(device.pace.decode < 0.011, "{}", device.pace.decode);
    }
}
