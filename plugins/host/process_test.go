package host_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/millrace-io/millrace/plugins/host"
	"github.com/millrace-io/millrace/plugins/sdk"
)

// programs are what the test binary does under other names. A program that
// returns false goes on as the ordinary test plugin.
var programs = map[string]func() bool{
	"garbage": func() bool {
		fmt.Println("good morning")
		time.Sleep(time.Hour)
		return true
	},
	"silent": func() bool {
		time.Sleep(time.Hour)
		return true
	},
	"leaves": func() bool {
		fmt.Fprintln(os.Stderr, "no such database")
		os.Exit(7)
		return true
	},
	"hugeline": func() bool {
		piece := bytes.Repeat([]byte("x"), 1<<20)
		for {
			if _, err := os.Stdout.Write(piece); err != nil {
				os.Exit(1)
			}
		}
	},
	"elsewhere": func() bool {
		fmt.Println("1|1|tcp|127.0.0.1:1|grpc|")
		time.Sleep(time.Hour)
		return true
	},
	"newer": func() bool {
		fmt.Println("1|99|unix|/nowhere|grpc|")
		time.Sleep(time.Hour)
		return true
	},
	"flood": func() bool {
		stderr := os.Stderr
		go func() {
			line := bytes.Repeat([]byte("no news today\n"), 4096)
			for {
				if _, err := stderr.Write(line); err != nil {
					return
				}
			}
		}()
		return false
	},
	"longline": func() bool {
		stderr := os.Stderr
		piece := bytes.Repeat([]byte(`{"level":"INFO"`), 1<<16)
		for range 100 {
			if _, err := stderr.Write(piece); err != nil {
				return true
			}
		}
		fmt.Fprintln(stderr)
		return false
	},
	"immortal": func() bool { // does not die with its parent's thread
		return forgetParent() != nil
	},
	"deaf": func() bool { // does not hear of its parent's death
		return os.Unsetenv("MILLRACE_PARENT_FD") != nil
	},
	"parent": func() bool { // a worker with one plugin
		p, err := host.Start(context.Background(), host.Class{Name: "x", Path: os.Args[1]}, "c", host.Options{})
		if err != nil {
			fmt.Println(err)
			return true
		}
		fmt.Println(p.PID())
		time.Sleep(time.Hour)
		return true
	},
	"intruder": func() bool { // somebody else who has found the socket
		c, err := net.Dial("unix", os.Args[1])
		if err != nil {
			fmt.Println(err)
			return true
		}
		fmt.Fprint(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		n, err := c.Read(make([]byte, 100))
		fmt.Println(n, err)
		return true
	},
}

func TestProgramsThatAreNoPluginsAreRefused(t *testing.T) {
	for name, text := range map[string]string{
		"garbage":   "good morning",
		"silent":    "timeout",
		"leaves":    "exit status 7; it said last: no such database",
		"hugeline":  "millrace-hugeline",
		"elsewhere": "not in the directory it was given",
		"newer":     "Plugin version: 99",
	} {
		t.Run(name, func(t *testing.T) {
			o, _ := options(t)
			o.StartTimeout = 500 * time.Millisecond
			began := time.Now()
			var before runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := host.Start(t.Context(), host.Class{Name: "x", Path: install(t, t.TempDir(), name)}, "c1", o)
			if e, ok := errors.AsType[*sdk.Error](err); !ok || e.Reason != "plugin.start" || !strings.Contains(e.Msg, text) {
				t.Errorf("got %v", err)
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("took %s", took)
			}
			left, _ := os.ReadDir(o.RunDir)
			if len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestStartEndsWithItsContext(t *testing.T) {
	o, _ := options(t)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	began := time.Now()
	if _, err := host.Start(ctx, host.Class{Name: "x", Path: install(t, t.TempDir(), "silent")}, "c1", o); err == nil {
		t.Error("a silent program started")
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("took %s", took)
	}
}

func TestAFloodOfLogLinesIsCutDown(t *testing.T) {
	p, logs := start(t, "flood")
	s, err := p.OpenSource(t.Context(), numberSource(map[string]string{"limit": "100000"}), &services{})
	if err != nil {
		t.Fatal(err)
	}
	drain(t, s, 100000)
	time.Sleep(300 * time.Millisecond)
	end(t, s)
	if n := strings.Count(logs.String(), "no news today"); n < 100 || n > 3000 {
		t.Errorf("%d lines were logged", n)
	}
	time.Sleep(20 * time.Millisecond)
	if !strings.Contains(logs.String(), "lines were dropped") {
		t.Error("nothing says that lines were dropped")
	}
}

func TestAHugeLogLineIsCut(t *testing.T) {
	p, logs := start(t, "longline")
	if _, err := p.Validate(t.Context(), "test.NumberSourceConnector", map[string]string{"topic": "t"}); err != nil {
		t.Fatal(err)
	}
	if n := len(logs.String()); n > 1<<20 || !strings.Contains(logs.String(), "cut=true") {
		t.Errorf("log has %d bytes: %.300s", n, logs.String())
	}
}

func TestPluginLogsCarryConnectorAndTask(t *testing.T) {
	p, logs := start(t, "plugin")
	spec := numberSource(map[string]string{"mode": "log"})
	spec.Task = 3
	s, err := p.OpenSource(t.Context(), spec, &services{})
	if err != nil {
		t.Fatal(err)
	}
	s.Abort()
	for range 1000 {
		if all := logs.String(); strings.Contains(all, "standard output") && strings.Contains(all, "bare words") && strings.Contains(all, "hello from") {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	for _, want := range []string{`level=WARN msg="hello from the source" plugin=millrace-plugin connector=c1 rows=12 task=3`, `line="bare words\x1b[31m"`, `line="to standard output"`} {
		if !strings.Contains(logs.String(), want) {
			t.Errorf("no %q in:\n%s", want, logs)
		}
	}
	if strings.Contains(logs.String(), "somebody else") {
		t.Error("a plugin may name another connector")
	}
}

func TestThePluginsEnvironmentIsClean(t *testing.T) {
	t.Setenv("AWS_SECRET_ACCESS_KEY", "canary-1")
	o, _ := options(t)
	o.Env = []string{"TZ=UTC"}
	p, err := host.Start(t.Context(), host.Class{Name: "x", Path: install(t, t.TempDir(), "plugin")}, "c1", o)
	if err != nil {
		t.Fatal(err)
	}
	defer closeNow(t, p)
	spec := numberSource(map[string]string{"mode": "canary-2"})
	s, err := p.OpenSource(t.Context(), spec, &services{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Abort()
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p.PID()))
	if err != nil {
		t.Skip(err)
	}
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.PID()))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(append(env, cmdline...), []byte("canary")) {
		t.Errorf("a secret is visible in %q %q", env, cmdline)
	}
	var names []string
	for e := range strings.SplitSeq(strings.TrimSuffix(string(env), "\x00"), "\x00") {
		name, _, _ := strings.Cut(e, "=")
		names = append(names, name)
	}
	slices.Sort(names)
	want := []string{
		"MILLRACE_BINARY_FD", "MILLRACE_LOG_LEVEL", "MILLRACE_PARENT_FD", "MILLRACE_PLUGIN", "MILLRACE_RECORD_MAX_BYTES",
		"PLUGIN_MAX_PORT", "PLUGIN_MIN_PORT", "PLUGIN_PROTOCOL_VERSIONS", "PLUGIN_UNIX_SOCKET_DIR", "TZ",
	}
	if !slices.Equal(names, want) {
		t.Errorf("environment has %q, want %q", names, want)
	}
}

func closeNow(t testing.TB, p *host.Process) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := p.Close(ctx); err != nil {
		t.Errorf("close: %v", err)
	}
}

func TestTheSocketIsPrivateAndRefusesOthers(t *testing.T) {
	o, _ := options(t)
	p, err := host.Start(t.Context(), host.Class{Name: "x", Path: install(t, t.TempDir(), "plugin")}, "c1", o)
	if err != nil {
		t.Fatal(err)
	}
	dirs, err := filepath.Glob(filepath.Join(o.RunDir, "*"))
	if err != nil || len(dirs) != 1 {
		t.Fatal(dirs, err)
	}
	for _, d := range append(dirs, o.RunDir) {
		if info, err := os.Stat(d); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s has mode %v (%v)", d, info.Mode(), err)
		}
	}
	sockets, err := filepath.Glob(filepath.Join(dirs[0], "*"))
	if err != nil || len(sockets) != 1 {
		t.Fatal(sockets, err)
	}
	out, err := exec.Command(install(t, t.TempDir(), "intruder"), sockets[0]).Output()
	if err != nil || !strings.HasPrefix(string(out), "0 ") {
		t.Errorf("the intruder got %q (%v)", out, err)
	}
	closeNow(t, p)
	if left, _ := os.ReadDir(o.RunDir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestPluginsDieWithTheWorker(t *testing.T) {
	for _, name := range []string{"plugin", "immortal", "deaf"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			parent := exec.Command(install(t, dir, "parent"), install(t, dir, name))
			out, err := parent.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := parent.Start(); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(out).ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			pid, err := strconv.Atoi(strings.TrimSpace(line))
			if err != nil {
				t.Fatal(line)
			}
			if err := parent.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = parent.Wait()
			for range 500 {
				if gone(pid) {
					return
				}
				time.Sleep(10 * time.Millisecond)
			}
			_ = syscall.Kill(pid, syscall.SIGKILL)
			t.Errorf("process %d lives on without its parent", pid)
		})
	}
}

// gone reports whether a process has ended, be it not waited for.
func gone(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(b), ") Z ")
}

func TestWhatIsExecutedIsWhatWasHashed(t *testing.T) {
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "millrace-plugin")
	if err := os.WriteFile(path, good, 0o700); err != nil {
		t.Fatal(err)
	}
	o, _ := options(t)
	f := host.NewFinder([]string{dir}, "", o)
	if err := f.Scan(t.Context()); err != nil {
		t.Fatal(err)
	}
	c, ok := f.Lookup("numbers")
	if !ok {
		t.Fatal(f.Broken())
	}
	// Swap the file all the time: what starts is the right one, or nothing.
	bad := filepath.Join(dir, "bad")
	if err := os.WriteFile(bad, []byte("#!/bin/sh\ntouch "+dir+"/executed\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	kept := filepath.Join(dir, "kept")
	if err := os.Link(path, kept); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	swapped := make(chan struct{})
	go func() {
		defer close(swapped)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(time.Duration(i%7) * 100 * time.Microsecond):
			}
			tmp := filepath.Join(dir, "tmp")
			_ = os.Link([]string{bad, kept}[i%2], tmp)
			_ = os.Rename(tmp, path)
			_ = os.Remove(tmp)
		}
	}()
	started, refused := 0, 0
	for started < 20 {
		p, err := host.Start(t.Context(), c, "c1", o)
		if err != nil {
			if sdk.ReasonOf(err) != "plugin.checksum" {
				t.Fatal(err)
			}
			refused++
			continue
		}
		started++
		closeNow(t, p)
	}
	close(stop)
	<-swapped
	if _, err := os.Stat(filepath.Join(dir, "executed")); err == nil {
		t.Error("the other file was executed")
	}
	t.Logf("%d started, %d refused", started, refused)
	// A flipped byte is refused.
	good[len(good)/2] ^= 1
	_ = os.Remove(path)
	if err := os.WriteFile(path, good, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := host.Start(t.Context(), c, "c1", o); sdk.ReasonOf(err) != "plugin.checksum" {
		t.Errorf("got %v", err)
	}
}

func TestCloseKillsWhatDoesNotLeave(t *testing.T) {
	p, _ := start(t, "plugin")
	if err := syscall.Kill(p.PID(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for range 500 { // the signal takes its time
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID())); err != nil || strings.Contains(string(b), ") T ") {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := p.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	<-p.Done()
}

func TestCloseLetsTasksEnd(t *testing.T) {
	p, _ := start(t, "plugin")
	spec, file := listSink(t, map[string]string{"mode": "slow"})
	s, err := p.OpenSink(t.Context(), spec, &services{})
	if err != nil {
		t.Fatal(err)
	}
	closeNow(t, p)
	if got := lines(t, file); got[len(got)-1] != "closed" {
		t.Errorf("the sink was not closed: %q", got)
	}
	if _, err := s.Recv(t.Context()); !errors.Is(err, host.ErrAborted) {
		t.Errorf("the stream says %v", err)
	}
	if err := p.Err(); err != nil {
		t.Errorf("the process says %v", err)
	}
}

func TestUsageIsKnown(t *testing.T) {
	p, _ := start(t, "plugin")
	if rss, cpu := p.Usage(); runtime.GOOS == "linux" && (rss < 1<<20 || cpu < 0) {
		t.Errorf("rss %d, cpu %s", rss, cpu)
	}
	if name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", p.PID())); err == nil && strings.TrimSpace(string(name)) != "millrace-plugin" {
		t.Errorf("ps shows it as %q", name)
	}
}

func TestFinderKnowsClassesByTheirNames(t *testing.T) {
	dir, cache := t.TempDir(), filepath.Join(t.TempDir(), "cache")
	install(t, dir, "plugin")
	script := []byte("#!/bin/sh\necho good morning\nexec sleep 100\n")
	if err := os.WriteFile(filepath.Join(dir, "millrace-garbage"), script, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "millrace-notes.txt"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	o, _ := options(t)
	o.StartTimeout = 3 * time.Second
	f := host.NewFinder([]string{dir, filepath.Join(dir, "missing")}, cache, o)
	select {
	case <-f.Ready():
		t.Error("ready before a scan")
	default:
	}
	if err := f.Scan(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-f.Ready()
	if b := f.Broken(); len(b) != 1 || !strings.Contains(b[0].Error(), "millrace-garbage: Unrecognized remote plugin message: good morning") {
		t.Errorf("broken: %v", b)
	}
	for name, want := range map[string]string{
		"test.NumberSourceConnector": "test.NumberSourceConnector", "NumberSourceConnector": "test.NumberSourceConnector",
		"NumberSource": "test.NumberSourceConnector", "numbers": "test.NumberSourceConnector", "ListSink": "test.ListSinkConnector",
		"JsonConverter": "org.apache.kafka.connect.json.JsonConverter", "numbersource": "", "File": "",
	} {
		c, ok := f.Lookup(name)
		if ok != (want != "") || c.Name != want {
			t.Errorf("%s is %q", name, c.Name)
		}
		if ok && (c.Version != "1.2.3" || len(c.Checksum) != 64) {
			t.Errorf("%s: %+v", name, c)
		}
	}
	c, _ := f.Lookup("numbers")
	if c.Type != "source" || c.Doc != "Numbers." || len(c.Keys) != 8 || c.Keys[0].Name != "topic" {
		t.Errorf("class is %+v", c)
	}
	// The second time nobody is asked: a binary that hangs would be noticed.
	began := time.Now()
	again := host.NewFinder([]string{dir}, cache, o)
	_ = os.Remove(filepath.Join(dir, "millrace-garbage"))
	if err := again.Scan(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(again.Classes()) != len(f.Classes()) {
		t.Errorf("%d classes, then %d", len(f.Classes()), len(again.Classes()))
	}
	t.Logf("scan from the cache took %s", time.Since(began))
}

func TestPoolKeepsAProcessAndSurvivesOneThatHangs(t *testing.T) {
	o, _ := options(t)
	pool := host.NewPool(o)
	defer pool.Close()
	c := host.Class{Name: "test.NumberSourceConnector", Path: install(t, t.TempDir(), "plugin")}
	var pids []int
	validate := func(ctx context.Context, mode string) (v host.Validation, err error) {
		err = pool.Do(ctx, c, func(p *host.Process) (err error) {
			pids = append(pids, p.PID())
			v, err = p.Validate(ctx, c.Name, map[string]string{"topic": "t", "mode": mode, "x": "1", "value.converter": "JsonConverter", "value.converter.decimal.format": "odd"})
			return err
		})
		return v, err
	}
	v, err := validate(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(v.Report.Unknown, "x") || slices.Contains(v.Report.Unknown, "value.converter.decimal.format") {
		t.Errorf("unknown: %v", v.Report.Unknown)
	}
	if errs := v.Report.Errors(); len(errs) != 1 || errs[0].Key != "value.converter.decimal.format" || !strings.Contains(errs[0].Msg, "configuration value.converter.decimal.format") {
		t.Errorf("errors: %v", errs)
	}
	if v, err := validate(t.Context(), "bad"); err != nil || len(v.Problems) != 1 || v.Problems[0].Key != "mode" || v.Problems[0].Reason != "test.bad" {
		t.Errorf("problems: %v (%v)", v.Problems, err)
	}
	if v, err := validate(t.Context(), "panic.validate"); err != nil || len(v.Problems) != 1 || v.Problems[0].Reason != "plugin.panic" {
		t.Errorf("problems: %v (%v)", v.Problems, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if _, err := validate(ctx, "hang.validate"); sdk.ReasonOf(err) != "plugin.timeout" {
		t.Errorf("got %v", err)
	}
	if _, err := validate(t.Context(), ""); err != nil {
		t.Errorf("after one that hung: %v", err)
	}
	if pids[0] != pids[1] || pids[1] != pids[3] || pids[4] == pids[3] {
		t.Errorf("processes %v", pids)
	}
}

func TestQuestionsAboutTasksAndOffsets(t *testing.T) {
	p, _ := start(t, "plugin")
	for class, want := range map[string]int{"test.NumberSourceConnector": 1, "test.ListSinkConnector": 3} {
		plan, err := p.PlanTasks(t.Context(), class, map[string]string{"topic": "t", "file": "f"}, 3)
		if err != nil || len(plan) != want || plan[0]["topic"] != "t" {
			t.Errorf("%s: %v, %v", class, plan, err)
		}
	}
	if _, err := p.PlanTasks(t.Context(), "nobody", nil, 1); sdk.CodeOf(err) != sdk.NotFound {
		t.Errorf("got %v", err)
	}
	at := func(n any) []sdk.Position {
		return []sdk.Position{{Partition: map[string]any{"s": "x"}, Offset: map[string]any{"n": n}}}
	}
	if external, err := p.AlterOffsets(t.Context(), "test.NumberSourceConnector", map[string]string{"topic": "t"}, at(int64(5))); err != nil || !external {
		t.Errorf("got %v, %v", external, err)
	}
	_, err := p.AlterOffsets(t.Context(), "test.NumberSourceConnector", map[string]string{"topic": "t"}, at(5.0))
	if e, ok := errors.AsType[*sdk.Error](err); !ok || e.Reason != "test.offset" || e.Key != "n" || e.Code != sdk.Invalid {
		t.Errorf("got %v", err)
	}
	if external, err := p.AlterOffsets(t.Context(), "test.ListSinkConnector", nil, at(int64(5))); err != nil || external {
		t.Errorf("got %v, %v", external, err)
	}
}
