package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	pluginrunner "github.com/hashicorp/go-plugin/runner"
	"google.golang.org/grpc"

	"github.com/millrace-io/millrace/plugins/internal/pb"
	"github.com/millrace-io/millrace/plugins/internal/wire"
	"github.com/millrace-io/millrace/plugins/sdk"
)

// DefaultRecordMaxBytes bounds one record when the options do not.
const DefaultRecordMaxBytes = wire.DefaultRecordMaxBytes

const (
	// startTimeout is how long a plugin may take to answer; a healthy one needs
	// some ten milliseconds.
	startTimeout = 10 * time.Second
	// socketPathMax is what the path of a directory for sockets may have: a
	// socket's path is limited to 107 bytes, and go-plugin adds some 40.
	socketPathMax = 60
	// goneWait is how long a broken stream waits to learn that its process has
	// ended, which explains it.
	goneWait = 2 * time.Second
)

// Process is a plugin that runs. Its methods may be called from any goroutine.
type Process struct {
	log       *slog.Logger
	class     Class
	recordMax int
	runner    *runner
	client    *plugin.Client
	conn      *grpc.ClientConn
	rpc       pb.PluginClient
	buffers   sync.Pool // of *[]byte, for the tasks' batches
	done      chan struct{}
	cleaned   chan struct{} // closed when nothing is left of it

	mu      sync.Mutex // guards the fields below
	closing bool
	streams map[*stream]struct{}
}

// Start starts the plugin of a class for a connector and waits until it answers.
func Start(ctx context.Context, c Class, connector string, o Options) (*Process, error) {
	log := o.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	log = log.With(slog.String(wire.LogPlugin, filepath.Base(c.Path)))
	if connector != "" {
		log = log.With(slog.String(wire.LogConnector, connector))
	}
	bin, err := openBinary(c.Path)
	if err != nil {
		return nil, sdk.Errorf(sdk.NotFound, "plugin.binary", "open plugin: %w", err)
	}
	defer bin.Close() //nolint:errcheck // only read
	if c.Checksum != "" && c.Checksum != bin.checksum {
		return nil, sdk.Errorf(sdk.Conflict, "plugin.checksum",
			"the binary of class %q, %s, has changed since the worker has read it: restart the worker when the new one is right", c.Name, c.Path)
	}
	p := &Process{
		log: log, class: c, recordMax: o.RecordMaxBytes, done: make(chan struct{}), cleaned: make(chan struct{}),
		streams: make(map[*stream]struct{}),
	}
	if p.recordMax <= 0 {
		p.recordMax = DefaultRecordMaxBytes
	}
	if err := p.start(ctx, bin, o); err != nil {
		return nil, err
	}
	return p, nil
}

// start runs the binary and connects to it.
func (p *Process) start(ctx context.Context, bin *binary, o Options) error {
	base, err := socketBase(o.RunDir)
	if err != nil {
		return sdk.Errorf(sdk.Internal, "plugin.run_dir", "make directory for sockets: %w", err)
	}
	env := append(append([]string(nil), o.Env...),
		wire.RecordMaxEnv+"="+strconv.Itoa(p.recordMax), wire.LogLevelEnv+"="+leastLevel(ctx, p.log).String())
	output := newTranscript(p.log)
	timeout := o.StartTimeout
	if timeout <= 0 {
		timeout = startTimeout
	}
	p.runner = &runner{path: p.class.Path, bin: bin, output: output, exited: make(chan struct{})}
	p.client = plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig: plugin.HandshakeConfig{
			ProtocolVersion: wire.ProtocolVersion, MagicCookieKey: wire.CookieKey, MagicCookieValue: wire.CookieValue,
		},
		Plugins:          plugin.PluginSet{wire.PluginName: &grpcPlugin{}},
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
		RunnerFunc: func(_ hclog.Logger, cmd *exec.Cmd, dir string) (pluginrunner.Runner, error) {
			p.runner.env, p.runner.dir = append(env, cmd.Env...), dir
			return p.runner, nil
		},
		SkipHostEnv:      true,
		StartTimeout:     timeout,
		Logger:           hclog.NewNullLogger(),
		SyncStdout:       &lineWriter{t: output},
		SyncStderr:       &lineWriter{t: output},
		UnixSocketConfig: &plugin.UnixSocketConfig{TempDir: base},
		GRPCDialOptions:  p.dialOptions(),
	})
	connected := make(chan error, 1)
	go func() { connected <- p.connect(ctx) }()
	select {
	case err = <-connected:
	case <-ctx.Done():
		p.runner.kill()
		err = errors.Join(ctx.Err(), <-connected)
	}
	if err != nil {
		p.client.Kill()
		if p.runner.dir != "" {
			err = errors.Join(err, os.RemoveAll(p.runner.dir))
		}
		return p.startFailed(err, output)
	}
	go p.watch()
	return nil
}

