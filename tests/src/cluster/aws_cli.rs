//! An image with the AWS CLI, as the chart's test wants one: made of the clients that `cargo xtask setup` has installed
//! and of the Python they run on.
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    aws::clients::Clients,
    containers::{BUSYBOX, image::Image},
    node::Node,
    process::must,
};

/// Its name.
pub const AWS_CLI: &str = "localhost/aws-cli:test";

/// What the AWS CLI imports, of all that the clients have.
const PACKAGES: [&str; 12] = [
    "awscli",
    "botocore",
    "s3transfer",
    "jmespath",
    "dateutil",
    "urllib3",
    "colorama",
    "docutils",
    "rsa",
    "pyasn1",
    "yaml",
    "six.py",
];

/// Tests of Python's own, and what is for people to read: two thirds of all.
const LEFT_OUT: [&str; 8] =
    ["test", "tests", "idlelib", "site-packages", "dist-packages", "__pycache__", "examples", "ensurepip"];

/// Makes it. Its AWS is the node's.
pub(super) fn image(node: &Node) -> Result<Image> {
    let python = Clients::find()?.python_program("python3");
    let ask = "import sys, sysconfig; print(sys.executable, sys.base_prefix, \
               'python%d.%d' % sys.version_info[:2], sysconfig.get_path('purelib'), sep='\\n')";
    let answer = must(Command::new(&python).args(["-c", ask]))?;
    let [executable, prefix, version, packages] = answer.lines().collect::<Vec<_>>()[..] else {
        anyhow::bail!("not what was asked of Python: {answer}");
    };
    let program = fs::canonicalize(executable)?;
    let library = Path::new(prefix).join("lib").join(version);
    let mut image = Image::default().file("/python/bin/python3", &program).libraries_of(&program)?;
    for name in ["/bin/busybox", "/bin/sh"] {
        image = image.file(name, Path::new(BUSYBOX));
    }
    for (from, to) in files_below(&library, &format!("/python/lib/{version}"))? {
        let is_library = from.extension().is_some_and(|extension| extension == "so");
        image = image.file(&to, &from);
        if is_library {
            image = image.libraries_of(&from)?;
        }
    }
    for package in PACKAGES {
        let from = Path::new(packages).join(package);
        ensure!(from.exists(), "the AWS CLI has no {package} in {packages}");
        for (from, to) in files_below(&from, &format!("/python/packages/{package}"))? {
            image = image.file(&to, &from);
        }
    }
    let launcher = node.dir().join("aws");
    fs::write(&launcher, launcher_for(&node.aws()?.url_for_pods()))?;
    Ok(image.file("/bin/aws", &launcher))
}

/// AWS is where the node's is: other images find it by name, over an uplink.
fn launcher_for(url: &str) -> String {
    format!(
        "#!/bin/sh\nexport AWS_ENDPOINT_URL_STS={url} AWS_ENDPOINT_URL_S3={url}\n\
         export PYTHONHOME=/python PYTHONPATH=/python/packages PYTHONDONTWRITEBYTECODE=1\n\
         exec /python/bin/python3 -m awscli \"$@\"\n"
    )
}

/// All files of a tree with their places in the image, or the one file that it is.
fn files_below(from: &Path, to: &str) -> Result<Vec<(PathBuf, String)>> {
    if from.is_file() {
        // An image's file has something in it, and Python takes a line's end for nothing.
        return Ok(vec![(from.to_owned(), to.to_owned())]);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(from).with_context(|| format!("list {}", from.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !LEFT_OUT.contains(&name.as_str()) && !name.starts_with("config-") {
            found.extend(files_below(&entry.path(), &format!("{to}/{name}"))?);
        }
    }
    Ok(found)
}
