//! Words as a part of a URL: one segment of its path, or the value of a parameter.

/// Everything but letters, digits, `-`, `_` and `.` as `%XX` (RFC 3986), so that no word ends a segment or
/// begins another.
pub fn part(words: &str) -> String {
    // A path's part of dots alone would be taken for a way up.
    let dots = words.bytes().all(|b| b == b'.');
    let mut text = String::with_capacity(words.len());
    for byte in words.bytes() {
        match byte {
            b'.' if dots => text.push_str("%2E"),
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' => text.push(byte.into()),
            other => text.push_str(&format!("%{other:02X}")),
        }
    }
    text
}

/// `?a=b&c=d` of those that are given, or nothing.
pub fn query(pairs: &[(&str, Option<&str>)]) -> String {
    let given = pairs
        .iter()
        .filter_map(|(name, value)| Some((name, (*value)?)));
    let given: Vec<String> = given
        .map(|(name, value)| format!("{name}={}", part(value)))
        .collect();
    match given.is_empty() {
        true => String::new(),
        false => format!("?{}", given.join("&")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay_one_part() {
        for (words, text) in [
            ("acme", "acme"),
            ("a b/c?d#e%", "a%20b%2Fc%3Fd%23e%25"),
            ("..", "%2E%2E"),
            ("v1.2", "v1.2"),
            ("é", "%C3%A9"),
        ] {
            assert_eq!(part(words), text);
        }
        assert_eq!(query(&[("a", None)]), "");
        assert_eq!(
            query(&[("a", Some("1")), ("b", None), ("c", Some("x,y"))]),
            "?a=1&c=x%2Cy"
        );
    }
}
