//! The tokens of one pod that are good for its cached credentials.
use std::time::SystemTime;

use crate::token::{self, TokenDigest};

/// Tokens that EKS Auth accepted: rotation has two in use at a time, and containers may lag behind.
const ACCEPTED: usize = 4;
/// Tokens that the kubelet wrote: the one in the file and the one before it.
const VOUCHED: usize = 2;

/// Why a token is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proof {
    /// EKS Auth gave credentials for it.
    Accepted,
    /// The kubelet wrote it into the pod's volume.
    Vouched,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    digest: TokenDigest,
    expires_at: SystemTime,
    proof: Proof,
}

/// Tokens that are good, oldest first. Digests only.
#[derive(Clone, Debug, Default)]
pub struct Tokens(Vec<Known>);

impl Tokens {
    /// Whether this token is good now. Each comparison takes the same time wherever digests differ.
    #[must_use]
    pub fn knows(&self, digest: &TokenDigest, now: SystemTime) -> bool {
        self.0.iter().any(|known| known.digest == *digest && !token::expired(known.expires_at, now))
    }

    /// Whether the kubelet wrote any of them.
    pub(super) fn has_vouched(&self) -> bool {
        self.0.iter().any(|known| known.proof == Proof::Vouched)
    }

    /// EKS Auth accepted this token.
    pub(super) fn accept(&mut self, digest: TokenDigest, expires_at: SystemTime, now: SystemTime) {
        // The kubelet's word is the stronger one: it lasts across an eviction by other tokens.
        if !self.0.iter().any(|known| known.digest == digest) {
            self.add(Known { digest, expires_at, proof: Proof::Accepted }, ACCEPTED, now);
        }
    }

    /// The kubelet wrote this token.
    pub(super) fn vouch(&mut self, digest: TokenDigest, expires_at: SystemTime, now: SystemTime) {
        self.0.retain(|known| known.digest != digest);
        self.add(Known { digest, expires_at, proof: Proof::Vouched }, VOUCHED, now);
    }

    fn add(&mut self, new: Known, most: usize, now: SystemTime) {
        self.0.retain(|known| !token::expired(known.expires_at, now));
        let alike = self.0.iter().filter(|known| known.proof == new.proof).count();
        if alike >= most
            && let Some(oldest) = self.0.iter().position(|known| known.proof == new.proof)
        {
            self.0.remove(oldest);
        }
        self.0.push(new);
    }
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
        tokens.accept(digest("file"), UNIX_EPOCH + DAY, UNIX_EPOCH);
        assert!(tokens.knows(&digest("file"), UNIX_EPOCH));
        assert_eq!(tokens.0.len(), 1 + ACCEPTED);
        assert!(tokens.knows(&digest("other-99"), UNIX_EPOCH) && !tokens.knows(&digest("other-0"), UNIX_EPOCH));
    }

    #[test]
    fn what_has_ended_makes_room() {
        let mut tokens = Tokens::default();
        for name in 0..4 {
            tokens.accept(digest(&name.to_string()), UNIX_EPOCH + DAY, UNIX_EPOCH);
        }
        tokens.accept(digest("new"), UNIX_EPOCH + 3 * DAY, UNIX_EPOCH + 2 * DAY);
        assert_eq!(tokens.0.len(), 1);
    }
}
