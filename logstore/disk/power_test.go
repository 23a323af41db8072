package disk_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/millrace-io/millrace/logstore"
	"github.com/millrace-io/millrace/logstore/disk"
	"github.com/millrace-io/millrace/logstore/disk/disktest"
)

// ledger is what a test knows about the units it appended. Unit n of writer w
// puts one record "w/n" into each of its partitions and moves the offset of
// group w to n.
type ledger struct {
	mu       sync.Mutex
	accepted [ledgerWriters]int
	acked    [ledgerWriters]int // units 0..acked-1 were confirmed
	places   [ledgerWriters][][]int32
	epoch    [ledgerWriters]int64

	kept    int            // records confirmed in topic "kept", which has a retention
	table   map[string]int // last value confirmed of each key of topic "table", which is compacted
	scratch map[string]bool
}

const (
	ledgerWriters    = 2
	ledgerPartitions = 4
)

// unit makes the next unit of a writer. The mutex is held.
func (g *ledger) unit(t testing.TB, rng *rand.Rand, w int) (*logstore.Unit, int) {
	n := g.accepted[w]
	unit := &logstore.Unit{Offsets: []logstore.GroupOffset{{
		Group: "group-" + strconv.Itoa(w), TopicPartition: logstore.TopicPartition{Topic: "t"}, Offset: int64(n),
	}}}
	var places []int32
	for p := range int32(ledgerPartitions) {
		if rng.IntN(2) == 0 {
			continue
		}
		value := fmt.Sprintf("%d/%d", w, n)
		switch rng.IntN(8) {
		case 0:
			value += "/" + strings.Repeat("x", 8<<10+rng.IntN(6<<10)) // skips the journal
		case 1:
			value += "/" + strings.Repeat("y", rng.IntN(3000))
		}
		places = append(places, p)
		unit.Batches = append(unit.Batches, to("t", p, batchOf(t, value)))
	}
	g.places[w] = append(g.places[w][:n], places)
	return unit, n
}

// append appends one unit and returns what to wait for, nil when it was refused.
func (g *ledger) append(t testing.TB, rng *rand.Rand, w int, by logstore.Writer) (chan error, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	unit, n := g.unit(t, rng, w)
	done := make(chan error, 1)
	err := by.Append(t.Context(), unit, func(_ logstore.Result, err error) {
		g.mu.Lock()
		defer g.mu.Unlock()
		switch {
		case err == nil && g.acked[w] != n:
			err = fmt.Errorf("unit %d of writer %d was confirmed after %d", n, w, g.acked[w])
		case err == nil:
			g.acked[w] = n + 1
		case !errors.Is(err, logstore.ErrStorage): // nothing of it is there
			g.accepted[w] = min(g.accepted[w], n)
		}
		done <- err
	})
	if err != nil {
		return nil, err
	}
	g.accepted[w] = n + 1
	return done, nil
}

// check compares a log with the ledger: of each writer a prefix of the accepted
// units is there, at least the confirmed ones, each in all its partitions, in
// order, and the group's offset is that of the last. It then takes what is there
// for confirmed.
func (g *ledger) check(l *disk.Log) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	seen := [ledgerWriters][]map[int32]bool{}
	for p := range int32(ledgerPartitions) {
		start, _, err := l.Bounds("t", p)
		if err != nil {
			return err
		}
		all, err := readAll(l, "t", p, start)
		if err != nil {
			return fmt.Errorf("partition %d: %w", p, err)
		}
		last := [ledgerWriters]int{-1, -1}
		for i, s := range all {
			var off, w, n int
			if _, err := fmt.Sscanf(s, "%d:%d/%d", &off, &w, &n); err != nil {
				return fmt.Errorf("partition %d holds %.40q: %w", p, s, err)
			}
			if off != int(start)+i || n <= last[w] {
				return fmt.Errorf("partition %d: %.40q at %d, after unit %d", p, s, i, last[w])
			}
			last[w] = n
			for len(seen[w]) <= n {
				seen[w] = append(seen[w], map[int32]bool{})
			}
			seen[w][n][p] = true
		}
	}
	for w := range ledgerWriters {
		offset, ok := l.GroupOffsets("group-" + strconv.Itoa(w))[logstore.TopicPartition{Topic: "t"}]
		there := 0
		if ok {
			there = int(offset) + 1
		}
		if there < g.acked[w] || there > g.accepted[w] {
			return fmt.Errorf("writer %d: offset says %d units, %d were confirmed and %d accepted", w, there, g.acked[w], g.accepted[w])
		}
		if len(seen[w]) > there {
			return fmt.Errorf("writer %d: unit %d is there and the offset says %d units", w, len(seen[w])-1, there)
		}
		for n := range there {
			for _, p := range g.places[w][n] {
				if n >= len(seen[w]) || !seen[w][n][p] {
					return fmt.Errorf("writer %d: unit %d is not in partition %d; %d were confirmed", w, n, p, g.acked[w])
				}
			}
			if n < len(seen[w]) && len(seen[w][n]) != len(g.places[w][n]) {
				return fmt.Errorf("writer %d: unit %d is in %d partitions of %d", w, n, len(seen[w][n]), len(g.places[w][n]))
			}
		}
		g.acked[w], g.accepted[w] = there, there
		g.places[w] = g.places[w][:there]
	}
	return g.checkOthers(l)
}

