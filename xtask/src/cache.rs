//! What is downloaded or built once and kept for the next run and for other clones, in the user's cache.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// A directory of this project's in the user's cache, as the XDG base directory specification has it. Not made.
pub(crate) fn directory(name: &str) -> Result<PathBuf> {
    let given = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let cache =
        given.or_else(|| Some(env::home_dir()?.join(".cache"))).context("neither XDG_CACHE_HOME nor HOME is set")?;
    Ok(cache.join("pod-identity-agent").join(name))
}

/// Makes a directory and locks it: two clones may come here at once. The lock ends with the file.
pub(crate) fn lock(directory: &Path) -> Result<fs::File> {
    fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    let path = directory.with_extension("lock");
    let lock = fs::File::create(&path).with_context(|| format!("create {}", path.display()))?;
    lock.lock().with_context(|| format!("lock {}", path.display()))?;
    Ok(lock)
}

/// The part of a directory, made first where it is missing. `make` has an empty directory to work in, and says where in it
/// the part is when all of it is there; what else it leaves is removed.
pub(crate) fn part(directory: &Path, name: &str, make: impl FnOnce(&Path) -> Result<PathBuf>) -> Result<PathBuf> {
    let _lock = lock(directory)?;
    let part = directory.join(name);
    if !part.is_dir() {
        let work = directory.join("build");
        if work.exists() {
            fs::remove_dir_all(&work).context("remove what an interrupted build left")?;
        }
        fs::create_dir(&work).with_context(|| format!("create {}", work.display()))?;
        let ready = make(&work)?;
        fs::rename(&ready, &part).with_context(|| format!("move {} to {}", ready.display(), part.display()))?;
        fs::remove_dir_all(&work).context("remove the build's files")?;
    }
    Ok(part)
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn a_part_is_made_once_and_not_from_what_an_interrupted_build_left() -> Result<()> {
        let directory = env::temp_dir().join(format!("pod-identity-agent-cache-{}", std::process::id()));
        let interrupted = part(&directory, "part", |work| {
            fs::write(work.join("half"), "")?;
            bail!("interrupted")
        });
        let made = part(&directory, "part", |work| {
            anyhow::ensure!(fs::read_dir(work)?.next().is_none(), "it has what was left");
            fs::create_dir(work.join("ready"))?;
            fs::write(work.join("ready/whole"), "")?;
            Ok(work.join("ready"))
        });
        let again = part(&directory, "part", |_| bail!("made twice"));
        let left: Vec<_> = fs::read_dir(&directory)?.map(|entry| Ok(entry?.file_name())).collect::<Result<_>>()?;
        let whole = directory.join("part/whole").is_file();
        fs::remove_dir_all(&directory)?;
        fs::remove_file(directory.with_extension("lock"))?;
        assert!(interrupted.is_err() && whole);
        assert_eq!((made?, again?), (directory.join("part"), directory.join("part")));
        assert_eq!(left, ["part"]);
        Ok(())
    }
}
