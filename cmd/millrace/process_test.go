package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/millrace-io/millrace/api"
)

// binaries are built once for all tests of real processes, with the race detector
// when the tests have it.
var binaries = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "millrace-bin-")
	if err != nil {
		return "", err
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		return "", err
	}
	mains, err := filepath.Glob(filepath.Join(root, "connectors", "*", "main.go"))
	if err != nil {
		return dir, err
	}
	packages := map[string]string{"millrace": "./cmd/millrace"}
	for _, m := range mains {
		name := filepath.Base(filepath.Dir(m))
		packages["millrace-"+name] = "./connectors/" + name
	}
	for binary, pkg := range packages {
		build := exec.Command("go", "build", "-race="+strconv.FormatBool(raceEnabled), "-o", filepath.Join(dir, binary), pkg)
		build.Dir = root
		if out, err := build.CombinedOutput(); err != nil {
			return dir, fmt.Errorf("build %s: %w\n%s", binary, err, out)
		}
	}
	return dir, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, _ := binaries(); dir != "" {
		_ = os.RemoveAll(dir)
	}
	os.Exit(code)
}

// process is a real worker that a test may kill.
type process struct {
	t    *testing.T
	dir  string // its data
	addr string
	cmd  *exec.Cmd
	done chan struct{}
	log  *os.File
	api.Client
}

// startWorker starts a worker on a directory that survives it.
func startWorker(t *testing.T, dir, addr string) *process {
	t.Helper()
	bin, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	log, err := os.OpenFile(filepath.Join(filepath.Dir(dir), "worker.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, dir: dir, addr: addr, log: log, done: make(chan struct{}), Client: api.Client{Base: "http://" + addr}}
	p.cmd = exec.Command(filepath.Join(bin, "millrace"), "worker", "--data-dir", dir, "--listen", addr)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait()
		close(p.done)
		_ = log.Close()
	}()
	t.Cleanup(func() {
		p.kill()
		b, _ := os.ReadFile(log.Name())
		if i := bytes.Index(b, []byte("WARNING: DATA RACE")); i >= 0 {
			t.Errorf("a process had a data race:\n%s", b[i:min(len(b), i+4000)])
		} else if t.Failed() {
			t.Logf("worker's log:\n%s", b[max(0, len(b)-8000):])
		}
	})
	p.until("the worker is ready", func() bool { return p.Call(t.Context(), "GET", "/readyz", nil, nil) == nil })
	return p
}

// kill ends the worker without warning.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// until waits for a condition.
func (p *process) until(what string, f func() bool) {
	p.t.Helper()
	deadline := time.After(60 * time.Second)
	for !f() {
		select {
		case <-deadline:
			b, _ := os.ReadFile(p.log.Name())
			p.t.Fatalf("never: %s\nworker's log:\n%s", what, b[max(0, len(b)-8000):])
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (p *process) create(name string, config map[string]string) {
	p.t.Helper()
	if err := p.Call(p.t.Context(), "POST", "/connectors", api.Create{Name: name, Config: config}, nil); err != nil {
		p.t.Fatal(err)
	}
}

func (p *process) status(name string) (s api.Status, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err = p.Call(ctx, "GET", api.ConnectorPath(name, "status"), nil, &s)
	return s, err
}

// pid returns the process id of a connector's plugin, 0 while there is none.
func (p *process) pid(name string) int {
	s, err := p.status(name)
	if err != nil || s.Process == nil {
		return 0
	}
	return s.Process.PID
}

// end is how many records a topic's only partition has.
func (p *process) end(topic string) int64 {
	var t api.Topic
	if err := p.Call(context.Background(), "GET", "/topics/"+topic, nil, &t); err != nil || len(t.Partitions) == 0 {
		return 0
	}
	return t.Partitions[0].End
}

// freePort reserves an address that stays the same over restarts.
func freePort(t *testing.T) string {
	t.Helper()
	return "127.0.0.1:" + strconv.Itoa(20000+rand.IntN(20000))
}

// orphans returns plugin processes of a data directory's worker that still live.
func orphans(t *testing.T) []string {
	t.Helper()
	bin, _ := binaries()
	var left []string
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		exe, err := os.Readlink("/proc/" + e.Name() + "/exe")
		if err == nil && strings.HasPrefix(exe, bin+"/millrace-") {
			left = append(left, e.Name()+" "+exe)
		}
	}
	return left
}

// sequences reads {"id": n} out of every record of a topic, in offset order.
func (p *process) sequences(topic string) (ids []int64) {
	p.t.Helper()
	end := p.end(topic)
	for next := int64(0); next < end; {
		var got api.Records
		if err := p.Call(p.t.Context(), "GET", fmt.Sprintf("/topics/%s/records?offset=%d&limit=1000", topic, next), nil, &got); err != nil {
			p.t.Fatal(err)
		}
		for _, r := range got.Records {
			var v struct{ ID int64 }
			if err := json.Unmarshal([]byte(*r.Value), &v); err != nil {
				p.t.Fatal(err)
			}
			ids = append(ids, v.ID)
		}
		next = got.Next
	}
	return ids
}

// kills is how often each process is killed.
func kills() int {
	if testing.Short() {
		return 2
	}
	return 10
}

// TestKillsLoseAndRepeatNothingInTheLog kills the worker, the source's and the
// sink's process in turn while records flow, and counts.
func TestKillsLoseAndRepeatNothingInTheLog(t *testing.T) {
	dir := t.TempDir()
	addr, data, file := freePort(t), filepath.Join(dir, "data"), filepath.Join(dir, "out.jsonl")
	w := startWorker(t, data, addr)
	w.create("orders", map[string]string{"connector.class": "OrdersSource", "topic": "orders", "interval.ms": "1"})
	w.create("file", map[string]string{"connector.class": "FileStreamSink", "topics": "orders", "file": file})
	var slowest time.Duration
	for i := range 3 * kills() {
		before := w.end("orders")
		w.until("records flow", func() bool { return w.end("orders") > before+20 && w.pid("orders") > 0 && w.pid("file") > 0 })
		killed := time.Now()
		switch i % 3 {
		case 0:
			w.kill()
			w = startWorker(t, data, addr)
		case 1:
			_ = syscall.Kill(w.pid("orders"), syscall.SIGKILL)
		case 2:
			_ = syscall.Kill(w.pid("file"), syscall.SIGKILL)
		}
		at := w.end("orders")
		w.until("records flow again", func() bool { return w.end("orders") > at+5 })
		slowest = max(slowest, time.Since(killed))
	}
	if err := w.Call(t.Context(), "PUT", "/connectors/orders/stop", nil, nil); err != nil {
		t.Fatal(err)
	}
	w.until("the source has stopped", func() bool { s, err := w.status("orders"); return err == nil && s.Connector.State == "STOPPED" })
	w.until("the sink has caught up", func() bool {
		s, err := w.status("file")
		return err == nil && len(s.Lag) == 1 && s.Lag[0].Records == 0
	})
	ids := w.sequences("orders")
	for i, id := range ids {
		if id != int64(i)+1 {
			t.Fatalf("record %d of %d is order %d: lost or repeated", i, len(ids), id)
		}
	}
	lost, repeated := countLines(t, file, int64(len(ids)))
	t.Logf("%d kills of each process, %d records: 0 lost and 0 repeated in the log; file sink: %d lost, %d repeated; slowest recovery %v", kills(), len(ids), lost, repeated, slowest)
	if lost > 0 {
		t.Errorf("%d records never came to the file", lost)
	}
	// At least once, and bounded: what was in flight at a kill comes again.
	if most := int64(2 * kills() * 2000); repeated > most {
		t.Errorf("%d records are in the file twice, at most %d may be", repeated, most)
	}
	// A worker that is asked to end leaves nobody behind.
	_ = w.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-w.done:
	case <-time.After(30 * time.Second):
		t.Fatal("the worker does not end on SIGTERM")
	}
	if code := w.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit code %d after SIGTERM, want 0", code)
	}
	if left := orphans(t); len(left) > 0 {
		t.Errorf("processes left behind: %v", left)
	}
}

// countLines counts which of the orders 1..n a file lacks or has twice.
func countLines(t *testing.T, file string, n int64) (lost, repeated int64) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[int64]int64)
	lines := bufio.NewScanner(bytes.NewReader(b))
	for lines.Scan() {
		var v struct{ ID int64 }
		if err := json.Unmarshal(lines.Bytes(), &v); err != nil {
			t.Fatalf("a line of the file is not whole: %q", lines.Text())
		}
		seen[v.ID]++
	}
	for id := int64(1); id <= n; id++ {
		switch seen[id] {
		case 0:
			lost++
		default:
			repeated += seen[id] - 1
		}
	}
	return lost, repeated
}

