package host

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/millrace-io/millrace/plugins/internal/wire"
)

const (
	// busyTries is how often an executable that somebody still writes is tried
	// again; a copy that has just been made is in that state for milliseconds.
	busyTries = 20
	busyPause = 10 * time.Millisecond
	// outputGrace is how long the pipes of a dead process are read: a process of
	// its own may have inherited them.
	outputGrace = time.Second
	// exitGrace lets a process that has closed its output say how it ended.
	exitGrace = 100 * time.Millisecond
)

// binary is a plugin's file, opened once: what is hashed is what is executed,
// whatever happens to the path meanwhile.
type binary struct {
	*os.File
	checksum string
}

func openBinary(path string) (*binary, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", path)
	}
	h := sha256.New()
	if err == nil {
		_, err = io.Copy(h, f)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &binary{File: f, checksum: hex.EncodeToString(h.Sum(nil))}, nil
}

// runner is the process for go-plugin: it starts and ends it, and keeps the
// worker's hands on what the library would leave open.
type runner struct {
	path   string // for people, and the process's argument 0
	bin    *binary
	env    []string
	dir    string // private, for the socket
	output *transcript

	cmd    *exec.Cmd
	stdout *os.File
	parent *os.File      // its end of the pipe that tells the plugin of our death
	exited chan struct{} // closed when the process was waited for
	state  error         // valid after exited

	pid    atomic.Int64 // 0 until it runs
	killed atomic.Bool  // by us

	mu      sync.Mutex // guards the fields below
	grace   <-chan struct{}
	network string // where it listens
	address string
}

// Start starts the process from a thread that lives as long as the process: the
// parent-death signal is tied to the thread, not to this process.
func (r *runner) Start(context.Context) error {
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		stderr, err := r.spawn()
		if err != nil {
			close(r.exited)
			started <- err
			return
		}
		r.pid.Store(int64(r.cmd.Process.Pid))
		started <- nil
		read := make(chan struct{})
		go func() {
			defer close(read)
			r.output.read(stderr)
		}()
		r.state = r.cmd.Wait()
		killGroup(r.cmd.Process.Pid) // what it has left behind
		select {
		case <-read:
		case <-time.After(outputGrace):
		}
		_ = stderr.Close() // only ends the reader
		<-read
		_ = r.stdout.Close() // only ends the reader
		_ = r.parent.Close() // nobody reads it any more
		close(r.exited)
	}()
	return <-started
}

// spawn makes the pipes and starts the process.
func (r *runner) spawn() (stderr *os.File, err error) {
	var files []*os.File // to be closed when something fails
	pipe := func() (in, out *os.File) {
		if err == nil {
			if in, out, err = os.Pipe(); err == nil {
				files = append(files, in, out)
			}
		}
		return in, out
	}
	stdoutIn, stdoutOut := pipe()
	stderrIn, stderrOut := pipe()
	parentIn, parentOut := pipe()
	if err != nil {
		return nil, errors.Join(err, closeAll(files))
	}
	for try := 0; ; try++ {
		// Descriptors of the child: 3 is the pipe, 4 the binary it is executed from.
		r.cmd = &exec.Cmd{
			Path: descriptorPath(r.path, 4), Args: []string{r.path}, Env: append(r.env,
				wire.ParentPipeEnv+"=3", wire.BinaryEnv+"=4"),
			Stdout: stdoutOut, Stderr: stderrOut,
			ExtraFiles: []*os.File{parentIn, r.bin.File}, SysProcAttr: processAttributes(),
		}
		if err = r.cmd.Start(); !errors.Is(err, syscall.ETXTBSY) || try == busyTries {
			break
		}
		<-time.After(busyPause)
	}
	if err != nil {
		return nil, errors.Join(err, closeAll(files))
	}
	r.stdout, r.parent = stdoutIn, parentOut
	if err := closeAll([]*os.File{stdoutOut, stderrOut, parentIn}); err != nil {
		return nil, err
	}
	return stderrIn, nil
}

func closeAll(files []*os.File) error {
	var errs []error
	for _, f := range files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// Wait waits for the process to end.
func (r *runner) Wait(context.Context) error {
	<-r.exited
	return r.state
}

// Kill ends the process, almost at once unless Close has granted it time.
func (r *runner) Kill(context.Context) error {
	r.mu.Lock()
	grace := r.grace
	r.mu.Unlock()
	if grace == nil {
		timer := time.NewTimer(exitGrace)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-r.exited:
			return nil
		}
	} else {
		select {
		case <-grace:
		case <-r.exited:
			return nil
		}
	}
	r.kill()
	<-r.exited
	return nil
}

// kill sends the signal without waiting.
func (r *runner) kill() {
	select {
	case <-r.exited:
	default:
		if pid := r.pid.Load(); pid != 0 {
			r.killed.Store(true)
			killGroup(int(pid))
		}
	}
}

// Stdout carries the handshake.
func (r *runner) Stdout() io.ReadCloser { return r.stdout }

// Stderr gives go-plugin nothing to parse: its reader trusts what it reads. It
// ends with the process.
func (r *runner) Stderr() io.ReadCloser { return &untilExit{r.exited} }

type untilExit struct{ exited <-chan struct{} }

// Read waits for the end.
func (u *untilExit) Read([]byte) (int, error) {
	<-u.exited
	return 0, io.EOF
}

// Close does nothing.
func (*untilExit) Close() error { return nil }

// Name is the plugin's path.
func (r *runner) Name() string { return r.path }

// ID is the process id.
func (r *runner) ID() string {
	if pid := r.pid.Load(); pid != 0 {
		return strconv.FormatInt(pid, 10)
	}
	return ""
}

// Diagnose is go-plugin's request for a hint; what the plugin said is added to
// the error elsewhere.
func (*runner) Diagnose(context.Context) string { return "" }

// PluginToHost accepts only a socket in the private directory, so that a plugin
// cannot point the worker anywhere else.
func (r *runner) PluginToHost(network, address string) (string, string, error) {
	if network != "unix" || filepath.Dir(filepath.Clean(address)) != r.dir {
		return "", "", fmt.Errorf("plugin listens on %s %q, which is not in the directory it was given", network, address)
	}
	r.mu.Lock()
	r.network, r.address = network, address
	r.mu.Unlock()
	return network, address, nil
}

// dial connects to the plugin, and to nobody else.
func (r *runner) dial(ctx context.Context) (net.Conn, error) {
	r.mu.Lock()
	network, address := r.network, r.address
	r.mu.Unlock()
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	if err := wire.CheckPeer(conn, int(r.pid.Load())); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// HostToPlugin changes nothing: both are on the same machine.
func (*runner) HostToPlugin(network, address string) (string, string, error) {
	return network, address, nil
}
