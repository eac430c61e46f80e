//! Stop strings, found wherever tokens happen to cut them.

use crate::error::{Error, Result};

/// Stop strings of one call.
const MAX_STOPS: usize = 64;
/// Bytes of one stop string; so much text may have to be held back.
const MAX_BYTES: usize = 1024;

/// Finds the first stop string in a text that comes in pieces, and lets all text before it through as soon
/// as it cannot be part of one.
///
/// The match that begins earliest in the text wins; of those that begin at the same place the shortest (the
/// text that comes before is the same, and no longer one has to be waited for). How the text is cut into
/// pieces makes no difference.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    stops: Vec<String>,
    /// Text that may be the beginning of a stop string.
    held: String,
    matched: Option<usize>,
}

/// What a piece of text led to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopStep {
    /// Text that may be shown now; nothing of a stop string.
    pub emit: String,
    /// Which stop string (its index in the list given) ends the text. Stays set from then on.
    pub matched: Option<usize>,
}

impl StopMatcher {
    /// A matcher of up to 64 stop strings of 1 to 1024 bytes; of none, it lets all text through at once.
    ///
    /// # Errors
    /// `OPTION_INVALID` (`stop`).
    pub fn new(stops: Vec<String>) -> Result<Self> {
        if stops.len() > MAX_STOPS {
            return Err(Error::option("stop", format!("{} strings", stops.len()), "at most 64 strings"));
        }
        for (i, stop) in stops.iter().enumerate() {
            if stop.is_empty() || stop.len() > MAX_BYTES {
                let value = format!("{} bytes long", stop.len());
                return Err(Error::option(&format!("stop[{i}]"), value, "1 to 1024 bytes"));
            }
        }
        Ok(Self { stops, held: String::new(), matched: None })
    }

    /// Takes the next piece of text (of any length). After a match all further text is dropped.
    pub fn push(&mut self, text: &str) -> StopStep {
        if self.matched.is_none() {
            self.held.push_str(text);
        }
        self.scan(true)
    }

    /// The text has ended: lets out what was held back, unless a stop string is in it after all (which a
    /// longer one that began before it had kept waiting).
    pub fn flush(&mut self) -> StopStep {
        self.scan(false)
    }

    fn scan(&mut self, more_to_come: bool) -> StopStep {
        for (start, _) in self.held.char_indices() {
            let rest = &self.held[start..];
            let shortest = self
                .stops
                .iter()
                .enumerate()
                .filter(|(_, stop)| rest.starts_with(stop.as_str()))
                .min_by_key(|(_, stop)| stop.len());
            if let Some((which, _)) = shortest {
                self.matched = Some(which);
                let mut emit = std::mem::take(&mut self.held);
                emit.truncate(start);
                return StopStep { emit, matched: self.matched };
            }
            if more_to_come && self.stops.iter().any(|stop| stop.starts_with(rest)) {
                let held = self.held.split_off(start);
                return StopStep { emit: std::mem::replace(&mut self.held, held), matched: None };
            }
        }
        StopStep { emit: std::mem::take(&mut self.held), matched: self.matched }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matcher(stops: &[&str]) -> StopMatcher {
        StopMatcher::new(stops.iter().map(|stop| (*stop).to_owned()).collect()).unwrap()
    }

    /// The definition: over the whole text.
    fn naive(stops: &[&str], text: &str) -> (String, Option<usize>) {
        let first = stops
            .iter()
            .enumerate()
            .filter_map(|(which, stop)| text.find(stop).map(|start| (start, stop.len(), which)))
            .min();
        match first {
            Some((start, _, which)) => (text[..start].to_owned(), Some(which)),
            None => (text.to_owned(), None),
        }
    }

    fn run(stops: &[&str], pieces: &[&str]) -> (String, Option<usize>) {
        let mut matcher = matcher(stops);
        let mut emitted = String::new();
        for piece in pieces {
            let step = matcher.push(piece);
            emitted += &step.emit;
        }
        let end = matcher.flush();
        (emitted + &end.emit, end.matched)
    }

    const STOPS: [&[&str]; 9] = [
        &["b"],
        &["ab", "abc", "bc"],
        &["abcd", "bc"],
        &["aab", "aaab"],
        &["aaaa"],
        &["a", "a"],
        &["é", "🦀a"],
        &["cba", "bb", "acb"],
        &[],
    ];

    #[test]
    fn every_cut_of_every_short_text() {
        // All texts of up to 5 of these, each cut in all ways.
        let letters = ["a", "b", "c", "é🦀"];
        let mut texts = vec![String::new()];
        let mut from = 0;
        for _ in 0..5 {
            let to = texts.len();
            for i in from..to {
                for letter in letters {
                    texts.push(texts[i].clone() + letter);
                }
            }
            from = to;
        }
        for text in texts {
            let places: Vec<usize> = (1..text.len()).filter(|i| text.is_char_boundary(*i)).collect();
            for cuts in 0..1u32 << places.len() {
                let mut pieces = Vec::new();
                let mut start = 0;
                for (bit, place) in places.iter().enumerate() {
                    if cuts >> bit & 1 == 1 {
                        pieces.push(&text[start..*place]);
                        start = *place;
                    }
                }
                pieces.push(&text[start..]);
                for stops in STOPS {
                    assert_eq!(run(stops, &pieces), naive(stops, &text), "{stops:?} in {pieces:?}");
                }
            }
        }
    }

    #[test]
    fn only_a_possible_beginning_is_held() {
        let mut matcher = matcher(&["\n\nUser:", "###"]);
        assert_eq!(matcher.push("Hello #"), StopStep { emit: "Hello ".into(), matched: None });
        assert_eq!(matcher.push("#1\n"), StopStep { emit: "##1".into(), matched: None });
        assert_eq!(matcher.push("\nUs"), StopStep::default());
        assert_eq!(matcher.push("e it\n\nUs"), StopStep { emit: "\n\nUse it".into(), matched: None });
        assert_eq!(matcher.push("er: hi"), StopStep { emit: String::new(), matched: Some(0) });
        assert_eq!(matcher.push("more"), StopStep { emit: String::new(), matched: Some(0) });
        assert_eq!(matcher.flush(), StopStep { emit: String::new(), matched: Some(0) });
    }

    #[test]
    fn without_stops_nothing_is_held() {
        assert_eq!(matcher(&[]).push("text"), StopStep { emit: "text".into(), matched: None });
    }

    #[test]
    fn unusable_stops_are_refused() {
        let refused = |stops: Vec<String>| {
            let error = StopMatcher::new(stops).unwrap_err();
            assert_eq!(error.code(), "OPTION_INVALID");
            error.to_string()
        };
        assert!(refused(vec!["a".into(), String::new()]).contains("stop[1]"));
        assert!(refused(vec!["x".repeat(1025)]).contains("1025"));
        assert!(refused(vec!["x".into(); 65]).contains("65"));
        StopMatcher::new(vec!["x".repeat(1024); 64]).unwrap();
    }
}