// TestPluginsDieWithAKilledWorker looks for orphans after kill -9.
func TestPluginsDieWithAKilledWorker(t *testing.T) {
	dir := t.TempDir()
	w := startWorker(t, filepath.Join(dir, "data"), freePort(t))
	w.create("orders", map[string]string{"connector.class": "OrdersSource", "topic": "orders"})
	w.until("the source runs", func() bool { return w.end("orders") > 0 })
	w.kill()
	deadline := time.After(5 * time.Second)
	for len(orphans(t)) > 0 {
		select {
		case <-deadline:
			t.Fatalf("still there 5 s after the worker was killed: %v", orphans(t))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// TestWorkerRefusesUnsafeListeners starts workers that others could reach.
func TestWorkerRefusesUnsafeListeners(t *testing.T) {
	bin, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range []string{"0.0.0.0:0", ":18099", "[::]:0"} {
		out, err := exec.Command(filepath.Join(bin, "millrace"), "worker", "--data-dir", filepath.Join(t.TempDir(), "d"), "--listen", addr).CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != exitRefused {
			t.Errorf("%s: err = %v, want exit code %d", addr, err, exitRefused)
		}
		if n := strings.Count(strings.TrimSpace(string(out)), "\n"); n != 0 || !strings.Contains(string(out), "auth.token.file") {
			t.Errorf("%s: it says %q, want one sentence with the way out", addr, out)
		}
	}
}

// TestASecondWorkerIsKeptOut starts two workers on one directory.
func TestASecondWorkerIsKeptOut(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	w := startWorker(t, data, freePort(t))
	bin, _ := binaries()
	out, err := exec.Command(filepath.Join(bin, "millrace"), "worker", "--data-dir", data, "--listen", "127.0.0.1:0").CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != exitRefused || strings.Count(strings.TrimSpace(string(out)), "\n") != 0 {
		t.Errorf("err = %v, output %q; want exit code %d and one sentence", err, out, exitRefused)
	}
	if err := w.Call(t.Context(), "GET", "/health", nil, nil); err != nil {
		t.Error("the first worker was disturbed:", err)
	}
}
