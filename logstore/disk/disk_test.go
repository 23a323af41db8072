package disk_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-io/millrace/logstore"
	"github.com/millrace-io/millrace/logstore/disk"
)

func TestWhatWasAppendedIsReadAndSurvivesRestart(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, small())
	create(t, l, "orders", logstore.TopicConfig{Partitions: 3})
	w := writerOf(t, l, "source-0")
	want := make([][]string, 3)
	big := strings.Repeat("b", 20<<10) // skips the journal
	for i := range 200 {
		p := i % 3
		v := fmt.Sprint("v", i)
		if i%17 == 0 {
			v += big
		}
		off := appendTo(t, w, "orders", int32(p), v)
		if off != int64(len(want[p])) {
			t.Fatalf("append %d got offset %d, want %d", i, off, len(want[p]))
		}
		want[p] = append(want[p], fmt.Sprintf("%d:%s", off, v))
	}
	check := func(l *disk.Log) {
		t.Helper()
		for p := range 3 {
			if d := cmp.Diff(want[p], contents(t, l, "orders", int32(p), 0)); d != "" {
				t.Fatal(d[:min(len(d), 2000)])
			}
			half := len(want[p]) / 2
			if !slices.Equal(want[p][half:], contents(t, l, "orders", int32(p), int64(half))) {
				t.Fatal("reading from the middle differs")
			}
		}
	}
	check(l)
	for range 3 {
		closeLog(t, l)
		l = open(t, dir, small())
		check(l)
		w := writerOf(t, l, "source-0")
		off := appendTo(t, w, "orders", 1, "again")
		want[1] = append(want[1], fmt.Sprintf("%d:again", off))
		check(l)
	}
}

func TestTopicsAreDurableAndDistinct(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, small())
	before := l.Catalog()
	config := logstore.TopicConfig{Partitions: 4, Cleanup: logstore.CleanupCompact, RetentionTime: time.Hour + 1, RetentionBytes: 7, SegmentBytes: 1 << 20, Internal: true}
	a := create(t, l, "a", config)
	select {
	case <-before.Changed():
	default:
		t.Error("the old catalog does not say that it is outdated")
	}
	b := create(t, l, "b", logstore.TopicConfig{})
	if b.Config != (logstore.TopicConfig{Partitions: 1, Cleanup: logstore.CleanupDelete}) {
		t.Errorf("defaults: %+v", b.Config)
	}
	for _, c := range []struct {
		name string
		cfg  logstore.TopicConfig
		want error
	}{
		{"a", logstore.TopicConfig{}, logstore.ErrExists},
		{"__topics", logstore.TopicConfig{}, logstore.ErrExists},
		{"", logstore.TopicConfig{}, logstore.ErrInvalid},
		{"a/b", logstore.TopicConfig{}, logstore.ErrInvalid},
		{"..", logstore.TopicConfig{}, logstore.ErrInvalid},
		{"c", logstore.TopicConfig{Partitions: -1}, logstore.ErrInvalid},
		{"c", logstore.TopicConfig{Partitions: logstore.MaxPartitions + 1}, logstore.ErrInvalid},
		{"c", logstore.TopicConfig{Cleanup: "x"}, logstore.ErrInvalid},
		{"c", logstore.TopicConfig{SegmentBytes: 5}, logstore.ErrInvalid},
		{"c", logstore.TopicConfig{RetentionTime: -1}, logstore.ErrInvalid},
	} {
		if _, err := l.CreateTopic(t.Context(), c.name, c.cfg); !errors.Is(err, c.want) {
			t.Errorf("create %q %+v: %v", c.name, c.cfg, err)
		}
	}
	w := writerOf(t, l, "w")
	appendTo(t, w, "a", 2, "x")
	appendUnit(t, w, &logstore.Unit{Offsets: []logstore.GroupOffset{
		{Group: "g", TopicPartition: logstore.TopicPartition{Topic: "a", Partition: 2}, Offset: 1},
		{Group: "g", TopicPartition: logstore.TopicPartition{Topic: "b"}, Offset: 0},
	}})
	r, err := l.OpenReader("a", 2, 1)
	if err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	go func() {
		_, err := r.Next(context.Background(), 1000)
		failed <- err
	}()
	if err := l.DeleteTopic(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; !errors.Is(err, logstore.ErrNotFound) {
		t.Errorf("reader of a deleted topic: %v", err)
	}
	if err := l.DeleteTopic(t.Context(), "a"); !errors.Is(err, logstore.ErrNotFound) {
		t.Errorf("second deletion: %v", err)
	}
	if err := l.DeleteTopic(t.Context(), "__topics"); !errors.Is(err, logstore.ErrInvalid) {
		t.Errorf("deletion of a table: %v", err)
	}
	if _, err := logstore.Append(t.Context(), w, &logstore.Unit{Batches: []logstore.Batch{to("a", 0, batchOf(t, "x"))}}); !errors.Is(err, logstore.ErrNotFound) {
		t.Errorf("append to a deleted topic: %v", err)
	}
	again := create(t, l, "a", logstore.TopicConfig{Partitions: 2})
	if again.ID == a.ID {
		t.Error("a new topic has the old id")
	}
	if off := appendTo(t, w, "a", 1, "fresh"); off != 0 {
		t.Errorf("offset %d in a new topic", off)
	}
	for range 2 {
		closeLog(t, l)
		l = open(t, dir, small())
		all := l.Catalog().All()
		if d := cmp.Diff([]logstore.Topic{again, b}, all); d != "" {
			t.Fatal(d)
		}
		if got := contents(t, l, "a", 1, 0); !slices.Equal(got, []string{"0:fresh"}) {
			t.Errorf("content %q", got)
		}
		if got := l.GroupOffsets("g"); len(got) != 1 || got[logstore.TopicPartition{Topic: "b"}] != 0 {
			t.Errorf("offsets of a deleted topic are left: %v", got)
		}
	}
}

