//! The kernel's real signals: an ext4 on a loop device is told to record an error, and becomes read-only.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use somersault_agent::probe::device::stack;
use somersault_agent::probe::mountinfo::containing;
use somersault_agent::probe::{diskstats, ext4, mountinfo};
use somersault_agent_core::health::{
    Access, FilesystemSample, Grade, Grader, IoSample, Reason, Signals, Thresholds,
};
use tempfile::TempDir;

/// An ext4 on a loop device, taken down when the test ends however it ends.
struct LoopFilesystem {
    folder: TempDir,
    device: String,
}

impl LoopFilesystem {
    /// `None`, with a sentence, where this user or this kernel offers no loop devices. In CI that is a failure:
    /// there, nobody reads the sentence.
    fn new() -> Option<Self> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (image, mount_point) = (folder.path().join("image"), folder.path().join("mnt"));
        fs::create_dir(&mount_point).expect("created");
        fs::File::create(&image).and_then(|file| file.set_len(64 << 20)).expect("an image");
        run("mkfs.ext4", &["-q", "-F", text(&image)])?;
        let device = run("losetup", &["-f", "--show", text(&image)])?.trim().to_owned();
        let filesystem = Self { folder, device };
        run("mount", &["-o", "errors=remount-ro", &filesystem.device, text(&mount_point)])?;
        Some(filesystem)
    }

    fn mount_point(&self) -> PathBuf {
        self.folder.path().join("mnt")
    }

    fn name(&self) -> &str {
        self.device.trim_start_matches("/dev/")
    }
}

impl Drop for LoopFilesystem {
    fn drop(&mut self) {
        let mount_point = self.mount_point();
        let _not_mounted = Command::new("umount").args(["-l", text(&mount_point)]).output();
        let _not_attached = Command::new("losetup").args(["-d", &self.device]).output();
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

fn run(program: &str, arguments: &[&str]) -> Option<String> {
    let output = match Command::new(program).args(arguments).output() {
        Ok(output) if output.status.success() => return String::from_utf8(output.stdout).ok(),
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    let why = format!("this test needs root, mkfs.ext4 and loop devices; {program}: {output}");
    assert!(std::env::var_os("CI").is_none(), "nothing may be skipped in CI: {why}");
    eprintln!("SKIPPED, nothing was tested: {why}");
    None
}

fn sample(filesystem: &LoopFilesystem) -> FilesystemSample {
    let mounts = mountinfo::read(Path::new("/proc")).expect("mountinfo");
    let mount = containing(&mounts, &filesystem.mount_point()).expect("a mount");
    let stack = stack(Path::new("/sys"), &mounts, mount).expect("a stack");
    assert_eq!(stack.device, filesystem.name());
    assert_eq!(stack.disks.len(), 1, "{stack:?}");
    FilesystemSample {
        access: mount.access,
        errors: ext4::errors(Path::new("/sys"), &stack.device),
        device_errors: None,
    }
}

#[test]
fn an_error_in_a_real_ext4_is_seen_and_graded() {
    let Some(filesystem) = LoopFilesystem::new() else { return };
    let signals =
        |sample| Signals { filesystems: [("/data".to_owned(), sample)].into(), ..Signals::default() };
    let mut grader = Grader::new(Thresholds::default());

    let clean = sample(&filesystem);
    assert_eq!(clean.access, Access::ReadWrite);
    assert_eq!(clean.errors.map(|errors| errors.count), Some(0));
    grader.observe(Duration::from_secs(10), &signals(clean));
    assert_eq!(grader.assess(Duration::from_secs(10)).grade, Grade::Unknown);

    let trigger = Path::new("/sys/fs/ext4").join(filesystem.name()).join("trigger_fs_error");
    fs::write(trigger, "test").expect("triggered");
    let broken = sample(&filesystem);
    assert!(matches!(broken.access, Access::ReadOnly | Access::EmergencyReadOnly), "{broken:?}");
    let errors = broken.errors.expect("a counter");
    assert!(errors.count > 0 && errors.last_age.expect("a time") < Duration::from_mins(5), "{errors:?}");
    grader.observe(Duration::from_secs(15), &signals(broken));
    let assessment = grader.assess(Duration::from_secs(15));
    assert_eq!(assessment.grade, Grade::Failed);
    assert_eq!(assessment.reasons, [Reason::ReadOnlyAfterError, Reason::FilesystemErrorsGrowing]);
}

#[test]
fn the_counters_of_a_real_device_move() {
    let Some(filesystem) = LoopFilesystem::new() else { return };
    let io = || -> IoSample { diskstats::read(Path::new("/proc")).expect("diskstats")[filesystem.name()] };
    let before = io();
    let file = fs::File::create(filesystem.mount_point().join("file")).expect("created");
    file.write_all_at(&vec![1; 1 << 20], 0).and_then(|()| file.sync_all()).expect("written");
    assert!(io().completed > before.completed);
}
