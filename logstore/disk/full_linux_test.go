package disk_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/millrace-io/millrace/logstore"
	"github.com/millrace-io/millrace/logstore/disk"
)

// TestFullFileSystem fills a real file system of 24 MiB, several times: records
// get ErrFull while offsets move, and all goes on when there is space.
func TestFullFileSystem(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting a small file system needs root")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=24m"); err != nil {
		t.Skipf("mount: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	o := disk.Options{JournalBytes: 1 << 20, SegmentBytes: 1 << 20, ReserveBytes: 2 << 20, MaintainEvery: -1}
	home := filepath.Join(dir, "log")
	l := open(t, home, o)
	create(t, l, "t", logstore.TopicConfig{Partitions: 3})
	position := logstore.TopicPartition{Topic: "t"}
	sizes := []int{300, 5000, 70 << 10, 200 << 10}
	var confirmed [3]int
	ballast := filepath.Join(dir, "ballast")
	offset := int64(0)
	for cycle := range 5 {
		w := writerOf(t, l, "source")
		if err := os.WriteFile(ballast, make([]byte, (14-2*cycle)<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		var err error
		for i := 0; err == nil && i < 100_000; i++ {
			p := i % 3
			if _, err = logstore.Append(t.Context(), w, &logstore.Unit{Batches: []logstore.Batch{to("t", int32(p), oneRecord(strings.Repeat("x", sizes[i%len(sizes)])))}}); err == nil {
				confirmed[p]++
			}
		}
		if !errors.Is(err, logstore.ErrFull) {
			t.Fatalf("cycle %d: %v", cycle, err)
		}
		for range 200 {
			offset++
			appendUnit(t, writerOf(t, l, "sink"), &logstore.Unit{Offsets: []logstore.GroupOffset{{Group: "g", TopicPartition: position, Offset: offset}}})
		}
		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
		w = writerOf(t, l, "source")
		appendTo(t, w, "t", 0, "there is space")
		confirmed[0]++
		if err := l.Maintain(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		for p, n := range confirmed {
			if got := len(contents(t, l, "t", int32(p), 0)); got != n {
				t.Errorf("partition %d holds %d records of %d", p, got, n)
			}
		}
		if got := l.GroupOffsets("g")[position]; got != offset {
			t.Errorf("offset %d of %d", got, offset)
		}
		closeLog(t, l)
		l = open(t, home, o)
	}
}
