//! The kubelet's directory: token volumes of pods, made, mounted, written and rotated in the kubelet's own way.
//!
//! The way matters: the directory is there before the tmpfs that holds the token is mounted over it, so a watch that
//! was set in between sees nothing; and every file is reached through `..data`, a link that rotation replaces.
use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};

/// The volume that EKS adds to a pod, and the file in it.
const VOLUME: &str = "eks-pod-identity-token";

/// The kubelet's root directory, a mount of its own that passes later mounts on to whoever mounts it.
#[derive(Debug)]
pub struct KubeletRoot(PathBuf);

impl KubeletRoot {
    /// Makes one.
    pub fn create(dir: PathBuf) -> Result<Self> {
        fs::create_dir_all(&dir)?;
        mount("kubelet", &dir, "tmpfs", MountFlags::NODEV, None).context("cannot mount the kubelet's directory")?;
        let root = Self(dir);
        mount_change(&root.0, MountPropagationFlags::SHARED).context("cannot share the kubelet's directory")?;
        fs::create_dir(root.0.join("pods"))?;
        Ok(root)
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The directory of a pod.
    #[must_use]
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.0.join("pods").join(uid)
    }
}

impl Drop for KubeletRoot {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// A pod's projected service account token.
#[derive(Debug)]
pub struct TokenVolume {
    dir: PathBuf,
    mounted: bool,
}

impl TokenVolume {
    /// Makes the directory, and nothing in it yet.
    pub fn make_directory(kubelet: &KubeletRoot, uid: &str) -> Result<Self> {
        let dir = kubelet.pod_dir(uid).join("volumes/kubernetes.io~projected").join(VOLUME);
        fs::create_dir_all(&dir)?;
        // Only the kubelet may look into pods' directories.
        fs::set_permissions(kubelet.pod_dir(uid), fs::Permissions::from_mode(0o750))?;
        Ok(Self { dir, mounted: false })
    }

    /// Mounts the tmpfs over the directory.
    pub fn mount(&mut self) -> Result<()> {
        mount("tmpfs", &self.dir, "tmpfs", MountFlags::empty(), Some(c"size=64k")).context("cannot mount a volume")?;
        self.mounted = true;
        Ok(())
    }

    /// Writes the token, or replaces it: all of a new directory, then one rename of the link that leads to it.
    pub fn write(&self, token: &str) -> Result<()> {
        static GENERATION: AtomicU32 = AtomicU32::new(1);
        let generation = format!("..2026_11_24_00_00_00.{:09}", GENERATION.fetch_add(1, Ordering::Relaxed));
        let data = self.dir.join("..data");
        let old = fs::read_link(&data).ok();
        let new = self.dir.join(&generation);
        fs::create_dir(&new)?;
        fs::write(new.join(VOLUME), token)?;
        fs::set_permissions(new.join(VOLUME), fs::Permissions::from_mode(0o644))?;
        let coming = self.dir.join("..data_tmp");
        symlink(&generation, &coming)?;
        fs::rename(&coming, &data)?;
        if let Some(old) = old {
            fs::remove_dir_all(self.dir.join(old))?;
        } else {
            symlink(Path::new("..data").join(VOLUME), self.file())?;
        }
        Ok(())
    }

    /// The token's file, as the node sees it.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.dir.join(VOLUME)
    }

    /// The volume's directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Unmounts the tmpfs.
    pub fn unmount(&mut self) -> Result<()> {
        if self.mounted {
            unmount(&self.dir, UnmountFlags::DETACH).context("cannot unmount a volume")?;
            self.mounted = false;
        }
        Ok(())
    }
}

impl Drop for TokenVolume {
    fn drop(&mut self) {
        let _ = self.unmount();
    }
}
