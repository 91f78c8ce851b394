//! The tokens of one pod that are good for its cached credentials.
use std::time::SystemTime;

use crate::token::{self, TokenDigest};

/// Tokens that EKS Auth accepted: rotation has two in use at a time, and containers may lag behind.
const ACCEPTED: usize = 4;
/// Tokens that the kubelet wrote: the one in the file and the one before it.
const VOUCHED: usize = 2;

#[derive(Clone, Copy, Debug)]
struct Known {
    digest: TokenDigest,
    expires_at: SystemTime,
}

/// Tokens that are good, digests only; oldest first in each list. A token may be in both: what EKS Auth accepted stays good
/// when the kubelet has written others since.
#[derive(Clone, Debug, Default)]
pub struct Tokens {
    accepted: Vec<Known>,
    vouched: Vec<Known>,
}

impl Tokens {
    /// Whether this token is good now. Each comparison takes the same time wherever digests differ.
    #[must_use]
    pub fn knows(&self, digest: &TokenDigest, now: SystemTime) -> bool {
        let mut known = self.accepted.iter().chain(&self.vouched);
        known.any(|known| known.digest == *digest && !token::expired(known.expires_at, now))
    }

    /// Whether the kubelet wrote any of them.
    pub(super) fn has_vouched(&self) -> bool {
        !self.vouched.is_empty()
    }

    /// EKS Auth accepted this token.
    pub(super) fn accept(&mut self, digest: TokenDigest, expires_at: SystemTime, now: SystemTime) {
        self.drop_expired(now);
        add(&mut self.accepted, Known { digest, expires_at }, ACCEPTED);
    }

    /// The kubelet wrote this token.
    pub(super) fn vouch(&mut self, digest: TokenDigest, expires_at: SystemTime, now: SystemTime) {
        self.drop_expired(now);
        add(&mut self.vouched, Known { digest, expires_at }, VOUCHED);
    }

    fn drop_expired(&mut self, now: SystemTime) {
        for list in [&mut self.accepted, &mut self.vouched] {
            list.retain(|known| !token::expired(known.expires_at, now));
        }
    }
}

/// Adds a token, once, as the newest; the oldest makes room.
fn add(list: &mut Vec<Known>, new: Known, most: usize) {
    list.retain(|known| known.digest != new.digest);
    if list.len() >= most {
        list.remove(0);
    }
    list.push(new);
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    const DAY: Duration = Duration::from_hours(24);

    fn digest(name: &str) -> TokenDigest {
        TokenDigest::of(name)
    }

    #[test]
    fn the_file_and_the_one_before_it_are_good_until_they_end() {
        let mut tokens = Tokens::default();
        for (name, day) in [("first", 1), ("second", 2), ("third", 3)] {
            tokens.vouch(digest(name), UNIX_EPOCH + day * DAY, UNIX_EPOCH);
        }
        assert!(!tokens.knows(&digest("first"), UNIX_EPOCH));
        assert!(tokens.knows(&digest("second"), UNIX_EPOCH) && tokens.knows(&digest("third"), UNIX_EPOCH));
        let later = UNIX_EPOCH + 2 * DAY + token::CLOCK_SKEW;
        assert!(!tokens.knows(&digest("second"), later) && tokens.knows(&digest("third"), later));
    }

    #[test]
    fn accepted_tokens_never_push_out_what_the_kubelet_wrote() {
        let mut tokens = Tokens::default();
        tokens.vouch(digest("file"), UNIX_EPOCH + DAY, UNIX_EPOCH);
        for other in 0..100 {
            tokens.accept(digest(&format!("other-{other}")), UNIX_EPOCH + DAY, UNIX_EPOCH);
        }
        assert!(tokens.knows(&digest("file"), UNIX_EPOCH));
        let known = (0..100).filter(|other| tokens.knows(&digest(&format!("other-{other}")), UNIX_EPOCH));
        assert_eq!(known.collect::<Vec<_>>(), [96, 97, 98, 99]);
    }

    #[test]
    fn what_eks_auth_accepted_stays_good_however_often_the_kubelet_rotates() {
        let mut tokens = Tokens::default();
        let (end, now) = (UNIX_EPOCH + DAY, UNIX_EPOCH);
        tokens.vouch(digest("first"), end, now);
        tokens.accept(digest("first"), end, now);
        tokens.accept(digest("second"), end, now);
        tokens.vouch(digest("second"), end, now);
        for rotated in 0..9 {
            tokens.vouch(digest(&format!("rotated-{rotated}")), end + DAY, now);
        }
        for name in ["first", "second"] {
            assert!(tokens.knows(&digest(name), now), "{name}");
            assert!(!tokens.knows(&digest(name), end + token::CLOCK_SKEW), "{name} beyond its end");
        }
    }

    #[test]
    fn a_token_that_is_named_again_takes_no_room_and_is_the_newest() {
        let mut tokens = Tokens::default();
        for name in ["a", "b", "c", "d", "a", "a", "e"] {
            tokens.accept(digest(name), UNIX_EPOCH + DAY, UNIX_EPOCH);
        }
        let known = ["a", "b", "c", "d", "e"].map(|name| tokens.knows(&digest(name), UNIX_EPOCH));
        assert_eq!(known, [true, false, true, true, true]);
    }

    #[test]
    fn only_what_the_kubelet_wrote_and_has_not_ended_is_vouched_for() {
        let mut tokens = Tokens::default();
        assert!(!tokens.has_vouched());
        tokens.accept(digest("accepted"), UNIX_EPOCH + 3 * DAY, UNIX_EPOCH);
        assert!(!tokens.has_vouched());
        tokens.vouch(digest("file"), UNIX_EPOCH + DAY, UNIX_EPOCH);
        assert!(tokens.has_vouched());
        tokens.accept(digest("accepted"), UNIX_EPOCH + 3 * DAY, UNIX_EPOCH + 2 * DAY);
        assert!(!tokens.has_vouched());
    }

    #[test]
    fn what_has_ended_makes_room() {
        let mut tokens = Tokens::default();
        for name in 0..4 {
            tokens.accept(digest(&name.to_string()), UNIX_EPOCH + DAY, UNIX_EPOCH);
        }
        tokens.vouch(digest("file"), UNIX_EPOCH + DAY, UNIX_EPOCH);
        tokens.accept(digest("new"), UNIX_EPOCH + 3 * DAY, UNIX_EPOCH + 2 * DAY);
        assert_eq!((tokens.accepted.len(), tokens.vouched.len()), (1, 0));
    }
}