func TestNewerWriterFencesOlder(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, small())
	create(t, l, "t", logstore.TopicConfig{})
	first := writerOf(t, l, "task")
	other := writerOf(t, l, "other")
	var mu sync.Mutex
	done := 0
	const handed = 50
	for i := range handed {
		unit := &logstore.Unit{
			Batches: []logstore.Batch{to("t", 0, batchOf(t, fmt.Sprint(i), strings.Repeat("x", i*400)))},
			Offsets: []logstore.GroupOffset{{Group: "g", TopicPartition: logstore.TopicPartition{Topic: "t"}, Offset: int64(i)}},
		}
		if err := first.Append(t.Context(), unit, func(_ logstore.Result, err error) {
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
			}
			done++
		}); err != nil {
			t.Fatal(err)
		}
	}
	second := writerOf(t, l, "task")
	mu.Lock()
	if done != handed {
		t.Errorf("%d of %d units of the older writer were finished when the newer one opened", done, handed)
	}
	mu.Unlock()
	if got := l.GroupOffsets("g")[logstore.TopicPartition{Topic: "t"}]; got != handed-1 {
		t.Errorf("offset %d", got)
	}
	if second.Epoch() != first.Epoch()+1 {
		t.Errorf("epochs %d, %d", first.Epoch(), second.Epoch())
	}
	err := first.Append(t.Context(), &logstore.Unit{Batches: []logstore.Batch{to("t", 0, batchOf(t, "late"))}}, func(logstore.Result, error) {
		t.Error("callback after an error")
	})
	if !errors.Is(err, logstore.ErrFenced) {
		t.Errorf("fenced writer: %v", err)
	}
	appendTo(t, second, "t", 0, "ok")
	appendTo(t, other, "t", 0, "ok")
	closeLog(t, l)
	l = open(t, dir, small())
	if third := writerOf(t, l, "task"); third.Epoch() != second.Epoch()+1 {
		t.Errorf("epoch %d after %d", third.Epoch(), second.Epoch())
	}
}

