package disk_test

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/millrace-io/millrace/logstore"
	"github.com/millrace-io/millrace/logstore/disk"
	"github.com/millrace-io/millrace/logstore/disk/disktest"
)

var errInjected = errors.New("injected input/output error")

// TestEveryNthCallFails fails each single call that changes or syncs something,
// once, in each of three ways. Whatever fails, what was confirmed is there after
// a crash, no file is synced again after its sync failed, and a log that has
// stopped says so.
func TestEveryNthCallFails(t *testing.T) {
	step := 1
	if testing.Short() || raceEnabled {
		step = 9
	}
	for name, fault := range map[string]error{"EIO": errInjected, "ENOSPC": syscall.ENOSPC, "short write": io.ErrShortWrite} {
		t.Run(name, func(t *testing.T) {
			calls, err := failNth(t, 0, nil) // how many there are
			if err != nil {
				t.Fatal(err)
			}
			for n := 1; n <= calls; n += step {
				if _, err := failNth(t, n, fault); err != nil {
					t.Fatalf("call %d: %v", n, err)
				}
			}
			t.Logf("%d calls", calls)
		})
	}
}

func failNth(t *testing.T, n int, fault error) (int, error) {
	rng := rand.New(rand.NewPCG(7, uint64(n)))
	fs := disktest.New()
	failedSync := make(map[string]bool)
	var again, what string
	fs.Fault = func(call int, op, name string) error {
		if op == "sync" && failedSync[name] {
			again = name
		}
		if call != n || op != "write" && errors.Is(fault, io.ErrShortWrite) {
			return nil
		}
		if op == "sync" {
			failedSync[name] = true
		}
		what = op + " " + name
		return fault
	}
	g := &ledger{}
	o := tiny(fs)
	var stopped atomic.Int32
	o.OnStorageError = func(err error) {
		if !errors.Is(err, logstore.ErrStorage) {
			t.Errorf("call %d: %v", n, err)
		}
		stopped.Add(1)
	}
	if err := g.live(t, rng, fs, o); err != nil {
		return 0, err
	}
	total := fs.Calls()
	if again != "" {
		return 0, fmt.Errorf("file %q was synced again after its sync failed", again)
	}
	if len(failedSync) > 0 && stopped.Load() == 0 && g.epoch[0] > 0 {
		return 0, errors.New("a sync failed and the log did not stop")
	}
	if stopped.Load() > 1 {
		return 0, errors.New("the log stopped twice")
	}
	fs.Fault = nil
	after := fs.Crash(rng)
	l, err := disk.Open("memory", tiny(after))
	if err != nil {
		return 0, fmt.Errorf("open after a fault in %s: %w", what, err)
	}
	defer func() { _ = l.Close() }()
	if _, _, err := l.Bounds("t", 0); errors.Is(err, logstore.ErrNotFound) && g.acked[0]+g.acked[1] == 0 {
		return total, nil
	}
	return total, g.check(l)
}

// TestFullDiskHealsByItself fills the disk, sees ErrFull for records while
// offsets still move, frees space, and goes on without a restart.
func TestFullDiskHealsByItself(t *testing.T) {
	fs := disktest.New()
	o := tiny(fs)
	o.ReserveBytes = 32 << 10
	o.SegmentBytes = 64 << 10
	l := open(t, "memory", o)
	create(t, l, "t", logstore.TopicConfig{})
	create(t, l, "internal", logstore.TopicConfig{Internal: true, Cleanup: logstore.CleanupCompact})
	w := writerOf(t, l, "w")
	offsets := writerOf(t, l, "sink")
	appendTo(t, w, "t", 0, "first")
	appendTo(t, offsets, "internal", 0, "k=first")
	for cycle := range 5 {
		fs.SetCapacity(fs.Used() + 200<<10)
		before := 0
		var err error
		for range 1000 {
			size := 200
			if before%3 == 0 {
				size = 9 << 10
			}
			if _, err = logstore.Append(t.Context(), w, &logstore.Unit{Batches: []logstore.Batch{to("t", 0, batchOf(t, string(make([]byte, size))))}}); err != nil {
				break
			}
			before++
		}
		if !errors.Is(err, logstore.ErrFull) {
			t.Fatalf("cycle %d: after %d appends: %v", cycle, before, err)
		}
		if err := w.Append(t.Context(), &logstore.Unit{Batches: []logstore.Batch{to("t", 0, batchOf(t, "x"))}}, nil); !errors.Is(err, logstore.ErrBehind) {
			t.Fatalf("cycle %d: a unit behind one that failed: %v", cycle, err)
		}
		w = writerOf(t, l, "w")
		for i := range 20 {
			appendUnit(t, offsets, &logstore.Unit{
				Batches: []logstore.Batch{to("internal", 0, batchOf(t, fmt.Sprintf("k=%d", i)))},
				Offsets: []logstore.GroupOffset{{Group: "g", TopicPartition: logstore.TopicPartition{Topic: "t"}, Offset: int64(i)}},
			})
		}
		if _, err := logstore.Append(t.Context(), w, &logstore.Unit{Batches: []logstore.Batch{to("t", 0, batchOf(t, string(make([]byte, 300<<10))))}}); !errors.Is(err, logstore.ErrFull) {
			t.Fatalf("cycle %d: a full disk took a large batch: %v", cycle, err)
		}
		fs.SetCapacity(0)
		w = writerOf(t, l, "w")
		appendTo(t, w, "t", 0, string(make([]byte, 9<<10)))
		if err := l.Maintain(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	want := len(contents(t, l, "t", 0, 0))
	closeLog(t, l)
	l = open(t, "memory", o)
	if got := len(contents(t, l, "t", 0, 0)); got != want {
		t.Errorf("%d records after restart, %d before", got, want)
	}
}

// TestJournalIsNotOverwrittenBeforeItsCheckpoint lets no checkpoint succeed: when
// the circle is full, units are refused and nothing confirmed is lost.
func TestJournalIsNotOverwrittenBeforeItsCheckpoint(t *testing.T) {
	fs := disktest.New()
	l := open(t, "memory", tiny(fs))
	create(t, l, "t", logstore.TopicConfig{})
	w := writerOf(t, l, "w")
	block := func(_ int, op, name string) error {
		if op == "rename" && name == "checkpoint" {
			return syscall.ENOSPC
		}
		return nil
	}
	fs.SetFault(block)
	confirmed := 0
	var err error
	for range 2000 {
		if _, err = logstore.Append(t.Context(), w, &logstore.Unit{Batches: []logstore.Batch{to("t", 0, batchOf(t, string(make([]byte, 300))))}}); err != nil {
			break
		}
		confirmed++
	}
	if !errors.Is(err, logstore.ErrFull) || confirmed < 50 {
		t.Errorf("after %d units: %v", confirmed, err)
	}
	after := fs.Clone()
	fs.SetFault(nil)
	if err := l.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	appendTo(t, writerOf(t, l, "w"), "t", 0, "goes on")
	l = open(t, "memory", tiny(after))
	if got := len(contents(t, l, "t", 0, 0)); got != confirmed {
		t.Errorf("%d records of %d", got, confirmed)
	}
}