// connect starts the process and waits for its answer to the first call.
func (p *Process) connect(ctx context.Context) error {
	protocol, err := p.client.Client()
	if err != nil {
		return err
	}
	raw, err := protocol.Dispense(wire.PluginName)
	if err != nil {
		return err
	}
	conn, ok := raw.(*grpc.ClientConn)
	if !ok {
		return fmt.Errorf("unexpected client %T", raw)
	}
	p.conn, p.rpc = conn, pb.NewPluginClient(conn)
	return ctx.Err()
}

// startFailed makes one sentence of why a plugin does not start.
func (p *Process) startFailed(err error, output *transcript) error {
	how := strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\t' }), "; ")
	select {
	case <-p.runner.exited:
		if p.runner.state != nil && !p.runner.killed.Load() {
			how = "it ended with " + p.runner.state.Error()
		}
	default:
	}
	return sdk.Errorf(sdk.Unavailable, "plugin.start", "start plugin %s: %w", p.class.Path, output.explain(how))
}

// socketBase returns a directory in which go-plugin makes a private one.
func socketBase(runDir string) (string, error) {
	if runDir == "" || len(runDir) > socketPathMax {
		return os.TempDir(), nil
	}
	return runDir, os.MkdirAll(runDir, 0o700)
}

// leastLevel returns the lowest level that the logger takes.
func leastLevel(ctx context.Context, log *slog.Logger) slog.Level {
	for _, l := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn} {
		if log.Enabled(ctx, l) {
			return l
		}
	}
	return slog.LevelError
}

// dialOptions are the windows and buffers of the data path, and the check of who
// listens on the socket.
func (p *Process) dialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return p.runner.dial(ctx) }),
		grpc.WithDefaultCallOptions(
			grpc.ForceCodecV2(wire.NewCodec()),
			grpc.MaxCallRecvMsgSize(min(p.recordMax+wire.MessageOverhead, math.MaxInt32)),
		),
		grpc.WithInitialWindowSize(wire.WindowBytes),
		grpc.WithInitialConnWindowSize(wire.WindowBytes),
		grpc.WithReadBufferSize(wire.BufferBytes),
		grpc.WithWriteBufferSize(wire.BufferBytes),
		grpc.WithDisableRetry(),
		grpc.WithNoProxy(),
	}
}

// grpcPlugin hands out the connection.
type grpcPlugin struct{ plugin.NetRPCUnsupportedPlugin }

// GRPCServer is not used on this side.
func (*grpcPlugin) GRPCServer(*plugin.GRPCBroker, *grpc.Server) error {
	return fmt.Errorf("host: not a server")
}

// GRPCClient returns the connection.
func (*grpcPlugin) GRPCClient(_ context.Context, _ *plugin.GRPCBroker, conn *grpc.ClientConn) (any, error) {
	return conn, nil
}

// watch waits for the end of the process and clears up after it.
func (p *Process) watch() {
	<-p.runner.exited
	p.mu.Lock()
	closing := p.closing
	p.mu.Unlock()
	if !closing {
		p.log.Error("plugin process ended", slog.Int("pid", p.PID()), slog.Any(wire.LogErr, p.exit()))
	}
	close(p.done)
	p.client.Kill() // removes the socket's directory, closes the connection
	close(p.cleaned)
}

// PID returns the process id.
func (p *Process) PID() int { return int(p.runner.pid.Load()) }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err says why the process has ended; nil while it runs, and after a Close that
// it followed in order.
func (p *Process) Err() error {
	select {
	case <-p.done:
		return p.exit()
	default:
		return nil
	}
}

// exit describes how the process ended.
func (p *Process) exit() error {
	p.mu.Lock()
	closing := p.closing
	p.mu.Unlock()
	state := p.runner.state
	if state == nil {
		if closing {
			return nil
		}
		return p.runner.output.explain("plugin " + filepath.Base(p.class.Path) + " ended by itself with exit status 0")
	}
	how := state.Error()
	if exit, ok := errors.AsType[*exec.ExitError](state); ok {
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			how = fmt.Sprintf("signal %d (%s)", int(status.Signal()), status.Signal())
		}
	}
	return p.runner.output.explain("plugin " + filepath.Base(p.class.Path) + " ended with " + how)
}

