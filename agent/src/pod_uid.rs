//! A pod's UID, the one name by which the agent knows a pod.
use std::fmt;
use std::str::FromStr;

/// Length of the written form, 8-4-4-4-12 hexadecimal digits.
const WRITTEN: usize = 36;

/// Where the written form has its separators.
const SEPARATORS: [usize; 4] = [8, 13, 18, 23];

/// A pod's UID as the API server assigned it: a UUID, compared by value, so that its spelling does not matter.
///
/// The 32 hexadecimal digits that stand in cgroup names of static pods are a hash of a manifest, not a UID: such a pod
/// has no service account, and its hash is refused here so that it can never equal a token's claim.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodUid([u8; 16]);

/// The text is not a UUID in its 36 character form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a pod UID: expected 36 characters, 8-4-4-4-12 hexadecimal digits")]
pub struct NotAPodUid;

impl PodUid {
    /// Reads the form that the kubelet gives to systemd slices, in which `_` stands for `-` (a dash would nest slices).
    pub fn from_systemd(text: &str) -> Result<Self, NotAPodUid> {
        Self::read(text.as_bytes(), b'_')
    }

    fn read(text: &[u8], separator: u8) -> Result<Self, NotAPodUid> {
        if text.len() != WRITTEN {
            return Err(NotAPodUid);
        }
        let mut value: u128 = 0;
        for (at, &byte) in text.iter().enumerate() {
            if SEPARATORS.contains(&at) {
                if byte != separator {
                    return Err(NotAPodUid);
                }
            } else {
                let digit = char::from(byte).to_digit(16).ok_or(NotAPodUid)?;
                value = value << 4 | u128::from(digit);
            }
        }
        Ok(Self(value.to_be_bytes()))
    }
}

impl FromStr for PodUid {
    type Err = NotAPodUid;

    /// Reads the dashed form of the API server and of cgroupfs directories, in either case.
    fn from_str(text: &str) -> Result<Self, NotAPodUid> {
        Self::read(text.as_bytes(), b'-')
    }
}

impl fmt::Display for PodUid {
    /// The canonical form: lower case, dashed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DASHED: &str = "0c2ad6e1-5d1b-4f5e-9a37-77d0f0a4be01";

    #[test]
    fn every_spelling_of_a_uid_is_the_same_uid() {
        let uid: PodUid = DASHED.parse().unwrap();
        assert_eq!(uid, DASHED.to_uppercase().parse().unwrap());
        assert_eq!(uid, PodUid::from_systemd(&DASHED.replace('-', "_")).unwrap());
        assert_eq!(uid.to_string(), DASHED);
        assert_eq!(format!("{uid:?}"), DASHED);
    }

    #[test]
    fn what_is_not_a_uid_is_refused() {
        let hash = DASHED.replace('-', "");
        let shifted = "0c2ad6e15-d1b-4f5e-9a37-77d0f0a4be01";
        let multibyte = format!("{}é", &DASHED[..34]);
        for text in
            ["", "-", &hash, &DASHED[1..], shifted, &multibyte, &format!("{DASHED} "), &DASHED.replace('c', "g")]
        {
            assert_eq!(text.parse::<PodUid>(), Err(NotAPodUid), "{text}");
        }
        assert_eq!(PodUid::from_systemd(DASHED), Err(NotAPodUid), "systemd's form has no dashes");
    }

    #[test]
    fn a_pod_that_names_itself_with_signs_or_digits_of_other_scripts_is_refused() {
        assert!("+c2ad6e1-5d1b-4f5e-9a37-77d0f0a4be01".parse::<PodUid>().is_err());
        assert!("٠c2ad6e-5d1b-4f5e-9a37-77d0f0a4be01".parse::<PodUid>().is_err());
    }
}
