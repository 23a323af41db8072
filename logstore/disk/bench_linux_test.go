package disk_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/millrace-io/millrace/logstore"
	"github.com/millrace-io/millrace/logstore/disk"
)

// baseSync measures what the disk can do in the same run: the median time of a
// 512-byte write in place and its fdatasync.
func baseSync(b *testing.B, dir string) time.Duration {
	b.Helper()
	f, err := os.Create(filepath.Join(dir, "base"))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = os.Remove(f.Name()) }()
	defer func() { _ = f.Close() }()
	if _, err := f.Write(make([]byte, 1<<20)); err != nil {
		b.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
	var took []time.Duration
	for i := range 200 {
		began := time.Now()
		if _, err := f.WriteAt(make([]byte, 512), int64(i)*512); err != nil {
			b.Fatal(err)
		}
		if err := syscall.Fdatasync(int(f.Fd())); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	return took[len(took)/2]
}

// baseSequential measures the bytes a second of writing in place with a sync
// every 4 MiB.
func baseSequential(b *testing.B, dir string) float64 {
	b.Helper()
	f, err := os.Create(filepath.Join(dir, "base"))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = os.Remove(f.Name()) }()
	defer func() { _ = f.Close() }()
	const size, piece = 128 << 20, 4 << 20
	buf := make([]byte, piece)
	var best float64
	for lap := range 4 {
		began := time.Now()
		for at := int64(0); at < size; at += piece {
			if _, err := f.WriteAt(buf, at); err != nil {
				b.Fatal(err)
			}
			if err := syscall.Fdatasync(int(f.Fd())); err != nil {
				b.Fatal(err)
			}
		}
		if lap > 0 {
			best = max(best, size/time.Since(began).Seconds())
		}
	}
	return best
}

// BenchmarkDurableAppend appends units of one record of 383 bytes and waits for
// each. It reports the median and the 99th percentile against one sync of the
// disk, measured before.
func BenchmarkDurableAppend(b *testing.B) {
	for _, partitions := range []int32{1, 64, 1000} {
		for _, writers := range []int{1, 16, 256} {
			b.Run(fmt.Sprintf("partitions=%d/writers=%d", partitions, writers), func(b *testing.B) {
				dir := b.TempDir()
				base := baseSync(b, dir)
				l := open(b, filepath.Join(dir, "log"), disk.Options{})
				create(b, l, "t", logstore.TopicConfig{Partitions: partitions})
				var next atomic.Int64
				var wg sync.WaitGroup
				took := make([][]time.Duration, writers)
				var by []logstore.Writer
				for w := range writers {
					by = append(by, writerOf(b, l, fmt.Sprint(w)))
				}
				warm(b, by[0], partitions)
				b.ResetTimer()
				for w := range writers {
					wg.Go(func() {
						batch := oneRecord(string(make([]byte, 383-61-10)))
						for {
							n := next.Add(1)
							if n > int64(b.N) {
								return
							}
							began := time.Now()
							_, err := logstore.Append(context.Background(), by[w], &logstore.Unit{Batches: []logstore.Batch{to("t", int32(n%int64(partitions)), batch)}})
							if err != nil {
								b.Error(err)
								return
							}
							took[w] = append(took[w], time.Since(began))
						}
					})
				}
				wg.Wait()
				b.StopTimer()
				all := slices.Concat(took...)
				slices.Sort(all)
				b.ReportMetric(float64(len(all))/b.Elapsed().Seconds(), "appends/s")
				b.ReportMetric(float64(all[len(all)/2].Microseconds()), "p50-us")
				b.ReportMetric(float64(base.Microseconds()), "sync-us")
				b.ReportMetric(float64(all[len(all)/2])/float64(base), "p50/sync")
				b.ReportMetric(float64(all[len(all)*99/100])/float64(base), "p99/sync")
			})
		}
	}
}

// warm writes one record to each partition, so that folders and files are there.
func warm(b *testing.B, w logstore.Writer, partitions int32) {
	unit := &logstore.Unit{}
	for p := range partitions {
		unit.Batches = append(unit.Batches, to("t", p, oneRecord("warm")))
	}
	appendUnit(b, w, unit)
}

// BenchmarkLargeBatches appends batches of 256 KiB to 64 partitions from 16
// writers with some in flight, and reports the ratio to writing one file.
func BenchmarkLargeBatches(b *testing.B) {
	const partitions, writers, inFlight = 64, 16, 4
	dir := b.TempDir()
	base := baseSequential(b, dir)
	l := open(b, filepath.Join(dir, "log"), disk.Options{})
	create(b, l, "t", logstore.TopicConfig{Partitions: partitions})
	var next atomic.Int64
	var wg sync.WaitGroup
	size := int64(0)
	var by []logstore.Writer
	for w := range writers {
		by = append(by, writerOf(b, l, fmt.Sprint(w)))
	}
	warm(b, by[0], partitions)
	b.ResetTimer()
	for w := range writers {
		slots := make(chan []byte, inFlight)
		for range inFlight {
			batch := oneRecord(string(make([]byte, 256<<10)))
			size = int64(len(batch))
			slots <- batch
		}
		wg.Go(func() {
			for {
				n := next.Add(1)
				if n > int64(b.N) {
					break
				}
				batch := <-slots
				err := by[w].Append(context.Background(), &logstore.Unit{Batches: []logstore.Batch{to("t", int32(n%partitions), batch)}},
					func(_ logstore.Result, err error) {
						if err != nil {
							b.Error(err)
						}
						slots <- batch
					})
				if err != nil {
					b.Error(err)
					return
				}
			}
			for range inFlight {
				<-slots
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	rate := float64(int64(b.N)*size) / b.Elapsed().Seconds()
	b.SetBytes(size)
	b.ReportMetric(base/1e6, "sequential-MB/s")
	b.ReportMetric(rate/base, "of-sequential")
}

// BenchmarkRead reads a partition of 256 KiB batches out of the page cache.
func BenchmarkRead(b *testing.B) {
	l := open(b, b.TempDir(), disk.Options{})
	create(b, l, "t", logstore.TopicConfig{})
	w := writerOf(b, l, "w")
	for range 400 {
		appendUnit(b, w, &logstore.Unit{Batches: []logstore.Batch{to("t", 0, oneRecord(string(make([]byte, 256<<10))))}})
	}
	b.ReportAllocs()
	b.ResetTimer()
	r, err := l.OpenReader("t", 0, 0)
	if err != nil {
		b.Fatal(err)
	}
	_, end, _ := l.Bounds("t", 0)
	for range b.N {
		if r.Position() == end {
			if r, err = l.OpenReader("t", 0, 0); err != nil {
				b.Fatal(err)
			}
		}
		got, err := r.Next(b.Context(), 1<<20)
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(int64(len(got.Data)))
	}
}
