package main

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"strconv"
	"syscall"
	"time"
)

// A disk as the guest leaves it, so that whoever reads it knows who wrote what: slots of one sector each, every
// slot a line of JSON, padded with spaces, its checksum, a newline.
//
//	slot 0   where the content came from: {"origin":"blank",…} by the first guest, {"origin":"image",…} by an importer
//	slot 1…  {"instance":…,"node":…,"counter":…,"time":…}, one for each write, in the order of writing
//	rest     zeros
//
// The judge (tests/kubevirt/src/judge) reads the same.
const (
	slotBytes     = 512
	checksumBytes = 16
	contentBytes  = slotBytes - checksumBytes - 1
	// Reads are few, and what is read at once fits in any container's memory.
	chunkBytes = 1 << 20

	seekData = 3 // lseek(2); package syscall does not name it
)

type origin struct {
	Origin   string    `json:"origin"`
	ID       string    `json:"id"`
	Instance string    `json:"instance,omitempty"`
	Node     string    `json:"node,omitempty"`
	Source   string    `json:"source,omitempty"`
	Time     time.Time `json:"time"`
}

type record struct {
	Instance string    `json:"instance"`
	Node     string    `json:"node"`
	Counter  uint64    `json:"counter"`
	Time     time.Time `json:"time"`
}

func encode(content any) ([]byte, error) {
	text, err := json.Marshal(content)
	if err != nil {
		return nil, err
	}
	if len(text) > contentBytes {
		return nil, fmt.Errorf("%d bytes do not fit in a slot", len(text))
	}
	slot := make([]byte, 0, slotBytes)
	slot = append(slot, text...)
	for len(slot) < contentBytes {
		slot = append(slot, ' ')
	}
	return fmt.Appendf(slot, "%016x\n", checksum(slot)), nil
}

func checksum(content []byte) uint64 {
	hash := fnv.New64a()
	hash.Write(content)
	return hash.Sum64()
}

// A record that is whole; anything else is the judge's business.
func decodeRecord(slot []byte) (record, bool) {
	var found record
	want, err := strconv.ParseUint(string(slot[contentBytes:slotBytes-1]), 16, 64)
	if err != nil || want != checksum(slot[:contentBytes]) || json.Unmarshal(slot[:contentBytes], &found) != nil {
		return record{}, false
	}
	return found, found.Instance != ""
}

func isBlank(slot []byte) bool {
	for _, b := range slot {
		if b != 0 {
			return false
		}
	}
	return true
}

// Where the next slot is, and the counter of the last record. Holes hold nothing and are skipped, so a large disk
// costs what was written on it.
func findEnd(file *os.File) (end int64, counter uint64, err error) {
	chunk := make([]byte, chunkBytes)
	for at := int64(0); ; {
		from := at
		at, err = file.Seek(from, seekData)
		if errors.Is(err, syscall.EINVAL) { // a block device: all of it is data
			at, err = from, nil
		}
		if errors.Is(err, syscall.ENXIO) { // no data beyond
			return end, counter, nil
		}
		if err != nil {
			return 0, 0, err
		}
		at -= at % slotBytes
		read, err := file.ReadAt(chunk, at)
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, 0, err
		}
		for offset := 0; offset+slotBytes <= read; offset += slotBytes {
			slot := chunk[offset : offset+slotBytes]
			if isBlank(slot) {
				continue
			}
			end = at + int64(offset) + slotBytes
			if found, ok := decodeRecord(slot); ok {
				counter = found.Counter
			}
		}
		if read < slotBytes {
			return end, counter, nil
		}
		at += int64(read)
	}
}

// What CDI's importer does, but for the download: the claim holds an image from now on, whatever it held before.
// Nothing but the source's name is in it; an empty name makes an empty disk.
func importImage(path, source string, size int64) error {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o660)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := file.Truncate(size); err != nil {
		return err
	}
	if source != "" {
		slot, err := encode(origin{Origin: "image", ID: rand.Text(), Source: source, Time: time.Now().UTC()})
		if err != nil {
			return err
		}
		if _, err := file.WriteAt(slot, 0); err != nil {
			return err
		}
	}
	if err := file.Chown(qemu, qemu); err != nil {
		return err
	}
	return file.Sync()
}
