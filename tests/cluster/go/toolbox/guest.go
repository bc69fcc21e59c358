package main

import (
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// What runs in a launcher pod of the stand-in for KubeVirt: virt-handler's part (a missing disk is made), QEMU's
// (disks are opened and locked) and the guest's (it writes).
const (
	// KubeVirt's user for QEMU (pkg/util/util.go).
	qemu = 107
	// Ten writes a second: an outage is known to a tenth of a second.
	writePeriod = 100 * time.Millisecond
	// virt-handler tries again to start a domain that failed; the VMI stays Scheduled meanwhile.
	retryPeriod = time.Second

	// QEMU, block/file-posix.c: byte 100+n is locked by who has permission n, 200+n by who does not share it.
	lockPermissions = 100
	lockUnshared    = 200
	ofdGetLock      = 36 // fcntl(2); package syscall does not name them
	ofdSetLock      = 37
)

var (
	// CONSISTENT_READ, WRITE, RESIZE: what QEMU takes for a writable disk.
	permissions = []int64{0, 1, 3}
	// WRITE, RESIZE: what it leaves to nobody else.
	unshared = []int64{1, 3}
)

type disk struct {
	path    string
	size    int64
	locks   bool
	file    *os.File
	end     int64
	counter uint64
}

type guest struct {
	instance, node string
	disks          []*disk
}

func runGuest(arguments []string) error {
	flags := flag.NewFlagSet("guest", flag.ContinueOnError)
	instance := flags.String("instance", "", "uid of the VirtualMachineInstance")
	node := flags.String("node", "", "where it runs")
	port := flags.Int("port", 0, "TCP port that answers once the guest runs")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	guest := guest{instance: *instance, node: *node}
	for _, argument := range flags.Args() {
		disk, err := parseDisk(argument)
		if err != nil {
			return err
		}
		guest.disks = append(guest.disks, disk)
	}
	terminate := make(chan os.Signal, 1)
	signal.Notify(terminate, syscall.SIGINT, syscall.SIGTERM)
	for _, disk := range guest.disks {
		if err := disk.makeIfMissing(); err != nil {
			return err
		}
	}
	if err := becomeQemu(); err != nil {
		return err
	}
	for said := ""; ; {
		err := guest.open()
		if err == nil {
			break
		}
		if err.Error() != said {
			said = err.Error()
			fmt.Fprintf(os.Stderr, "the guest cannot start yet: %v\n", err)
		}
		select {
		case <-terminate:
			return nil
		case <-time.After(retryPeriod):
		}
	}
	// Nobody need accept: a probe that connects has its answer.
	listener, err := net.Listen("tcp", ":"+strconv.Itoa(*port))
	if err != nil {
		return err
	}
	defer listener.Close()
	fmt.Println("the guest runs")
	return guest.write(terminate)
}

// PATH,BYTES or PATH,BYTES,nolock, where a lock is not seen by other hosts (NFS mounted with nolock, a block
// device that two hosts have).
func parseDisk(argument string) (*disk, error) {
	parts := strings.Split(argument, ",")
	if len(parts) < 2 || len(parts) > 3 || (len(parts) == 3 && parts[2] != "nolock") {
		return nil, fmt.Errorf("%q is not PATH,BYTES[,nolock]", argument)
	}
	size, err := strconv.ParseInt(parts[1], 10, 64)
	if err != nil || size < slotBytes {
		return nil, fmt.Errorf("%q: %q is no size of a disk", argument, parts[1])
	}
	return &disk{path: parts[0], size: size, locks: len(parts) == 2}, nil
}

// KubeVirt, pkg/host-disk/host-disk.go: sparse, blank, and QEMU's own. Measured on 1.9.0: 107:107, 0644. A block device
// becomes QEMU's own too.
func (d *disk) makeIfMissing() error {
	file, err := os.OpenFile(d.path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, os.ErrExist) {
		if found, err := os.Stat(d.path); err != nil || found.Mode()&os.ModeDevice == 0 {
			return err
		}
		return os.Chown(d.path, qemu, qemu)
	}
	if err != nil {
		return err
	}
	defer file.Close()
	if err := file.Truncate(d.size); err != nil {
		return err
	}
	return file.Chown(qemu, qemu)
}

// A disk that is not QEMU's own is refused from here on, as measured on 1.9.0 ("Permission denied").
func becomeQemu() error {
	if err := syscall.Setgroups(nil); err != nil {
		return err
	}
	if err := syscall.Setresgid(qemu, qemu, qemu); err != nil {
		return err
	}
	return syscall.Setresuid(qemu, qemu, qemu)
}

func (g *guest) open() error {
	for _, disk := range g.disks {
		if disk.file != nil {
			continue
		}
		file, err := os.OpenFile(disk.path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		if disk.locks {
			if err := lock(file); err != nil {
				file.Close()
				return err
			}
		}
		if disk.end, disk.counter, err = findEnd(file); err != nil {
			file.Close()
			return err
		}
		disk.file = file
	}
	return nil
}

// As QEMU does it: take shared locks, then look whether somebody else's stand against them.
func lock(file *os.File) error {
	set := func(at int64) error {
		return syscall.FcntlFlock(file.Fd(), ofdSetLock, &syscall.Flock_t{Type: syscall.F_RDLCK, Start: at, Len: 1})
	}
	for _, bit := range permissions {
		if err := set(lockPermissions + bit); err != nil {
			// QEMU's locking=auto goes on where the filesystem has no such locks.
			fmt.Fprintf(os.Stderr, "%s is not locked: %v\n", file.Name(), err)
			return nil
		}
	}
	for _, bit := range unshared {
		if err := set(lockUnshared + bit); err != nil {
			return err
		}
	}
	isFree := func(at int64) error {
		held := syscall.Flock_t{Type: syscall.F_WRLCK, Start: at, Len: 1}
		if err := syscall.FcntlFlock(file.Fd(), ofdGetLock, &held); err != nil {
			return err
		}
		if held.Type != syscall.F_UNLCK {
			return fmt.Errorf("failed to get \"write\" lock: is another process using %s?", file.Name())
		}
		return nil
	}
	for _, bit := range permissions {
		if err := isFree(lockUnshared + bit); err != nil {
			return err
		}
	}
	for _, bit := range unshared {
		if err := isFree(lockPermissions + bit); err != nil {
			return err
		}
	}
	return nil
}

// Writes on every disk until it is told to end. A disk that fails ends the guest: the tests want to know.
func (g *guest) write(terminate <-chan os.Signal) error {
	stop := make(chan struct{})
	ended := make(chan error, len(g.disks))
	for _, disk := range g.disks {
		go func() { ended <- g.writeDisk(disk, stop) }()
	}
	var first error
	left := len(g.disks)
	select {
	case <-terminate:
	case first = <-ended:
		left--
	}
	close(stop)
	for ; left > 0; left-- {
		first = errors.Join(first, <-ended)
	}
	return first
}

func (g *guest) writeDisk(disk *disk, stop <-chan struct{}) error {
	if disk.end == 0 {
		blank := origin{Origin: "blank", ID: rand.Text(), Instance: g.instance, Node: g.node, Time: time.Now().UTC()}
		if err := disk.append(blank); err != nil {
			return err
		}
	}
	tick := time.NewTicker(writePeriod)
	defer tick.Stop()
	for {
		disk.counter++
		err := disk.append(record{g.instance, g.node, disk.counter, time.Now().UTC()})
		if err != nil {
			return err
		}
		select {
		case <-stop:
			return disk.file.Close()
		case <-tick.C:
		}
	}
}

// Takes the next slot that is still blank: where a second guest writes too, both leave their traces instead of
// one hiding the other's.
func (d *disk) append(content any) error {
	slot, err := encode(content)
	if err != nil {
		return err
	}
	for found := make([]byte, slotBytes); ; d.end += slotBytes {
		if _, err := d.file.ReadAt(found, d.end); err != nil {
			return fmt.Errorf("%s, at byte %d (the disk is full?): %w", d.path, d.end, err)
		}
		if isBlank(found) {
			break
		}
	}
	if _, err := d.file.WriteAt(slot, d.end); err != nil {
		return err
	}
	d.end += slotBytes
	return syscall.Fdatasync(int(d.file.Fd()))
}
