//! The image as an OCI layout (a directory), and the same as one archive for `ctr image import`, `podman load`,
//! `skopeo copy oci-archive:…`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, Header};

use super::layer::{CA_BUNDLE, HOME, PROGRAM, Tree};

const NAME: &str = "pod-identity-agent";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// No clock: an image is what is in it.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// What was written.
pub(super) struct Image {
    pub(super) directory: PathBuf,
    pub(super) archive: PathBuf,
    /// Of the manifest: what a registry calls the image.
    pub(super) digest: String,
    pub(super) layer_bytes: u64,
    pub(super) unpacked_bytes: u64,
}

/// The name of the file that holds the image as one archive.
pub(super) fn archive_name(architecture: &str) -> String {
    format!("{NAME}-{VERSION}-{architecture}.tar")
}

/// Writes the image of `tree` below `out`.
pub(super) fn write(out: &Path, architecture: &str, tree: &Tree) -> Result<Image> {
    let directory = out.join("layout");
    let mut layout = Layout { directory: directory.clone(), files: Vec::new() };
    layout.put("oci-layout", json!({ "imageLayoutVersion": "1.0.0" }).to_string().into_bytes())?;

    let unpacked = tree.archive(Vec::new())?;
    // The operating system is left out of the head: it is the one of whoever compresses.
    let mut compressed = GzBuilder::new().mtime(0).operating_system(255).write(Vec::new(), Compression::best());
    std::io::Write::write_all(&mut compressed, &unpacked)?;
    let compressed = compressed.finish()?;
    let layer_bytes = compressed.len() as u64;

    let layer = layout.blob("application/vnd.oci.image.layer.v1.tar+gzip", compressed)?;
    let config = config(architecture, &format!("sha256:{}", hex(&unpacked))).to_string();
    let config = layout.blob("application/vnd.oci.image.config.v1+json", config.into_bytes())?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": [layer],
        "annotations": labels(),
    });
    let mut manifest = layout.blob("application/vnd.oci.image.manifest.v1+json", manifest.to_string().into_bytes())?;
    let digest = manifest["digest"].as_str().unwrap_or_default().to_owned();
    manifest["platform"] = json!({ "os": "linux", "architecture": architecture });
    // The names under which containerd, and podman and skopeo, keep what they import.
    manifest["annotations"] = json!({
        "io.containerd.image.name": format!("docker.io/library/{NAME}:{VERSION}"),
        "org.opencontainers.image.ref.name": VERSION,
    });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [manifest],
    });
    layout.put("index.json", index.to_string().into_bytes())?;

    let archive = out.join(archive_name(architecture));
    fs::write(&archive, layout.archive()?).with_context(|| format!("write {}", archive.display()))?;
    Ok(Image { directory, archive, digest, layer_bytes, unpacked_bytes: unpacked.len() as u64 })
}

/// What a runtime makes of the image. It runs as root: programs are loaded with capabilities that only root has.
fn config(architecture: &str, layer: &str) -> Value {
    json!({
        "created": CREATED,
        "architecture": architecture,
        "os": "linux",
        "config": {
            "Env": [
                "PATH=/".to_owned(),
                format!("HOME={HOME}"),
                // Where the bundle is; AWS_CA_BUNDLE, if set, replaces it.
                format!("SSL_CERT_FILE={CA_BUNDLE}"),
            ],
            "Entrypoint": [PROGRAM],
            "Cmd": ["server"],
            "WorkingDir": "/",
            "StopSignal": "SIGTERM",
            "Labels": labels(),
        },
        "rootfs": { "type": "layers", "diff_ids": [layer] },
        "history": [{ "created": CREATED, "created_by": "cargo xtask image" }],
    })
}

fn labels() -> Value {
    json!({
        "org.opencontainers.image.title": NAME,
        "org.opencontainers.image.description": "Gives EKS pods their IAM credentials and knows from the kernel which pod is asking",
        "org.opencontainers.image.licenses": "Apache-2.0 AND (MIT OR GPL-2.0-only)",
        "org.opencontainers.image.version": VERSION,
    })
}

/// A layout under way: what is in its directory goes into the archive too.
struct Layout {
    directory: PathBuf,
    files: Vec<(String, Vec<u8>)>,
}

impl Layout {
    fn put(&mut self, name: &str, bytes: Vec<u8>) -> Result<()> {
        let path = self.directory.join(name);
        let parent = path.parent().unwrap_or(&self.directory);
        fs::create_dir_all(parent)
            .and_then(|()| fs::write(&path, &bytes))
            .with_context(|| format!("write {}", path.display()))?;
        self.files.push((name.to_owned(), bytes));
        Ok(())
    }