// tiny are options for logs in memory: every mechanism within a few units.
func tiny(fs disk.FS) disk.Options {
	o := small()
	o.JournalBytes, o.SegmentBytes, o.TailBytes, o.TailsBytes = 64<<10, 16<<10, 4<<10, 16<<10
	o.QueueBytes = 1 << 20
	o.FS = fs
	return o
}

// live opens the log, does random work until the file system fails or enough was
// done, and closes it.
func (g *ledger) live(t testing.TB, rng *rand.Rand, fs *disktest.FS, o disk.Options) error {
	l, err := disk.Open("memory", o)
	if err != nil {
		if errors.Is(err, disktest.ErrCrashed) || errors.Is(err, errInjected) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, io.ErrShortWrite) {
			return nil
		}
		return fmt.Errorf("open: %w", err)
	}
	defer func() {
		if err := l.Close(); err == nil && l.Err() != nil {
			t.Error("a stopped log closes without an error")
		}
	}()
	_, err = l.CreateTopic(t.Context(), "t", logstore.TopicConfig{Partitions: ledgerPartitions})
	if err != nil && !errors.Is(err, logstore.ErrExists) {
		return nil
	}
	if err := g.check(l); err != nil {
		if l.Err() != nil || strings.Contains(err.Error(), disktest.ErrCrashed.Error()) {
			return nil
		}
		return err
	}
	var writers [ledgerWriters]logstore.Writer
	for w := range writers {
		if writers[w], err = l.OpenWriter(t.Context(), strconv.Itoa(w)); err != nil {
			return nil
		}
		if writers[w].Epoch() <= g.epoch[w] {
			return fmt.Errorf("writer %d: epoch %d after %d", w, writers[w].Epoch(), g.epoch[w])
		}
		g.epoch[w] = writers[w].Epoch()
	}
	g.others(t, l)
	for range 20 + rng.IntN(60) {
		w := rng.IntN(ledgerWriters)
		done, err := g.append(t, rng, w, writers[w])
		if err != nil && !acceptable(err) {
			return fmt.Errorf("append: %w", err)
		}
		switch rng.IntN(24) {
		case 0:
			_ = l.Checkpoint(t.Context())
		case 1, 2:
			g.comeAndGo(t, rng, l)
		case 3:
			_ = l.Maintain(t.Context())
		case 4, 5, 6:
			g.appendOthers(t, rng, l)
		}
		if errors.Is(err, logstore.ErrStorage) {
			break
		}
		if errors.Is(err, logstore.ErrBehind) {
			if writers[w], err = l.OpenWriter(t.Context(), strconv.Itoa(w)); err != nil {
				break
			}
			g.epoch[w] = writers[w].Epoch()
		}
		if done != nil && rng.IntN(3) == 0 {
			if err := <-done; err != nil && !acceptable(err) {
				return fmt.Errorf("append: %w", err)
			}
		}
	}
	if rng.IntN(4) == 0 && l.Err() == nil {
		if err := g.checkLive(l); err != nil {
			return err
		}
	}
	return nil
}

// others makes the topics beside "t" that have retention and compaction.
func (g *ledger) others(t testing.TB, l *disk.Log) {
	_, _ = l.CreateTopic(t.Context(), "kept", logstore.TopicConfig{RetentionBytes: 8 << 10, SegmentBytes: 4 << 10})
	_, _ = l.CreateTopic(t.Context(), "table", logstore.TopicConfig{Cleanup: logstore.CleanupCompact, SegmentBytes: 4 << 10})
	if g.table == nil {
		g.table, g.scratch = map[string]int{}, map[string]bool{}
	}
}

// appendOthers appends to them and waits.
func (g *ledger) appendOthers(t testing.TB, rng *rand.Rand, l *disk.Log) {
	w, err := l.OpenWriter(t.Context(), "others")
	if err != nil {
		return
	}
	for range 1 + rng.IntN(6) {
		key := fmt.Sprint("k", rng.IntN(5))
		_, end, err := l.Bounds("table", 0)
		if err != nil {
			return
		}
		unit := &logstore.Unit{Batches: []logstore.Batch{
			to("kept", 0, batchOf(t, strings.Repeat("r", 1+rng.IntN(2000)))),
			to("table", 0, batchOf(t, fmt.Sprintf("%s=%d/%s", key, end, strings.Repeat("v", rng.IntN(1500))))),
		}}
		if r, err := logstore.Append(t.Context(), w, unit); err == nil {
			g.kept = int(r.BaseOffsets[0]) + 1
			g.table[key] = int(end)
		}
	}
}

