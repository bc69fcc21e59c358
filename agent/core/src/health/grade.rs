//! The grades, the closed set of reasons with the grade of each, and the thresholds with their evidence.

use std::time::Duration;

/// Grade of a disk, worst last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grade {
    /// Nobody can tell: no complaint of the kernel, and no fresh word of the disk itself.
    #[default]
    Unknown,
    /// The kernel and the disk have no complaint.
    Ok,
    /// Worth a look; data is safe as far as known.
    Warning,
    /// Still readable: move the data away.
    Failing,
    /// Do not trust what it reads.
    Failed,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident => $grade:ident,)+) => {
        /// Why a disk has its grade. The name is what reports, conditions and metric labels show.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $($(#[$doc])* $name,)+
        }

        impl Reason {
            /// Every reason there is.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The grade that this reason alone gives.
            pub const fn grade(self) -> Grade {
                match self {
                    $(Self::$name => Grade::$grade,)+
                }
            }

            /// The name in `CamelCase`.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)+
                }
            }
        }
    };
}

reasons! {
    /// The block device is gone while a filesystem on it is still mounted.
    DeviceGone => Failed,
    /// The kernel made the filesystem read-only (`emergency_ro`, or `ro` after it had been writable).
    ReadOnlyAfterError => Failed,
    /// Requests in flight and none completed for [`Thresholds::stall_failed`].
    IoStalled => Failed,
    /// The disk (ATA, SCSI) predicts its own failure, or a pre-fail attribute is below its threshold.
    SmartFailingNow => Failing,
    /// `NVMe` critical warning bit 0: spare blocks below the vendor's threshold.
    NvmeSpareLow => Failing,
    /// `NVMe` critical warning bit 2: reliability degraded by media or internal errors.
    NvmeDegraded => Failing,
    /// `NVMe` critical warning bit 3: the media went read-only.
    NvmeReadOnly => Failing,
    /// Many sectors wait for a re-read (197) or could not be read offline (198).
    PendingSectors => Failing,
    /// A counter of uncorrectable errors rose twice within a day.
    UncorrectableGrowing => Failing,
    /// Many sectors were reallocated, or several within a day.
    Reallocated => Failing,
    /// ext4 counted new errors.
    FilesystemErrorsGrowing => Failing,
    /// Some sectors are reallocated, pending or uncorrectable (ATA 5, 187, 197, 198; SCSI grown defects).
    SectorDefects => Warning,
    /// The disk has counted errors of its medium (`NVMe` media errors, SCSI uncorrected errors).
    MediaErrors => Warning,
    /// The rated endurance is used up.
    WearExhausted => Warning,
    /// `NVMe` critical warning bit 1: temperature outside its range.
    NvmeTemperature => Warning,
    /// `NVMe` critical warning bit 4: a power cut may lose the drive's cache.
    VolatileBackupFailed => Warning,
    /// CRC errors on the cable or backplane rose (199).
    LinkErrorsGrowing => Warning,
    /// Requests in flight and none completed for [`Thresholds::stall_warning`].
    IoStalling => Warning,
    /// ext4 recorded errors at some earlier time, and none since.
    HistoricErrors => Warning,
    /// An operation on the filesystem, or `smartctl` itself, has not come back.
    ProbeStuck => Warning,
    /// The disk, its driver or its controller offers no SMART.
    SmartUnsupported => Unknown,
    /// The disk has SMART, switched off (`smartctl -s on` switches it on).
    SmartDisabled => Unknown,
    /// The last attempt to read SMART failed.
    SmartUnreadable => Unknown,
    /// The last good reading is too old to say anything of today.
    SmartStale => Unknown,
}

/// From when on a signal counts.
#[derive(Clone, Debug, PartialEq)]
pub struct Thresholds {
    /// A finding is dropped after its source was clean this long. 30 min: three SMART polls of 10 min agree.
    pub clean: Duration,
    /// No completion with requests in flight: a warning. 30 s is the kernel's default SCSI command timeout.
    pub stall_warning: Duration,
    /// The same: failed. 120 s is the kernel's default `hung_task_timeout_secs`.
    pub stall_failed: Duration,
    /// Longest time between two kernel samples that counts as observed: when the whole machine stood still,
    /// its disk did not stall.
    pub kernel_gap_max: Duration,
    /// Age at which a good SMART reading no longer counts: six missed polls of 10 min.
    pub smart_stale: Duration,
    /// Attribute 5 from which on disks fail far more often: the 17-70 bucket of the Backblaze-derived table in
    /// Scrutiny shows 23.6 % a year, 71-260 36 %.
    pub reallocated_failing: u64,
    /// Attribute 5, growth within [`Thresholds::trend_window`]. Google (FAST'07): first reallocations make
    /// failure within 60 days 14 times as likely.
    pub reallocated_growth_failing: u64,
    /// Attribute 197. Google (FAST'07): first pending sectors make failure 16 times as likely; a handful heals
    /// when rewritten.
    pub pending_failing: u64,
    /// Attribute 198. Google (FAST'07): first offline reallocations make failure 21 times as likely.
    pub offline_uncorrectable_failing: u64,
    /// How many rises of an uncorrectable counter within [`Thresholds::trend_window`] make it grow. One alone
    /// says little: 20-63 % of SSDs see one in four years (Google, FAST'16).
    pub uncorrectable_rises_failing: usize,
    /// Window of the growth rules.
    pub trend_window: Duration,
    /// Wear in percent of the rated endurance. No cliff at 100 % (Google, FAST'16): a warning only.
    pub wear_warning_percent: u64,
}

impl Default for Thresholds {
    fn default() -> Self {
        const DAY: Duration = Duration::from_hours(24);
        Self {
            clean: Duration::from_mins(30),
            stall_warning: Duration::from_secs(30),
            stall_failed: Duration::from_mins(2),
            kernel_gap_max: Duration::from_secs(15),
            smart_stale: Duration::from_hours(1),
            reallocated_failing: 70,
            reallocated_growth_failing: 10,
            pending_failing: 16,
            offline_uncorrectable_failing: 3,
            uncorrectable_rises_failing: 2,
            trend_window: DAY,
            wear_warning_percent: 100,
        }
    }
}
