//! Stop strings that may span tokens. Pure.
//!
//! Keeps true: the released text never holds any byte of a stop string that was hit, and does not
//! depend on how the text was cut into pushes. Neighbour: `session`, which feeds decoded text.

/// Holds back the end of a text for as long as it could become a stop string.
#[derive(Debug)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
}

/// Text that became certain, and whether a stop string ended it.
#[derive(Debug, PartialEq, Eq)]
pub struct Released {
    pub text: String,
    pub hit: bool,
}

impl StopMatcher {
    /// `stops` are not empty strings (the parser refuses those).
    pub fn new(stops: Vec<String>) -> Self {
        Self {
            stops,
            held: String::new(),
        }
    }

    /// Takes the next piece of text. After a hit, nothing more may be pushed.
    pub fn push(&mut self, piece: &str) -> Released {
        if self.stops.is_empty() {
            return Released {
                text: piece.to_owned(),
                hit: false,
            };
        }
        self.held.push_str(piece);
        if let Some(start) = self.first_hit() {
            self.held.truncate(start);
            return Released {
                text: std::mem::take(&mut self.held),
                hit: true,
            };
        }
        let kept = self.held_back();
        let rest = self.held.split_off(self.held.len() - kept);
        Released {
            text: std::mem::replace(&mut self.held, rest),
            hit: false,
        }
    }

    /// The text ended: what was held back is certain now.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Start of the stop string that is complete first (of two that end together, the longer). The
    /// one that *ends* first is the one a reader of single characters would have met.
    fn first_hit(&self) -> Option<usize> {
        self.stops
            .iter()
            .filter_map(|stop| {
                self.held
                    .find(stop.as_str())
                    .map(|at| (at + stop.len(), at))
            })
            .min()
            .map(|(_, start)| start)
    }

    /// Bytes at the end of `held` that are the beginning of some stop string.
    fn held_back(&self) -> usize {
        self.stops
            .iter()
            .map(|stop| {
                (1..stop.len())
                    .rev()
                    .filter(|&length| stop.is_char_boundary(length))
                    .find(|&length| self.held.ends_with(&stop[..length]))
                    .unwrap_or(0)
            })
            .max()
            .unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let mut matcher = StopMatcher::new(stops.iter().map(|s| (*s).to_owned()).collect());
        let mut out = Vec::new();
        for piece in pieces {
            let released = matcher.push(piece);
            out.push(released.text);
            if released.hit {
                return (out, true);
            }
        }
        out.push(matcher.finish());
        (out, false)
    }

    #[test]
    fn without_stops_everything_passes_at_once() {
        assert_eq!(
            run(&[], &["a", "b"]),
            (vec!["a".into(), "b".into(), String::new()], false)
        );
    }

    #[test]
    fn a_stop_that_spans_pieces_leaves_nothing_of_itself() {
        let (out, hit) = run(&["\n\nUser:"], &["Hi", "\n", "\nUs", "er: x"]);
        assert!(hit);
        assert_eq!(out.concat(), "Hi");
    }

    #[test]
    fn a_stop_at_the_very_start_gives_no_text() {
        assert_eq!(run(&["END"], &["E", "ND more"]).0.concat(), "");
        assert!(run(&["END"], &["E", "ND more"]).1);
    }

    #[test]
    fn a_false_start_is_released_when_it_cannot_become_a_stop() {
        let (out, hit) = run(&["abcd"], &["ab", "cab", "x"]);
        assert!(!hit);
        assert_eq!(out, ["", "abc", "abx", ""]);
    }

    #[test]
    fn held_text_is_released_at_the_end() {
        assert_eq!(
            run(&["stop"], &["do not sto"]),
            (vec!["do not ".into(), "sto".into()], false)
        );
    }

    #[test]
    fn overlapping_stops_and_a_stop_within_held_text() {
        // "abcX" is being waited for when "bc" is complete: "bc" ends first.
        let (out, hit) = run(&["abcX", "bc"], &["za", "b", "cX"]);
        assert!(hit);
        assert_eq!(out.concat(), "za");
        // Self-overlap: the second "aa" of "aaa" is found.
        let (out, hit) = run(&["aab"], &["a", "a", "a", "b"]);
        assert!(hit);
        assert_eq!(out.concat(), "a");
    }

    #[test]
    fn cuts_never_fall_inside_a_character() {
        let (out, hit) = run(&["日本語"], &["これは日", "本", "酒"]);
        assert!(!hit);
        assert_eq!(out.concat(), "これは日本酒");
        assert!(run(&["日本語"], &["日", "本", "語"]).1);
    }

    /// The same text in every cutting into two or three pieces gives the same result.
    #[test]
    fn the_result_does_not_depend_on_the_cuts() {
        let text: Vec<char> = "xaabaabcaabaabd-éé|é end".chars().collect();
        let stops = ["aabaabd", "é|", "abca", "zzz"];
        for set in 1..16u32 {
            let chosen: Vec<&str> = (0..4)
                .filter(|i| set & (1 << i) != 0)
                .map(|i| stops[i])
                .collect();
            let whole: String = text.iter().collect();
            let (reference, reference_hit) = run(&chosen, &[whole.as_str()]);
            for i in 0..=text.len() {
                for j in i..=text.len() {
                    let parts: Vec<String> = [&text[..i], &text[i..j], &text[j..]]
                        .iter()
                        .map(|part| part.iter().collect())
                        .collect();
                    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
                    let (out, hit) = run(&chosen, &parts);
                    assert_eq!(
                        (out.concat(), hit),
                        (reference.concat(), reference_hit),
                        "{chosen:?} cut at {i}, {j}"
                    );
                }
            }
        }
    }
}
