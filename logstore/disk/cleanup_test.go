package disk_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace-io/millrace/logstore"
	"github.com/millrace-io/millrace/logstore/disk"
	"github.com/millrace-io/millrace/logstore/recordbatch"
)

// handClock is a clock that tests move.
type handClock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *handClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *handClock) set(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = t
}

func segments(t testing.TB, dir, topic string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "topics", topic, "0", "*.log"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// timed builds a batch of one record with a timestamp.
func timed(t testing.TB, ms int64, size int) []byte {
	t.Helper()
	var b recordbatch.Builder
	b.Reset()
	if err := b.Append(&recordbatch.Record{Timestamp: ms, Value: make([]byte, size)}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestRetentionByBytesDropsWholeSegments(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, small())
	create(t, l, "t", logstore.TopicConfig{RetentionBytes: 60 << 10, SegmentBytes: 16 << 10})
	w := writerOf(t, l, "w")
	for range 100 {
		appendTo(t, w, "t", 0, strings.Repeat("x", 3000))
	}
	slow, err := l.OpenReader("t", 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Maintain(t.Context()); err != nil {
		t.Fatal(err)
	}
	start, end, _ := l.Bounds("t", 0)
	if start == 0 || end != 100 {
		t.Fatalf("bounds %d, %d", start, end)
	}
	if _, err := slow.Next(t.Context(), 1); !errors.Is(err, logstore.ErrOutOfRange) {
		t.Errorf("reader below the start: %v", err)
	}
	if _, err := l.OpenReader("t", 0, start-1); !errors.Is(err, logstore.ErrOutOfRange) {
		t.Error(err)
	}
	files := segments(t, dir, "t")
	if n := len(files); n < 4 || n > 6 {
		t.Errorf("%d segments are left for 60 KiB", n)
	}
	for range 2 {
		if got := len(contents(t, l, "t", 0, start)); got != int(end-start) {
			t.Errorf("%d records of %d", got, end-start)
		}
		closeLog(t, l)
		l = open(t, dir, small())
		if s, e, _ := l.Bounds("t", 0); s != start || e != end {
			t.Errorf("bounds after restart: %d, %d", s, e)
		}
	}
}

func TestRetentionByTimeAlsoEmptiesAnIdlePartition(t *testing.T) {
	dir := t.TempDir()
	clock := &handClock{now: time.Now()}
	o := small()
	o.Clock = clock
	l := open(t, dir, o)
	create(t, l, "t", logstore.TopicConfig{RetentionTime: time.Hour, SegmentBytes: 16 << 10})
	w := writerOf(t, l, "w")
	old, young := clock.Now().Add(-2*time.Hour).UnixMilli(), clock.Now().UnixMilli()
	for i := range 20 {
		ms := old
		if i >= 12 {
			ms = young
		}
		appendUnit(t, w, &logstore.Unit{Batches: []logstore.Batch{to("t", 0, timed(t, ms, 3000))}})
	}
	if err := l.Maintain(t.Context()); err != nil {
		t.Fatal(err)
	}
	start, end, _ := l.Bounds("t", 0)
	if start == 0 || start > 12 || end != 20 {
		t.Fatalf("bounds %d, %d: a segment with a young record must stay", start, end)
	}
	closeLog(t, l)
	clock.set(clock.Now().Add(3 * time.Hour)) // the machine was off
	l = open(t, dir, o)
	if err := l.Maintain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if start, end, _ := l.Bounds("t", 0); start != 20 || end != 20 {
		t.Fatalf("bounds %d, %d: everything is old", start, end)
	}
	if files := segments(t, dir, "t"); len(files) != 0 {
		t.Errorf("files are left: %q", files)
	}
	for range 2 {
		if off := appendTo(t, writerOf(t, l, "w"), "t", 0, "next"); off < 20 {
			t.Errorf("offset %d", off)
		}
		closeLog(t, l)
		l = open(t, dir, o)
	}
	if got := contents(t, l, "t", 0, 20); !slices.Equal(got, []string{"20:next", "21:next"}) {
		t.Error(got)
	}
}

func TestClockJumpDeletesNothing(t *testing.T) {
	clock := &handClock{now: time.Now()}
	o := small()
	o.Clock = clock
	l := open(t, t.TempDir(), o)
	create(t, l, "t", logstore.TopicConfig{RetentionTime: time.Hour})
	w := writerOf(t, l, "w")
	appendUnit(t, w, &logstore.Unit{Batches: []logstore.Batch{to("t", 0, timed(t, clock.Now().UnixMilli(), 10))}})
	for _, jump := range []time.Duration{0, 10 * 365 * 24 * time.Hour, time.Minute} {
		clock.set(clock.Now().Add(jump))
		if err := l.Maintain(t.Context()); err != nil {
			t.Fatal(err)
		}
		if start, end, _ := l.Bounds("t", 0); start != 0 || end != 1 {
			t.Fatalf("bounds %d, %d after a jump of %v", start, end, jump)
		}
	}
}

func TestCompactionKeepsTheLastRecordOfEachKey(t *testing.T) {
	dir := t.TempDir()
	clock := &handClock{now: time.UnixMilli(1790000000000)}
	o := small()
	o.Clock = clock
	l := open(t, dir, o)
	create(t, l, "t", logstore.TopicConfig{Cleanup: logstore.CleanupCompact, SegmentBytes: 16 << 10})
	w := writerOf(t, l, "w")
	rng := rand.New(rand.NewPCG(1, 1))
	var all []string
	put := func(n int) {
		for range n {
			var values []string
			for range 1 + rng.IntN(3) {
				v := fmt.Sprintf("k%d=%d%s", rng.IntN(40), len(all)+len(values), strings.Repeat(".", rng.IntN(300)))
				if rng.IntN(10) == 0 {
					v = fmt.Sprintf("k%d=", rng.IntN(40))
				}
				if rng.IntN(100) == 0 {
					v = "no key"
				}
				values = append(values, v)
			}
			off := appendTo(t, w, "t", 0, values...)
			for i, v := range values {
				all = append(all, fmt.Sprintf("%d:%s", int(off)+i, v))
			}
		}
	}
	check := func(when string) {
		t.Helper()
		got := contents(t, l, "t", 0, 0)
		last := map[string]string{}
		for _, s := range all {
			key, _, _ := strings.Cut(strings.SplitN(s, ":", 2)[1], "=")
			last[key] = s
		}
		for range 30 { // through the indexes
			from := rng.IntN(len(all))
			want := slices.DeleteFunc(slices.Clone(got), func(s string) bool {
				var off int
				_, _ = fmt.Sscan(strings.SplitN(s, ":", 2)[0], &off)
				return off < from
			})
			if part := contents(t, l, "t", 0, int64(from)); !slices.Equal(part, want) {
				t.Fatalf("%s: from %d: %d records, want %d", when, from, len(part), len(want))
			}
		}
		there := map[string]bool{}
		for i, s := range got {
			there[s] = true
			if !slices.Contains(all, s) {
				t.Fatalf("%s: %q was never written", when, s)
			}
			var a, b int
			if i > 0 {
				_, _ = fmt.Sscan(strings.SplitN(got[i-1], ":", 2)[0], &a)
				_, _ = fmt.Sscan(strings.SplitN(s, ":", 2)[0], &b)
				if b <= a {
					t.Fatalf("%s: offset %d after %d", when, b, a)
				}
			}
		}
		for key, s := range last {
			if !there[s] && !strings.HasSuffix(s, "=") {
				t.Fatalf("%s: last record of %q is gone: %q", when, key, s)
			}
		}
		for _, s := range all {
			if strings.HasSuffix(s, ":no key") && !there[s] {
				t.Fatalf("%s: a record without a key is gone", when)
			}
		}
	}
	reader, err := l.OpenReader("t", 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	for round := range 6 {
		put(200)
		before := len(contents(t, l, "t", 0, 0))
		if _, err := reader.Next(t.Context(), 20<<10); err != nil { // in the middle of a file that goes
			t.Fatal(err)
		}
		if err := l.Maintain(t.Context()); err != nil {
			t.Fatal(err)
		}
		check(fmt.Sprint("round ", round))
		if after := len(contents(t, l, "t", 0, 0)); after >= before {
			t.Errorf("round %d: %d records, before %d", round, after, before)
		}
		if round%2 == 1 {
			closeLog(t, l)
			l = open(t, dir, o)
			w = writerOf(t, l, "w")
			check(fmt.Sprint("restart ", round))
			if reader, err = l.OpenReader("t", 0, 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := len(segments(t, dir, "t")); n > 5 {
		t.Errorf("%d segments are left", n)
	}
	for range 200 { // long after the deletions
		off := appendTo(t, w, "t", 0, "other="+strings.Repeat("x", 200))
		all = append(all, fmt.Sprintf("%d:other=%s", off, strings.Repeat("x", 200)))
	}
	clock.set(clock.Now().Add(48 * time.Hour))
	if err := l.Maintain(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, s := range contents(t, l, "t", 0, 0) {
		if strings.HasSuffix(s, "=") {
			t.Errorf("old deletion %q is still there", s)
		}
	}
	check("end")
}

func TestTablesStaySmall(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, disk.Options{JournalBytes: 8 << 20, ReserveBytes: -1, MaintainEvery: -1})
	create(t, l, "t", logstore.TopicConfig{})
	w := writerOf(t, l, "w")
	const n = 100_000
	done := make(chan error, n)
	for i := range n {
		unit := &logstore.Unit{Offsets: []logstore.GroupOffset{{Group: strings.Repeat("g", 300), TopicPartition: logstore.TopicPartition{Topic: "t"}, Offset: int64(i)}}}
		if err := w.Append(t.Context(), unit, func(_ logstore.Result, err error) { done <- err }); err != nil {
			t.Fatal(err)
		}
	}
	for range n {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Maintain(t.Context()); err != nil {
		t.Fatal(err)
	}
	closeLog(t, l)
	size := int64(0)
	for _, name := range segments(t, dir, "__consumer_offsets") {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		size += info.Size()
	}
	if size > 17<<20 {
		t.Errorf("%d bytes for one offset", size)
	}
	began := time.Now()
	l = open(t, dir, disk.Options{JournalBytes: 8 << 20, ReserveBytes: -1, MaintainEvery: -1})
	t.Logf("opened in %v", time.Since(began))
	for _, off := range l.GroupOffsets(strings.Repeat("g", 300)) {
		if off != n-1 {
			t.Errorf("offset %d", off)
		}
	}
}

func TestOffsetForTime(t *testing.T) {
	dir := t.TempDir()
	o := small()
	l := open(t, dir, o)
	create(t, l, "t", logstore.TopicConfig{SegmentBytes: 64 << 10})
	w := writerOf(t, l, "w")
	rng := rand.New(rand.NewPCG(2, 2))
	var times []int64
	for i := range 400 {
		ms := int64(1000+i*10) + rng.Int64N(50) // mostly ascending
		times = append(times, ms)
		appendUnit(t, w, &logstore.Unit{Batches: []logstore.Batch{to("t", 0, timed(t, ms, 100+rng.IntN(1500)))}})
	}
	check := func() {
		t.Helper()
		for range 300 {
			ms := 900 + rng.Int64N(4400)
			want := slices.IndexFunc(times, func(x int64) bool { return x >= ms })
			if want < 0 {
				want = len(times)
			}
			got, err := l.OffsetForTime("t", 0, ms)
			if err != nil || got != int64(want) {
				t.Fatalf("time %d: offset %d, want %d (%v)", ms, got, want, err)
			}
		}
	}
	check()
	closeLog(t, l)
	l = open(t, dir, o)
	check()
	closeLog(t, l)
	for _, pattern := range []string{"*.index", "*.timeindex"} {
		names, _ := filepath.Glob(filepath.Join(dir, "topics", "t", "0", pattern))
		if len(names) < 3 {
			t.Errorf("only %d files %s", len(names), pattern)
		}
		for i, name := range names {
			var err error
			switch i % 3 {
			case 0:
				err = os.Remove(name)
			case 1:
				err = os.WriteFile(name, []byte("garbage"), 0o600)
			case 2:
				var data []byte
				if data, err = os.ReadFile(name); err == nil {
					data[len(data)-1] ^= 4
					err = os.WriteFile(name, data, 0o600)
				}
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		l = open(t, dir, o)
		check()
		for range 50 {
			off := rng.Int64N(400)
			r, err := l.OpenReader("t", 0, off)
			if err != nil {
				t.Fatal(err)
			}
			got, err := r.Next(context.Background(), 1)
			if err != nil || got.From != off {
				t.Fatalf("offset %d: %+v %v", off, got.From, err)
			}
		}
		closeLog(t, l)
	}
	if _, err := l.OffsetForTime("t", 0, 1); !errors.Is(err, logstore.ErrClosed) {
		t.Error(err)
	}
}
