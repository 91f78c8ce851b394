//! Tokens that are wrong in a way nobody thought of: a random change for each try, the same one again for the same
//! numbers.

/// What tokens are written in, and some bytes that are not allowed there.
const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.=+/ {}\",\\\t\x80\xff";

/// A header with its value changed.
pub(crate) fn header(header: &str, seed: u64, number: u64) -> String {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number);
    match header.split_once(": ") {
        // Headers are text to this program; bytes beyond ASCII go out as what UTF-8 makes of them.
        Some((name, token)) => format!("{name}: {}", String::from_utf8_lossy(&garbled(token.as_bytes(), &mut random))),
        None => header.to_owned(),
    }
}

fn garbled(token: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = token.to_vec();
    match random.below(8) {
        // Some characters replaced; the first that is not the same as before makes the difference.
        0..=2 => {
            for _ in 0..=random.below(4) {
                let at = random.below(bytes.len());
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = random.other(*byte);
                }
            }
        }
        3 => bytes.truncate(random.below(bytes.len())),
        4 => {
            let (at, byte) = (random.below(bytes.len()), random.character());
            bytes.insert(at, byte);
        }
        5 => {
            let at = random.below(bytes.len());
            bytes.remove(at);
        }
        // Three segments, or some, of nothing in particular.
        6 => bytes = (0..=random.below(3000)).map(|_| random.character()).collect(),
        _ => {
            let mut segments: Vec<&[u8]> = token.split(|byte| *byte == b'.').collect();
            let (from, to) = (random.below(segments.len()), random.below(segments.len()));
            let moved = if from == to { segments.remove(from) } else { segments.swap_remove(from) };
            segments.insert(to.min(segments.len()), moved);
            bytes = segments.join(&b'.');
            bytes.push(b'A');
        }
    }
    // What follows a header's value would be another header.
    bytes.retain(|byte| !matches!(byte, b'\r' | b'\n' | 0));
    if bytes.trim_ascii() == token {
        // Blanks around a value are no part of it.
        bytes.push(b'A');
    }
    bytes
}

/// `SplitMix64`.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % (bound.max(1) as u64)).unwrap_or_default()
    }

    fn character(&mut self) -> u8 {
        let at = self.below(ALPHABET.len());
        ALPHABET.get(at).copied().unwrap_or(b'A')
    }

    fn other(&mut self, byte: u8) -> u8 {
        loop {
            let character = self.character();
            if character != byte {
                return character;
            }
        }
    }
}
