// What an image without a base image lacks: the few programs that a cluster needs in containers of its own.
//
//	pause              holds a pod's namespaces open, as registry.k8s.io/pause does
//	volume -p … -a …   makes or removes a volume's folder, asked by local-path-provisioner's helper pods
//	append FILE        appends a running number to FILE five times a second, until SIGTERM
//	guest DISK…        writes on the disks of a virtual machine, which it does not run (see guest.go)
//	import FILE        fills a disk as CDI's importer does, but for the download (see disk.go)
//	connect ADDRESS    looks whether somebody accepts connections there
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const appendPeriod = 200 * time.Millisecond
const connectTimeout = 5 * time.Second

func main() {
	name, arguments := filepath.Base(os.Args[0]), os.Args[1:]
	if name == "toolbox" && len(arguments) > 0 {
		name, arguments = arguments[0], arguments[1:]
	}
	if err := run(name, arguments); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
}

func run(name string, arguments []string) error {
	switch name {
	case "pause":
		return pause()
	case "volume":
		return volume(arguments)
	case "append":
		return appendNumbers(arguments)
	case "guest":
		return runGuest(arguments)
	case "import":
		return runImport(arguments)
	case "connect":
		return connect(arguments)
	default:
		return errors.New("usage: toolbox pause | volume -p PATH -a create|delete | append FILE | guest | import | connect HOST:PORT")
	}
}

// As pid 1 of a pod whose containers share it, it inherits their orphans and must bury them.
func pause() error {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCHLD)
	for received := range signals {
		if received != syscall.SIGCHLD {
			return nil
		}
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
	return nil
}

// The flags are those that local-path-provisioner passes to its setupCommand and teardownCommand:
// https://github.com/rancher/local-path-provisioner#the-script-setup-and-teardown
func volume(arguments []string) error {
	flags := flag.NewFlagSet("volume", flag.ContinueOnError)
	path := flags.String("p", "", "folder of the volume")
	action := flags.String("a", "", "create or delete")
	flags.String("s", "", "size in bytes; a folder has no limit")
	flags.String("m", "", "volume mode; always Filesystem")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	if !filepath.IsAbs(*path) || filepath.Clean(*path) == "/" {
		return fmt.Errorf("%q is no absolute path of a volume", *path)
	}
	switch *action {
	case "create":
		if err := os.MkdirAll(*path, 0o777); err != nil {
			return err
		}
		return os.Chmod(*path, 0o777) // MkdirAll obeys the umask
	case "delete":
		return os.RemoveAll(*path)
	default:
		return fmt.Errorf("unknown action %q", *action)
	}
}

func appendNumbers(arguments []string) error {
	if len(arguments) != 1 {
		return errors.New("append needs one file")
	}
	file, err := os.OpenFile(arguments[0], os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o666)
	if err != nil {
		return err
	}
	last := ""
	for lines := bufio.NewScanner(file); lines.Scan(); {
		last = lines.Text()
	}
	number := 0
	if _, err := fmt.Sscan(strings.TrimSpace(last), &number); last != "" && err != nil {
		return fmt.Errorf("last line %q: %w", last, err)
	}
	terminate := make(chan os.Signal, 1)
	signal.Notify(terminate, syscall.SIGINT, syscall.SIGTERM)
	for {
		number++
		if _, err := fmt.Fprintln(file, number); err != nil {
			return err
		}
		if err := file.Sync(); err != nil {
			return err
		}
		select {
		case <-terminate:
			return nil
		case <-time.After(appendPeriod):
		}
	}
}

// Somebody who looks whether a guest serves.
func connect(arguments []string) error {
	if len(arguments) != 1 {
		return errors.New("connect needs one address")
	}
	connection, err := net.DialTimeout("tcp", arguments[0], connectTimeout)
	if err != nil {
		return err
	}
	return connection.Close()
}

func runImport(arguments []string) error {
	flags := flag.NewFlagSet("import", flag.ContinueOnError)
	source := flags.String("source", "", "name of the image; none makes an empty disk")
	size := flags.Int64("size", 0, "bytes of the disk")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	if flags.NArg() != 1 || *size < slotBytes {
		return errors.New("import needs a file and a size")
	}
	return importImage(flags.Arg(0), *source, *size)
}