func TestReaderWaitsAtTheEnd(t *testing.T) {
	l := open(t, t.TempDir(), small())
	create(t, l, "t", logstore.TopicConfig{})
	w := writerOf(t, l, "w")
	appendTo(t, w, "t", 0, "a")
	r, err := l.OpenReader("t", 0, logstore.OffsetLatest)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Next(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled wait: %v", err)
	}
	got := make(chan string, 1)
	go func() {
		f, err := r.Next(context.Background(), 1)
		values, _ := decode(f.Data, f.From)
		got <- fmt.Sprint(values, f.From, f.Next, err)
	}()
	appendTo(t, w, "t", 0, "b", "c")
	if s := <-got; s != "[1:b 2:c] 1 3 <nil>" {
		t.Error(s)
	}
	for _, off := range []int64{-3, 4} {
		if _, err := l.OpenReader("t", 0, off); !errors.Is(err, logstore.ErrOutOfRange) {
			t.Errorf("offset %d: %v", off, err)
		}
	}
	if _, err := l.OpenReader("t", 1, 0); !errors.Is(err, logstore.ErrNotFound) {
		t.Error(err)
	}
	if _, err := l.OpenReader("u", 0, 0); !errors.Is(err, logstore.ErrNotFound) {
		t.Error(err)
	}
	end := make(chan error, 1)
	go func() {
		_, err := r.Next(context.Background(), 1)
		end <- err
	}()
	closeLog(t, l)
	if err := <-end; !errors.Is(err, logstore.ErrClosed) {
		t.Error(err)
	}
	if err := w.Append(t.Context(), &logstore.Unit{Batches: []logstore.Batch{to("t", 0, batchOf(t, "x"))}}, nil); !errors.Is(err, logstore.ErrClosed) {
		t.Error(err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
}

func TestBadUnitsAreRefusedWhole(t *testing.T) {
	l := open(t, t.TempDir(), small())
	create(t, l, "t", logstore.TopicConfig{})
	w := writerOf(t, l, "w")
	good := batchOf(t, "a")
	spoiled := batchOf(t, "a")
	spoiled[len(spoiled)-2] ^= 1
	gone := logstore.TopicPartition{Topic: "gone"}
	for name, c := range map[string]struct {
		unit logstore.Unit
		want error
	}{
		"empty":           {logstore.Unit{}, logstore.ErrInvalid},
		"no bytes":        {logstore.Unit{Batches: []logstore.Batch{to("t", 0, nil)}}, logstore.ErrInvalid},
		"checksum":        {logstore.Unit{Batches: []logstore.Batch{to("t", 0, good), to("t", 0, spoiled)}}, logstore.ErrInvalid},
		"cut":             {logstore.Unit{Batches: []logstore.Batch{to("t", 0, good[:len(good)-1])}}, logstore.ErrInvalid},
		"topic":           {logstore.Unit{Batches: []logstore.Batch{to("t", 0, good), to("gone", 0, good)}}, logstore.ErrNotFound},
		"partition":       {logstore.Unit{Batches: []logstore.Batch{to("t", 1, good)}}, logstore.ErrNotFound},
		"table":           {logstore.Unit{Batches: []logstore.Batch{to("__writers", 0, good)}}, logstore.ErrInvalid},
		"offset of topic": {logstore.Unit{Offsets: []logstore.GroupOffset{{Group: "g", TopicPartition: gone, Offset: 1}}}, logstore.ErrNotFound},
		"no group":        {logstore.Unit{Offsets: []logstore.GroupOffset{{TopicPartition: gone, Offset: 1}}}, logstore.ErrInvalid},
	} {
		_, err := logstore.Append(t.Context(), w, &c.unit)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, end, _ := l.Bounds("t", 0); end != 0 {
		t.Errorf("something was appended: end is %d", end)
	}
	appendUnit(t, w, &logstore.Unit{Batches: []logstore.Batch{to("t", 0, slices.Concat(batchOf(t, "a", "b"), batchOf(t, "c"))), to("t", 0, batchOf(t, "d"))}})
	if got := contents(t, l, "t", 0, 0); !slices.Equal(got, []string{"0:a", "1:b", "2:c", "3:d"}) {
		t.Error(got)
	}
}

func TestSecondProcessIsKeptOut(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, small())
	_, err := disk.Open(dir, small())
	if err == nil || !strings.Contains(err.Error(), "another process uses it") || strings.Contains(err.Error(), "\n") {
		t.Errorf("second opening: %v", err)
	}
	closeLog(t, l)
	closeLog(t, open(t, dir, small()))
}

func TestGroupOffsetsMoveAndAreForgotten(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, small())
	create(t, l, "t", logstore.TopicConfig{Partitions: 2})
	w := writerOf(t, l, "w")
	move := func(group string, partition int32, offset int64) {
		t.Helper()
		appendUnit(t, w, &logstore.Unit{Offsets: []logstore.GroupOffset{{Group: group, TopicPartition: logstore.TopicPartition{Topic: "t", Partition: partition}, Offset: offset}}})
	}
	move("b", 0, 5)
	move("a", 0, 3)
	move("a", 1, 9)
	move("a", 0, 4)
	for range 2 {
		if got := l.GroupNames(); !slices.Equal(got, []string{"a", "b"}) {
			t.Error(got)
		}
		if got := fmt.Sprint(l.GroupOffsets("a")); got != "map[{t 0}:4 {t 1}:9]" {
			t.Error(got)
		}
		if got := l.GroupOffsets("none"); got == nil || len(got) != 0 {
			t.Error(got)
		}
		closeLog(t, l)
		l = open(t, dir, small())
	}
	w = writerOf(t, l, "w")
	move("b", 0, -1)
	if got := l.GroupNames(); !slices.Equal(got, []string{"a"}) {
		t.Error(got)
	}
	closeLog(t, l)
	l = open(t, dir, small())
	if got := l.GroupNames(); !slices.Equal(got, []string{"a"}) {
		t.Error(got)
	}
}
