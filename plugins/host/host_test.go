package host_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace-io/millrace/logstore/recordbatch"
	"github.com/millrace-io/millrace/plugins/host"
	"github.com/millrace-io/millrace/plugins/sdk"
)

// install puts the test binary into a directory as a plugin.
func install(t testing.TB, dir, name string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "millrace-"+name)
	if err := os.Symlink(self, path); err != nil {
		t.Fatal(err)
	}
	return path
}

// logged collects what a worker logs.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func options(t testing.TB) (host.Options, *logged) {
	l := new(logged)
	dir, err := os.MkdirTemp("", "mr") //nolint:usetesting // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return host.Options{Log: slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug})), RunDir: filepath.Join(dir, "run")}, l
}

// start runs the test plugin.
func start(t testing.TB, name string) (*host.Process, *logged) {
	t.Helper()
	o, l := options(t)
	p, err := host.Start(t.Context(), host.Class{Name: "test", Path: install(t, t.TempDir(), name)}, "c1", o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := p.Close(ctx); err != nil && !t.Failed() && p.Err() == nil {
			t.Errorf("close: %v", err)
		}
	})
	return p, l
}

// services is a worker that remembers.
type services struct {
	mu         sync.Mutex
	partitions int32
	asked      []string
	schemas    []string
	conditions []string
	progress   sdk.Progress
	counters   host.Counters
	noTopic    error
}

func (s *services) Topic(_ context.Context, name string) (int32, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, name)
	return max(1, s.partitions), s.noTopic
}

func (s *services) RegisterSchema(_ context.Context, d []byte) (uint32, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.schemas, string(d)); i >= 0 {
		return uint32(i + 1), nil
	}
	s.schemas = append(s.schemas, string(d))
	return uint32(len(s.schemas)), nil
}

func (s *services) Schema(_ context.Context, id uint32) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id == 0 || int(id) > len(s.schemas) {
		return nil, sdk.Errorf(sdk.NotFound, "schema", "no schema %d", id)
	}
	return []byte(s.schemas[id-1]), nil
}

func (s *services) Progress(p sdk.Progress) { s.mu.Lock(); s.progress = p; s.mu.Unlock() }

func (s *services) Condition(code, message string) {
	s.mu.Lock()
	s.conditions = append(s.conditions, code)
	s.mu.Unlock()
}

func (s *services) Counted(c host.Counters) { s.mu.Lock(); s.counters = c; s.mu.Unlock() }

func (s *services) seen() ([]string, host.Counters) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.conditions), s.counters
}

// plain are converters for raw text.
var plain = map[string]string{
	"key.converter":   "org.apache.kafka.connect.storage.StringConverter",
	"value.converter": "org.apache.kafka.connect.storage.StringConverter",
}

func numberSource(config map[string]string) host.SourceSpec {
	c := map[string]string{"topic": "t"}
	maps.Copy(c, config)
	return host.SourceSpec{TaskSpec: host.TaskSpec{Connector: "c1", Class: "test.NumberSourceConnector", Config: c}}
}

// records returns the values of whole batches, by their first word.
func records(t testing.TB, data []byte) []recordbatch.Record {
	t.Helper()
	var out []recordbatch.Record
	for len(data) > 0 {
		batch, rest, err := recordbatch.Split(data)
		if err != nil {
			t.Fatal(err)
		}
		if err := recordbatch.Check(batch, 128<<20); err != nil {
			t.Fatal(err)
		}
		it := recordbatch.Iter(batch)
		var r recordbatch.Record
		for it.Next(&r) {
			c := r
			c.Headers = slices.Clone(r.Headers)
			out = append(out, c)
		}
		if it.Err() != nil {
			t.Fatal(it.Err())
		}
		data = rest
	}
	return out
}

// drain reads n records from a source, acknowledging everything.
func drain(t testing.TB, s *host.SourceStream, n int) (values []string, last []sdk.Position) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	for len(values) < n {
		u, err := s.Recv(ctx)
		if err != nil {
			t.Fatalf("after %d records: %v", len(values), err)
		}
		got := 0
		for _, b := range u.Batches {
			for _, r := range records(t, b.Data) {
				first, _, _ := strings.Cut(string(r.Value), " ")
				values = append(values, first)
				got++
			}
		}
		if got != u.Records {
			t.Fatalf("unit %d says %d records, has %d", u.Seq, u.Records, got)
		}
		last = u.Positions
		u.Release()
		if err := s.Ack(u.Seq); err != nil {
			t.Fatal(err)
		}
	}
	return values, last
}

