package host_test

import (
	"bytes"
	"context"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/millrace-io/millrace/logstore/recordbatch"
	"github.com/millrace-io/millrace/plugins/host"
	"github.com/millrace-io/millrace/plugins/sdk"
)

// BenchmarkSource measures records of 300 bytes from Append in the plugin to
// Recv in the worker; cpu-ns/record is the plugin's, worker-ns/record ours.
func BenchmarkSource(b *testing.B) {
	for _, c := range []struct {
		name   string
		config map[string]string
	}{
		{"raw 300 B", map[string]string{"size": "300"}},
		{"keyed", map[string]string{"size": "300", "keyed": "true"}},
		{"json with schema", map[string]string{"size": "200", "schema": "true"}},
	} {
		b.Run(c.name, func(b *testing.B) {
			p, _ := start(b, "plugin")
			c.config["limit"], c.config["batch"], c.config["mode"] = strconv.Itoa(1<<31-1), "500", "fast"
			s, err := p.OpenSource(b.Context(), numberSource(c.config), &services{partitions: 4})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Abort()
			records, bytes := 0, 0
			_, cpu := p.Usage()
			b.ResetTimer()
			for records < b.N {
				u, err := s.Recv(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				records += u.Records
				bytes += u.Bytes
				u.Release()
				_ = s.Ack(u.Seq)
			}
			b.StopTimer()
			_, after := p.Usage()
			b.ReportMetric(float64((after-cpu).Nanoseconds())/float64(records), "plugin-cpu-ns/record")
			b.ReportMetric(float64(bytes)/1e6/b.Elapsed().Seconds(), "MB/s")
		})
	}
}

// BenchmarkSink measures batches of 256 KiB from Send to Write.
func BenchmarkSink(b *testing.B) {
	var builder recordbatch.Builder
	builder.Reset()
	value := bytes.Repeat([]byte("x"), 300)
	n := 0
	for builder.Size() < 256<<10 {
		if err := builder.Append(&recordbatch.Record{Timestamp: 1, Key: []byte("key-1"), Value: value}); err != nil {
			b.Fatal(err)
		}
		n++
	}
	data := bytes.Clone(builder.Bytes())
	p, _ := start(b, "plugin")
	spec := host.SinkSpec{
		TaskSpec:   host.TaskSpec{Connector: "c", Class: "test.NullSinkConnector", Converters: plain},
		Partitions: []sdk.AssignedPartition{{TopicPartition: tp0}},
	}
	s, err := p.OpenSink(b.Context(), spec, &services{})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Abort()
	_, cpu := p.Usage()
	b.ResetTimer()
	sent := int64(0)
	for sent < int64(b.N) {
		recordbatch.SetBaseOffset(data, sent)
		if err := s.Send(b.Context(), tp0, sent, data); err != nil {
			b.Fatal(err)
		}
		sent += int64(n)
	}
	for done := false; !done; {
		e, err := s.Recv(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		done = e.Commit[tp0] == sent
	}
	b.StopTimer()
	_, after := p.Usage()
	b.ReportMetric(float64((after-cpu).Nanoseconds())/float64(sent), "plugin-cpu-ns/record")
	b.ReportMetric(float64(sent)/float64(n)*float64(len(data))/1e6/b.Elapsed().Seconds(), "MB/s")
}

// BenchmarkStart measures from Start to the first answer, and the end.
func BenchmarkStart(b *testing.B) {
	o, _ := options(b)
	c := host.Class{Name: "x", Path: install(b, b.TempDir(), "plugin")}
	var began, rss int64
	for b.Loop() {
		t := time.Now()
		p, err := host.Start(b.Context(), c, "c", o)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := p.Validate(b.Context(), "test.NumberSourceConnector", map[string]string{"topic": "t"}); err != nil {
			b.Fatal(err)
		}
		began += int64(time.Since(t))
		r, _ := p.Usage()
		rss += r
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		if err := p.Close(ctx); err != nil {
			b.Fatal(err)
		}
		cancel()
	}
	b.ReportMetric(float64(began)/1e6/float64(b.N), "ms-to-first-answer")
	b.ReportMetric(float64(rss)/1e6/float64(b.N), "MB-rss")
}

// BenchmarkEndToEnd moves records of 300 bytes from a source's process through
// this one to a sink's process; cpu-ns/record is that of all three.
func BenchmarkEndToEnd(b *testing.B) {
	in, _ := start(b, "plugin")
	out, _ := start(b, "plugin")
	source, err := in.OpenSource(b.Context(), numberSource(map[string]string{"size": "300", "limit": strconv.Itoa(1<<31 - 1), "batch": "500", "mode": "fast"}), &services{})
	if err != nil {
		b.Fatal(err)
	}
	defer source.Abort()
	sink, err := out.OpenSink(b.Context(), host.SinkSpec{
		TaskSpec:   host.TaskSpec{Connector: "c", Class: "test.NullSinkConnector", Converters: plain},
		Partitions: []sdk.AssignedPartition{{TopicPartition: tp0}},
	}, &services{})
	if err != nil {
		b.Fatal(err)
	}
	defer sink.Abort()
	_, cpuIn := in.Usage()
	_, cpuOut := out.Usage()
	own := ownCPU(b)
	b.ResetTimer()
	moved := int64(0)
	for moved < int64(b.N) {
		u, err := source.Recv(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		for _, batch := range u.Batches {
			if err := recordbatch.Check(batch.Data, 64<<20); err != nil {
				b.Fatal(err)
			}
			info, err := recordbatch.Parse(batch.Data)
			if err != nil {
				b.Fatal(err)
			}
			recordbatch.SetBaseOffset(batch.Data, moved)
			if err := sink.Send(b.Context(), tp0, moved, batch.Data); err != nil {
				b.Fatal(err)
			}
			moved += int64(info.Count)
		}
		u.Release()
		_ = source.Ack(u.Seq)
	}
	for done := false; !done; {
		e, err := sink.Recv(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		done = e.Commit[tp0] == moved
	}
	b.StopTimer()
	_, afterIn := in.Usage()
	_, afterOut := out.Usage()
	per := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / float64(moved) }
	b.ReportMetric(per(afterIn-cpuIn), "source-cpu-ns/record")
	b.ReportMetric(per(ownCPU(b)-own), "worker-cpu-ns/record")
	b.ReportMetric(per(afterOut-cpuOut), "sink-cpu-ns/record")
}

// ownCPU is the CPU time of this process.
func ownCPU(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
