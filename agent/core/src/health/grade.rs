//! The grades, the closed set of reasons with the grade of each, and the thresholds with their evidence.

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
    /// The kernel has given the disk up: it is there, and takes no request (SCSI `offline`).
    DeviceOffline => Failed,
    /// The controller of an `NVMe` disk is dead.
    NvmeDead => Failed,
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
    /// btrfs counted new errors of one of its devices: reads, writes, checksums.
    BtrfsDeviceErrors => Failing,
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
    /// ext4 or btrfs recorded errors at some earlier time, and none since.
    HistoricErrors => Warning,
    /// The array that it belongs to lacks a disk: the next one that fails takes data with it.
    RaidDegraded => Warning,
    /// The kernel counted failed requests of a SCSI or ATA disk. Some that were merely refused count too.
    IoErrorsGrowing => Warning,
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
