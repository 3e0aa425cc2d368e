//! GPT-2's way of writing any byte as a printable character, which byte-level vocabularies use.
//!
//! Printable Latin-1 bytes stand for themselves; the other 68 take the characters from U+0100 on,
//! in order (`bytes_to_unicode` of OpenAI's GPT-2 encoder).

/// The character a byte is written as.
pub fn byte_to_char(byte: u8) -> char {
    if is_itself(byte) {
        return char::from(byte);
    }
    let place = (0..byte).filter(|b| !is_itself(*b)).count() as u32;
    char::from_u32(0x100 + place).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// The byte a character of such a vocabulary stands for.
pub fn char_to_byte(c: char) -> Option<u8> {
    match u32::from(c) {
        n @ 0..=0xff => Some(n as u8).filter(|b| is_itself(*b)),
        n @ 0x100..=0x143 => (0..=255u8)
            .filter(|b| !is_itself(*b))
            .nth((n - 0x100) as usize),
        _ => None,
    }
}

fn is_itself(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_its_own_character() {
        let chars: std::collections::BTreeSet<char> = (0..=255).map(byte_to_char).collect();
        assert_eq!(chars.len(), 256);
        for byte in 0..=255 {
            assert_eq!(char_to_byte(byte_to_char(byte)), Some(byte));
        }
        assert_eq!(byte_to_char(b' '), 'Ġ');
        assert_eq!(byte_to_char(b'\n'), 'Ċ');
        assert_eq!(char_to_byte(' '), None);
        assert_eq!(char_to_byte('\u{144}'), None);
    }
}
