package disk_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace-io/millrace/logstore"
	"github.com/millrace-io/millrace/logstore/disk"
)

// TestManyWritersAndReaders appends from many writers to shared partitions,
// synchronously and in flight, while readers follow and checkpoints, rolls and
// retention go on; every reader sees every record once, in the order of offsets,
// and each writer's records in its order.
func TestManyWritersAndReaders(t *testing.T) {
	const partitions, writers, each = 5, 12, 150
	o := small()
	o.MaintainEvery = 5 * time.Millisecond
	o.QueueBytes = 64 << 10 // appends block
	o.OpenFiles = 3
	dir := t.TempDir()
	l := open(t, dir, o)
	create(t, l, "t", logstore.TopicConfig{Partitions: partitions})
	var wg sync.WaitGroup
	var mu sync.Mutex
	total := make([]int64, partitions)
	for w := range writers {
		by := writerOf(t, l, fmt.Sprint("writer", w))
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 3))
			var inFlight sync.WaitGroup
			last := -1
			for n := range each {
				unit := &logstore.Unit{}
				for p := range int32(partitions) {
					if rng.IntN(3) == 0 {
						continue
					}
					size := rng.IntN(500)
					if rng.IntN(12) == 0 {
						size = 8<<10 + rng.IntN(8<<10)
					}
					unit.Batches = append(unit.Batches, to("t", p, oneRecord(fmt.Sprintf("%d/%d/%s", w, n, strings.Repeat("x", size)))))
				}
				if len(unit.Batches) == 0 {
					unit.Batches = append(unit.Batches, to("t", 0, oneRecord(fmt.Sprintf("%d/%d/", w, n))))
				}
				inFlight.Add(1)
				err := by.Append(context.Background(), unit, func(r logstore.Result, err error) {
					defer inFlight.Done()
					mu.Lock()
					defer mu.Unlock()
					if err != nil || n != last+1 || len(r.BaseOffsets) != len(unit.Batches) {
						t.Errorf("writer %d: unit %d after %d: %v", w, n, last, err)
					}
					last = n
					for i := range unit.Batches {
						total[unit.Batches[i].Partition]++
					}
				})
				if err != nil {
					t.Error(err)
					return
				}
				if n%10 == 0 {
					inFlight.Wait()
				}
			}
			inFlight.Wait()
		})
	}
	finished := make(chan struct{})
	var readers sync.WaitGroup
	for p := range int32(partitions) {
		for range 2 {
			readers.Go(func() { follow(t, l, p, finished) })
		}
	}
	wg.Wait()
	close(finished)
	readers.Wait()
	for restart := range 2 {
		for p := range partitions {
			if got := len(contents(t, l, "t", int32(p), 0)); int64(got) != total[p] {
				t.Errorf("restart %d: partition %d holds %d records of %d", restart, p, got, total[p])
			}
		}
		closeLog(t, l)
		l = open(t, dir, o)
	}
}

// follow reads a partition from the start until finished is closed and the end
// is reached.
func follow(t *testing.T, l *disk.Log, p int32, finished <-chan struct{}) {
	r, err := l.OpenReader("t", p, 0)
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = r.Close() }()
	next := int64(0)
	last := map[int]int{}
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		got, err := r.Next(ctx, 4<<10)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			select {
			case <-finished:
				if _, end, _ := l.Bounds("t", p); end != next {
					t.Errorf("partition %d: read up to %d of %d", p, next, end)
				}
				return
			default:
				continue
			}
		}
		if err != nil {
			t.Error(err)
			return
		}
		records, err := decode(got.Data, got.From)
		if err != nil || got.From != next {
			t.Errorf("partition %d: from %d, want %d: %v", p, got.From, next, err)
			return
		}
		for _, s := range records {
			var off int64
			var w, n int
			if _, err := fmt.Sscanf(s, "%d:%d/%d/", &off, &w, &n); err != nil || off != next {
				t.Errorf("partition %d: %.30q at offset %d: %v", p, s, next, err)
				return
			}
			if before, ok := last[w]; ok && n <= before {
				t.Errorf("partition %d: unit %d of writer %d after %d", p, n, w, before)
			}
			last[w] = n
			next++
		}
	}
}