// end stops a stream and wants io.EOF.
func end(t testing.TB, s *host.SourceStream) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := s.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	for {
		u, err := s.Recv(ctx)
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatalf("stop: %v", err)
		}
		u.Release()
		_ = s.Ack(u.Seq)
	}
}

func TestSourceRecordsArriveInOrderWithTheirPosition(t *testing.T) {
	p, _ := start(t, "plugin")
	sv := &services{}
	s, err := p.OpenSource(t.Context(), numberSource(map[string]string{"limit": "5000"}), sv)
	if err != nil {
		t.Fatal(err)
	}
	values, last := drain(t, s, 5000)
	for i, v := range values {
		if v != fmt.Sprint(i) {
			t.Fatalf("record %d is %s", i, v)
		}
	}
	if len(last) != 1 || last[0].Offset["n"] != int64(5000) {
		t.Errorf("last position is %v", last)
	}
	end(t, s)
	if len(sv.asked) != 1 || sv.asked[0] != "t" {
		t.Errorf("asked for topics %v", sv.asked)
	}
	if _, c := sv.seen(); c.Read != 5000 || c.Written != 5000 {
		t.Errorf("counters are %+v", c)
	}
}

// batchOf makes a batch of n records from an offset.
func batchOf(t testing.TB, from int64, values ...string) []byte {
	t.Helper()
	var b recordbatch.Builder
	b.Reset()
	for _, v := range values {
		if err := b.Append(&recordbatch.Record{Timestamp: 1, Value: []byte(v)}); err != nil {
			t.Fatal(err)
		}
	}
	data := bytes.Clone(b.Bytes())
	recordbatch.SetBaseOffset(data, from)
	return data
}

func listSink(t testing.TB, config map[string]string) (host.SinkSpec, string) {
	file := filepath.Join(t.TempDir(), "list")
	c := map[string]string{"file": file}
	maps.Copy(c, config)
	partitions := []sdk.AssignedPartition{{TopicPartition: tp0}}
	return host.SinkSpec{TaskSpec: host.TaskSpec{Connector: "c2", Class: "test.ListSinkConnector", Config: c, Converters: plain}, Partitions: partitions}, file
}

var tp0 = sdk.TopicPartition{Topic: "t", Partition: 0}

// until receives events until the condition holds.
func until(t testing.TB, s *host.SinkStream, done func(host.SinkEvent) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		e, err := s.Recv(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if done(e) {
			return
		}
	}
}

// endSink stops a sink, wants io.EOF and returns the last commits.
func endSink(t testing.TB, s *host.SinkStream) map[sdk.TopicPartition]int64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := s.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	commits := make(map[sdk.TopicPartition]int64)
	for {
		e, err := s.Recv(ctx)
		if errors.Is(err, io.EOF) {
			return commits
		}
		if err != nil {
			t.Fatalf("stop: %v", err)
		}
		maps.Copy(commits, e.Commit)
	}
}

func lines(t testing.TB, file string) []string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
}

func TestSinkWritesInOrderAndCommits(t *testing.T) {
	p, _ := start(t, "plugin")
	sv := &services{}
	spec, file := listSink(t, nil)
	s, err := p.OpenSink(t.Context(), spec, sv)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(t.Context(), tp0, 1, append(batchOf(t, 0, "a", "b", "c"), batchOf(t, 3, "d")...)); err != nil {
		t.Fatal(err)
	}
	until(t, s, func(e host.SinkEvent) bool { return e.Commit[tp0] == 4 })
	endSink(t, s)
	want := []string{"open t 0", "t 0 1 b", "t 0 2 c", "t 0 3 d", "closed"}
	if got := lines(t, file); !slices.Equal(got, want) {
		t.Errorf("wrote %q, want %q", got, want)
	}
}