    /// Stores a document under its hash; returns its descriptor.
    fn blob(&mut self, media_type: &str, bytes: Vec<u8>) -> Result<Value> {
        let (hash, size) = (hex(&bytes), bytes.len());
        self.put(&format!("blobs/sha256/{hash}"), bytes)?;
        Ok(json!({ "mediaType": media_type, "digest": format!("sha256:{hash}"), "size": size }))
    }

    fn archive(&self) -> Result<Vec<u8>> {
        let mut archive = Builder::new(Vec::new());
        for (name, bytes) in &self.files {
            let mut header = Header::new_ustar();
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            header.set_size(bytes.len() as u64);
            archive.append_data(&mut header, name, bytes.as_slice())?;
        }
        archive.into_inner().context("write the archive")
    }
}

/// The SHA-256 of `bytes`, in hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        use std::fmt::Write as _;
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program, and the image of it, in a directory of its own.
    fn image(name: &str) -> Image {
        let out = std::env::temp_dir().join(format!("pod-identity-image-{}-{name}", std::process::id()));
        fs::create_dir(&out).expect("a new directory");
        let program = out.join("program");
        fs::write(&program, [7; 4096]).expect("a program");
        write(&out, "amd64", &Tree::new(&program, b"certificates")).expect("an image")
    }

    fn remove(image: &Image) {
        let _ = fs::remove_dir_all(image.directory.parent().expect("the layout has a parent"));
    }

    #[test]
    fn the_same_files_make_the_same_image() {
        let (one, other) = (image("one"), image("other"));
        let archives = [&one, &other].map(|image| fs::read(&image.archive).expect("an archive"));
        remove(&one);
        remove(&other);
        assert_eq!(one.digest, other.digest);
        assert!(archives[0] == archives[1], "the archives differ");
    }

    #[test]
    fn what_is_named_for_its_hash_has_that_hash_and_the_size_that_is_said() {
        let image = image("hashes");
        let read = |digest: &Value| {
            let hash = digest["digest"].as_str().and_then(|digest| digest.strip_prefix("sha256:")).expect("a digest");
            let bytes = fs::read(image.directory.join("blobs/sha256").join(hash)).expect("a blob");
            assert_eq!(hex(&bytes), hash);
            assert_eq!(digest["size"], bytes.len());
            bytes
        };
        let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).expect("JSON");
        let index = json(&fs::read(image.directory.join("index.json")).expect("an index"));
        let manifest = json(&read(&index["manifests"][0]));
        let config = json(&read(&manifest["config"]));
        let mut unpacked = Vec::new();
        let layer = read(&manifest["layers"][0]);
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(layer.as_slice()), &mut unpacked).expect("gzip");
        assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", hex(&unpacked)));
        remove(&image);
    }

    #[test]
    fn a_container_build_makes_the_same_image() {
        let dockerfile = include_str!("../../../deploy/Dockerfile");
        let last = dockerfile.rsplit("FROM scratch").next().expect("a last stage");
        let line = |instruction: &str| last.lines().find_map(|line| line.strip_prefix(instruction)).map(str::trim);
        let config = &config("amd64", "")["config"];
        let variables: Vec<_> = config["Env"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        assert_eq!(line("ENV "), Some(variables.join(" ").as_str()));
        assert_eq!(line("ENTRYPOINT "), Some(config["Entrypoint"].to_string().as_str()));
        assert_eq!(line("CMD "), Some(config["Cmd"].to_string().as_str()));
        assert_eq!(line("STOPSIGNAL "), config["StopSignal"].as_str());
    }

    #[test]
    fn everything_in_the_layer_is_roots_and_of_no_time() {
        let image = image("owners");
        let program = image.directory.parent().expect("a parent").join("program");
        let layer = Tree::new(&program, b"certificates").archive(Vec::new()).expect("a layer");
        let mut paths = Vec::new();
        for entry in tar::Archive::new(layer.as_slice()).entries().expect("entries") {
            let entry = entry.expect("an entry");
            let head = entry.header();
            assert_eq!((head.uid().ok(), head.gid().ok(), head.mtime().ok()), (Some(0), Some(0), Some(0)));
            paths.push(entry.path().expect("a path").display().to_string());
        }
        remove(&image);
        assert_eq!(
            paths,
            [
                "etc/",
                "etc/ssl/",
                "etc/ssl/certs/",
                "etc/ssl/certs/ca-certificates.crt",
                "pod-identity-agent",
                "root/",
                "run/",
            ]
        );
    }
}