// comeAndGo makes a topic with a record, or deletes one while a checkpoint runs.
func (g *ledger) comeAndGo(t testing.TB, rng *rand.Rand, l *disk.Log) {
	name := fmt.Sprint("scratch", rng.IntN(3))
	if _, ok := l.Catalog().Lookup(name); !ok {
		delete(g.scratch, name)
	}
	if _, err := l.CreateTopic(t.Context(), name, logstore.TopicConfig{}); err == nil {
		w, err := l.OpenWriter(t.Context(), "scratch")
		if err != nil {
			return
		}
		if _, err := logstore.Append(t.Context(), w, &logstore.Unit{Batches: []logstore.Batch{to(name, 0, batchOf(t, "s"))}}); err == nil {
			g.scratch[name] = true
		}
		return
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = l.Checkpoint(t.Context()) })
	if err := l.DeleteTopic(t.Context(), name); err == nil {
		delete(g.scratch, name)
	}
	wg.Wait()
}

// checkOthers compares the topics beside "t".
func (g *ledger) checkOthers(l *disk.Log) error {
	if _, ok := l.Catalog().Lookup("kept"); ok {
		start, end, err := l.Bounds("kept", 0)
		if err != nil {
			return err
		}
		all, err := readAll(l, "kept", 0, start)
		if err != nil || len(all) != int(end-start) || int(end) < g.kept {
			return fmt.Errorf("topic \"kept\": %d records from %d to %d, %d were confirmed: %w", len(all), start, end, g.kept, err)
		}
	}
	if _, ok := l.Catalog().Lookup("table"); ok {
		all, err := readAll(l, "table", 0, 0)
		if err != nil {
			return fmt.Errorf("topic \"table\": %w", err)
		}
		last := map[string]int{}
		for _, s := range all {
			_, s, _ = strings.Cut(s, ":")
			key, value, _ := strings.Cut(s, "=")
			value, _, _ = strings.Cut(value, "/")
			last[key], _ = strconv.Atoi(value)
		}
		for key, value := range g.table {
			if got, ok := last[key]; !ok || got < value {
				return fmt.Errorf("topic \"table\": key %q is %d, %d was confirmed", key, got, value)
			}
		}
	}
	for name, written := range g.scratch {
		_, end, err := l.Bounds(name, 0)
		if err == nil && written && end != 1 {
			return fmt.Errorf("topic %q lost its record", name)
		}
	}
	return nil
}

// acceptable reports whether a unit may fail like this under faults.
func acceptable(err error) bool {
	return errors.Is(err, logstore.ErrStorage) || errors.Is(err, logstore.ErrFull) || errors.Is(err, logstore.ErrBehind)
}

// checkLive waits for what was accepted and compares a log that goes on.
func (g *ledger) checkLive(l *disk.Log) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for w := range ledgerWriters {
		by, err := l.OpenWriter(ctx, strconv.Itoa(w))
		if err != nil {
			return nil // it crashed
		}
		g.epoch[w] = by.Epoch()
	}
	err := g.check(l)
	if l.Err() != nil || errors.Is(err, disktest.ErrCrashed) || err != nil && strings.Contains(err.Error(), disktest.ErrCrashed.Error()) {
		return nil
	}
	return err
}

// TestPowerLoss crashes at a random call, keeps a random part of what was not
// synced, starts again, and compares; several times per seed.
func TestPowerLoss(t *testing.T) {
	seeds := 3000
	if testing.Short() || raceEnabled {
		seeds = 200
	}
	from := uint64(1)
	if s := os.Getenv("MILLRACE_SEEDS"); s != "" { // "from:count"
		if _, err := fmt.Sscanf(s, "%d:%d", &from, &seeds); err != nil {
			t.Fatal(err)
		}
	}
	for seed := from; seed < from+uint64(seeds); seed++ {
		if err := powerLoss(t, seed); err != nil {
			t.Fatalf("seed %d: %v (again: MILLRACE_SEEDS=%d:1)", seed, err, seed)
		}
	}
}

func powerLoss(t testing.TB, seed uint64) error {
	rng := rand.New(rand.NewPCG(seed, 42))
	fs := disktest.New()
	g := &ledger{}
	for range 2 + rng.IntN(3) {
		switch rng.IntN(8) {
		case 0: // a clean end
		case 1:
			fs.CrashAfter = 1 + rng.IntN(60) // while opening
		default:
			fs.CrashAfter = 30 + rng.IntN(400)
		}
		if err := g.live(t, rng, fs, tiny(fs)); err != nil {
			return err
		}
		fs = fs.Crash(rng)
	}
	l, err := disk.Open("memory", tiny(fs))
	if err != nil {
		return fmt.Errorf("last open: %w", err)
	}
	defer func() { _ = l.Close() }()
	if _, _, err := l.Bounds("t", 0); errors.Is(err, logstore.ErrNotFound) {
		if g.acked[0]+g.acked[1] > 0 {
			return errors.New("the topic is gone")
		}
		return nil
	}
	return g.check(l)
}
