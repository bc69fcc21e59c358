//! Programs and images that a bed is made of: built by make, looked for here.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Which images run on the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Images {
    /// What people install.
    Release,
    /// The debug build, as tests have it.
    Debug,
}

impl Images {
    fn folder(self) -> &'static str {
        match self {
            Self::Release => "target/image",
            Self::Debug => "target/image-test",
        }
    }

    fn make(self) -> &'static str {
        match self {
            Self::Release => "make image image-fence",
            Self::Debug => "make image-test",
        }
    }
}

/// Where everything is.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The repository.
    pub root: PathBuf,
    /// `somersault-cluster`.
    pub cluster: PathBuf,
    /// `somersault-kubevirt-standin`.
    pub standin: PathBuf,
    /// `kubectl-somersault`.
    pub plugin: PathBuf,
    /// Archive of the image with agent, coordinator and command line.
    pub image: PathBuf,
    /// Archive of the fence runner's.
    pub fence_image: PathBuf,
}

impl Programs {
    /// Finds all of it, or says what builds what is missing.
    pub fn find(images_of: Images) -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let root = root.canonicalize().context("finding the repository")?;
        // Beside this program, or one folder up when this is a test.
        let own = std::env::current_exe().context("finding this program")?;
        let folder = own.ancestors().skip(1).find(|folder| !folder.ends_with("deps"));
        let built = folder.context("a program without a folder")?.to_owned();
        let images = root.join(images_of.folder());
        let found = Self {
            cluster: built.join("somersault-cluster"),
            standin: built.join("somersault-kubevirt-standin"),
            plugin: built.join("kubectl-somersault"),
            image: images.join("somersault.tar"),
            fence_image: images.join("fence-runner.tar"),
            root,
        };
        let build_images = images_of.make();
        let programs = [
            (&found.cluster, "cargo build -p somersault-test-cluster"),
            (&found.standin, "cargo build -p somersault-test-kubevirt"),
            (&found.plugin, "cargo build -p kubectl-somersault"),
            (&found.image, build_images),
            (&found.fence_image, build_images),
        ];
        for (path, build) in programs {
            ensure!(path.is_file(), "{} is missing; it is built by `{build}`", path.display());
        }
        Ok(found)
    }
}