// Usage returns the resident memory and the CPU time of the process so far, 0
// where the system does not tell.
func (p *Process) Usage() (rssBytes int64, cpu time.Duration) { return usage(p.PID()) }

// Close ends the process: its tasks are closed, it is asked to leave, and when
// ctx ends before, it is killed. Close returns when nothing is left of it.
func (p *Process) Close(ctx context.Context) error {
	p.mu.Lock()
	p.closing = true
	var open []*stream
	for s := range p.streams {
		open = append(open, s)
	}
	p.mu.Unlock()
	for _, s := range open {
		s.abort(ErrAborted)
	}
	p.runner.mu.Lock()
	p.runner.grace = ctx.Done()
	p.runner.mu.Unlock()
	go p.client.Kill()
	select {
	case <-p.cleaned:
		return p.Err()
	case <-ctx.Done():
	}
	p.runner.kill()
	<-p.cleaned
	return fmt.Errorf("plugin %s did not end in time and was killed: %w", filepath.Base(p.class.Path), ctx.Err())
}

// failure explains the error of a call or stream: the plugin's own error as it
// was, the end of the process when that is the cause.
func (p *Process) failure(ctx context.Context, what string, err error) error {
	if own, ok := wire.FromStatus(err); ok {
		return own
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", what, context.Cause(ctx))
	}
	wait := time.NewTimer(goneWait)
	defer wait.Stop()
	select {
	case <-p.done:
		if end := p.Err(); end != nil {
			return fmt.Errorf("%w: %w", ErrProcessGone, end)
		}
		return ErrProcessGone
	case <-wait.C:
	}
	return sdk.Errorf(sdk.Internal, "plugin.protocol", "%s of %s: %w", what, filepath.Base(p.class.Path), err)
}

// describe asks the plugin what it offers.
func (p *Process) describe(ctx context.Context) ([]Class, error) {
	r, err := p.rpc.Describe(ctx, &pb.DescribeRequest{})
	if err != nil {
		return nil, p.failure(ctx, "describe", err)
	}
	var classes []Class
	for _, c := range r.GetClasses() {
		class := Class{Name: c.GetName(), Aliases: c.GetAliases(), Type: c.GetType(), Version: r.GetVersion(), Doc: c.GetDoc()}
		if err := json.Unmarshal(c.GetKeys(), &class.Keys); err != nil {
			return nil, sdk.Errorf(sdk.Internal, "plugin.protocol", "keys of class %q: %w", c.GetName(), err)
		}
		classes = append(classes, class)
	}
	return classes, nil
}

// Validate checks the config of a connector of the class.
func (p *Process) Validate(ctx context.Context, class string, config map[string]string) (Validation, error) {
	r, err := p.rpc.Validate(ctx, &pb.ConfigRequest{Class: class, Config: config})
	if err != nil {
		return Validation{}, p.failure(ctx, "validate", err)
	}
	v := Validation{Problems: wire.FieldErrorsFromPB(r.GetProblems())}
	if err := json.Unmarshal(r.GetReport(), &v.Report); err != nil {
		return Validation{}, sdk.Errorf(sdk.Internal, "plugin.protocol", "report of class %q: %w", class, err)
	}
	return v, nil
}

// PlanTasks splits a connector's work into the configs of at most max tasks.
func (p *Process) PlanTasks(ctx context.Context, class string, config map[string]string, max int) ([]map[string]string, error) {
	r, err := p.rpc.PlanTasks(ctx, &pb.PlanRequest{Class: class, Config: config, Max: int32(max)})
	if err != nil {
		return nil, p.failure(ctx, "plan tasks", err)
	}
	var configs []map[string]string
	for _, t := range r.GetTasks() {
		configs = append(configs, t.GetConfig())
	}
	return configs, nil
}

// AlterOffsets asks the connector whether offsets may be set. external says that
// it has also changed those it keeps outside.
func (p *Process) AlterOffsets(ctx context.Context, class string, config map[string]string, offsets []sdk.Position) (external bool, err error) {
	encoded, err := wire.PositionsToPB(offsets)
	if err != nil {
		return false, sdk.Errorf(sdk.Invalid, "offsets.invalid", "%w", err)
	}
	r, err := p.rpc.AlterOffsets(ctx, &pb.AlterRequest{Class: class, Config: config, Offsets: encoded})
	if err != nil {
		return false, p.failure(ctx, "alter offsets", err)
	}
	return r.GetExternal(), nil
}
