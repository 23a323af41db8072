// Package sdktest checks a connector the way a worker runs it: as a process of
// its own, with real streams, killed at bad moments. The test binary of the
// connector is the plugin:
//
//	func TestMain(m *testing.M) { sdktest.Main(m, plugin()) }
//
//	func TestSource(t *testing.T) {
//		sdktest.Source(t, sdktest.SourceCase{Class: "...", Setup: ...})
//	}
package sdktest

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"log/slog"
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
	"github.com/millrace-io/millrace/plugins/serve"
)

const (
	// patience is how long something may take that should take moments: tests
	// run on busy machines.
	patience = 60 * time.Second
	// updateFlag rewrites golden files instead of comparing them.
	updateFlag = "update"
)

// Main is the TestMain of a connector: it serves the plugin when a worker has
// started the process, and runs the tests otherwise. It defines the flag -update.
func Main(m *testing.M, p sdk.Plugin) {
	if serve.Started() {
		serve.Main(p)
		return
	}
	if flag.Lookup(updateFlag) == nil {
		flag.Bool(updateFlag, false, "rewrite golden files")
	}
	os.Exit(m.Run()) //nolint:forbidigo // it is a main function
}

func updating() bool {
	f := flag.Lookup(updateFlag)
	return f != nil && f.Value.String() == "true"
}

// Keys compares the key table in a connector's README.md with its definition. The
// table stands between the lines "<!-- keys NAME -->" and "<!-- end -->"; the
// flag -update rewrites it.
func Keys(t *testing.T, readme, name string, define func(*sdk.Def)) {
	t.Helper()
	b, err := os.ReadFile(readme)
	if err != nil {
		t.Fatal(err)
	}
	begin := "<!-- keys " + name + " -->\n"
	before, rest, found := strings.Cut(string(b), begin)
	table, after, ended := strings.Cut(rest, "<!-- end -->")
	if !found || !ended {
		t.Fatalf("%s has no place for the keys of %s: add the lines %q and %q", readme, name, begin, "<!-- end -->")
	}
	var d sdk.Def
	define(&d)
	want := "\n" + d.Markdown() + "\n"
	if table == want {
		return
	}
	if !updating() {
		t.Fatalf("the keys of %s in %s are not those of Define; run go test -update\ngot:\n%s\nwant:\n%s", name, readme, table, want)
	}
	if err := os.WriteFile(readme, []byte(before+begin+want+"<!-- end -->"+after), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Worker runs the test binary as a plugin and answers its tasks. Its topics have
// one partition unless Partitions says otherwise.
type Worker struct {
	Partitions int32

	t       testing.TB
	path    string
	process *host.Process
	o       host.Options
	log     *transcript

	mu         sync.Mutex // guards the fields below
	schemas    []string
	conditions []string
	counters   host.Counters
}

// transcript keeps what the plugin logs, to be shown when a test fails.
type transcript struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write appends.
func (l *transcript) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// NewWorker makes a Worker whose process is started by Process.
func NewWorker(t testing.TB) *Worker {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "millrace-"+filepath.Base(self))
	if err := os.Symlink(self, path); err != nil {
		t.Fatal(err)
	}
	w := &Worker{Partitions: 1, t: t, path: path, log: new(transcript)}
	w.o.Log = slog.New(slog.NewTextHandler(w.log, nil))
	t.Cleanup(func() {
		w.Kill()
		if t.Failed() {
			w.log.mu.Lock()
			defer w.log.mu.Unlock()
			t.Logf("the plugin logged:\n%s", w.log.b.Bytes()[:min(w.log.b.Len(), 8<<10)])
		}
	})
	return w
}

// Process returns the running plugin, started when there is none.
func (w *Worker) Process() *host.Process {
	w.t.Helper()
	if w.process != nil && w.process.Err() == nil {
		return w.process
	}
	p, err := host.Start(context.WithoutCancel(w.t.Context()), host.Class{Name: "test", Path: w.path}, "test", w.o)
	if err != nil {
		w.t.Fatal(err)
	}
	w.process = p
	return p
}

// Kill ends the plugin as kill -9 does and waits until it is gone.
func (w *Worker) Kill() {
	if w.process == nil {
		return
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.t.Context()))
	cancel()
	_ = w.process.Close(ctx) // says that it was killed
	w.process = nil
}

// Topic implements host.Services.
func (w *Worker) Topic(context.Context, string) (int32, error) { return w.Partitions, nil }

// RegisterSchema implements host.Services.
func (w *Worker) RegisterSchema(_ context.Context, definition []byte) (uint32, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if i := slices.Index(w.schemas, string(definition)); i >= 0 {
		return uint32(i + 1), nil
	}
	w.schemas = append(w.schemas, string(definition))
	return uint32(len(w.schemas)), nil
}

// Schema implements host.Services.
func (w *Worker) Schema(_ context.Context, id uint32) ([]byte, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if id == 0 || int(id) > len(w.schemas) {
		return nil, sdk.Errorf(sdk.NotFound, "schema.unknown", "there is no schema %d", id)
	}
	return []byte(w.schemas[id-1]), nil
}

// Progress implements host.Services.
func (*Worker) Progress(sdk.Progress) {}

// Condition implements host.Services.
func (w *Worker) Condition(code, _ string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.conditions = append(w.conditions, code)
}

// Counted implements host.Services.
func (w *Worker) Counted(c host.Counters) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counters = c
}

// Conditions returns the codes that the task has shown, in order.
func (w *Worker) Conditions() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.conditions)
}

// Records decodes whole record batches after checking them as a log does.
func Records(t testing.TB, data []byte) []recordbatch.Record {
	t.Helper()
	var out []recordbatch.Record
	for len(data) > 0 {
		batch, rest, err := recordbatch.Split(data)
		if err == nil {
			err = recordbatch.Check(batch, host.DefaultRecordMaxBytes)
		}
		if err != nil {
			t.Fatalf("the plugin sent a bad batch: %v", err)
		}
		it := recordbatch.Iter(batch)
		var r recordbatch.Record
		for it.Next(&r) {
			c := recordbatch.Record{Offset: r.Offset, Timestamp: r.Timestamp, Key: bytes.Clone(r.Key), Value: bytes.Clone(r.Value)}
			for _, h := range r.Headers {
				c.Headers = append(c.Headers, recordbatch.Header{Key: strings.Clone(h.Key), Value: bytes.Clone(h.Value)})
			}
			out = append(out, c)
		}
		if it.Err() != nil {
			t.Fatalf("the plugin sent a bad batch: %v", it.Err())
		}
		data = rest
	}
	return out
}

// Batch makes one record batch of values at an offset; the keys are JSON texts.
func Batch(t testing.TB, offset int64, values ...[]byte) []byte {
	t.Helper()
	var b recordbatch.Builder
	b.Reset()
	for i, v := range values {
		r := recordbatch.Record{Timestamp: time.Now().UnixMilli(), Key: fmt.Appendf(nil, `"key-%d"`, offset+int64(i)), Value: v}
		if err := b.Append(&r); err != nil {
			t.Fatal(err)
		}
	}
	data := bytes.Clone(b.Bytes())
	recordbatch.SetBaseOffset(data, offset)
	return data
}