func TestCloseEndsEveryGoroutine(t *testing.T) {
	before := runtime.NumGoroutine()
	for range 3 {
		l := open(t, t.TempDir(), small())
		create(t, l, "t", logstore.TopicConfig{Partitions: 100})
		w := writerOf(t, l, "w")
		for p := range int32(100) {
			appendTo(t, w, "t", p, strings.Repeat("x", int(p)*200))
		}
		if n := runtime.NumGoroutine(); n > before+20 {
			t.Errorf("%d goroutines for 100 partitions", n-before)
		}
		closeLog(t, l)
	}
	for range 100 {
		if runtime.NumGoroutine() <= before {
			return
		}
		runtime.Gosched()
		time.Sleep(time.Millisecond) // goroutines that have ended may still be counted
	}
	buf := make([]byte, 1<<16)
	t.Errorf("%d goroutines before, %d after:\n%s", before, runtime.NumGoroutine(), buf[:runtime.Stack(buf, true)])
}

func TestAppendWaitsForRoomUntilItsContextEnds(t *testing.T) {
	o := small()
	o.QueueBytes = 1 << 10
	l := open(t, t.TempDir(), o)
	create(t, l, "t", logstore.TopicConfig{})
	w := writerOf(t, l, "w")
	block, blocked := make(chan struct{}), make(chan struct{})
	if err := w.Append(t.Context(), &logstore.Unit{Batches: []logstore.Batch{to("t", 0, batchOf(t, "a"))}}, func(logstore.Result, error) {
		close(blocked)
		<-block // nothing ends any more
	}); err != nil {
		t.Fatal(err)
	}
	<-blocked
	large := strings.Repeat("x", 900)
	var filled int
	var err error
	for ; filled < 10 && err == nil; filled++ {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		err = w.Append(ctx, &logstore.Unit{Batches: []logstore.Batch{to("t", 0, batchOf(t, large))}}, func(logstore.Result, error) {})
		cancel()
	}
	if !errors.Is(err, context.DeadlineExceeded) || filled > 2 {
		t.Errorf("after %d appends: %v", filled, err)
	}
	close(block)
	appendTo(t, w, "t", 0, large)
	oversize := strings.Repeat("y", 5000) // larger than the queue: alone it may
	appendTo(t, w, "t", 0, oversize)
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if err := w.Append(t.Context(), &logstore.Unit{Batches: []logstore.Batch{to("t", 0, batchOf(t, "a"))}}, nil); !errors.Is(err, logstore.ErrClosed) {
		t.Error(err)
	}
}

// TestUnitsOfManyPartitionsAreLarge appends one unit over a thousand partitions:
// more than a frame takes inline.
func TestUnitsOfManyPartitionsAreLarge(t *testing.T) {
	dir := t.TempDir()
	o := disk.Options{JournalBytes: 1 << 20, ReserveBytes: -1}
	l := open(t, dir, o)
	create(t, l, "t", logstore.TopicConfig{Partitions: 1000})
	w := writerOf(t, l, "w")
	for range 3 {
		unit := &logstore.Unit{}
		for p := range int32(1000) {
			unit.Batches = append(unit.Batches, to("t", p, oneRecord(strings.Repeat("x", 2000))))
		}
		appendUnit(t, w, unit)
	}
	closeLog(t, l)
	began := time.Now()
	l = open(t, dir, o)
	t.Logf("1000 partitions open in %v", time.Since(began))
	for p := range int32(1000) {
		if _, end, err := l.Bounds("t", p); end != 3 || err != nil {
			t.Fatalf("partition %d ends at %d: %v", p, end, err)
		}
	}
}

func TestFewFileDescriptorsAreEnough(t *testing.T) {
	o := small()
	o.OpenFiles = 20
	dir := t.TempDir()
	l := open(t, dir, o)
	create(t, l, "t", logstore.TopicConfig{Partitions: 200})
	w := writerOf(t, l, "w")
	fill := func() {
		for p := range int32(200) {
			appendTo(t, w, "t", p, strings.Repeat("x", 9<<10))
			appendTo(t, w, "t", p, "small")
		}
	}
	fill()
	for p := range int32(200) {
		if got := contents(t, l, "t", p, 1); len(got) != 1 || got[0] != "1:small" {
			t.Fatal(got)
		}
	}
	closeLog(t, l)
	l = open(t, dir, o)
	w = writerOf(t, l, "w")
	fill()
	for p := range int32(200) {
		if got := contents(t, l, "t", p, 3); len(got) != 1 {
			t.Fatal(got)
		}
	}
}
