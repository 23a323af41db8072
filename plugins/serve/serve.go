// Package serve is the plugin's side of the process boundary. All that the main
// function of a connector does is
//
//	func main() { serve.Main(sdk.Plugin{Version: "0.1.0", Connectors: ...}) }
//
// Main speaks with the worker until it is told to end, or until the worker is
// gone. For each task it runs the loop around Read or Write: converters, batches
// of records, credit, positions and commits, retries, dead letters. It is the
// only user of an author's Source and Sink.
package serve

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	"github.com/millrace-io/millrace/plugins/internal/pb"
	"github.com/millrace-io/millrace/plugins/internal/wire"
	"github.com/millrace-io/millrace/plugins/sdk"
)

// Started reports whether a worker has started this process as a plugin. Tests
// use it to turn the test binary into one; Main checks it by itself.
func Started() bool { return os.Getenv(wire.CookieKey) == wire.CookieValue }

// Main serves the plugin and returns when the worker has ended it. It exits the
// process when nobody started it as a plugin, and when the worker dies.
func Main(p sdk.Plugin) {
	if !Started() {
		fmt.Fprintf(os.Stderr, "%s is a plugin of Millrace: put it into a directory of plugin.path and start the worker with \"millrace worker\"\n",
			filepath.Base(os.Args[0]))
		os.Exit(1) //nolint:forbidigo // Main is the whole main function of a plugin
	}
	closeFile(wire.BinaryEnv)
	// It was executed from a descriptor, and ps would show the descriptor's
	// number. Where there is no such file nothing is to be done.
	_ = os.WriteFile("/proc/self/comm", []byte(filepath.Base(os.Args[0])), 0)
	if parent := inherited(wire.ParentPipeEnv); parent != nil {
		go func() {
			_, _ = io.Copy(io.Discard, parent)
			os.Exit(3) //nolint:forbidigo // the worker is gone; nobody is left to return to
		}()
	}
	s := &server{plugin: p, tasks: new(sync.WaitGroup), log: newLogger(os.Stderr, os.Getenv(wire.LogLevelEnv))}
	plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig: plugin.HandshakeConfig{
			ProtocolVersion: wire.ProtocolVersion, MagicCookieKey: wire.CookieKey, MagicCookieValue: wire.CookieValue,
		},
		Plugins:    plugin.PluginSet{wire.PluginName: &grpcPlugin{server: s}},
		GRPCServer: newGRPCServer,
		Logger:     hclog.NewNullLogger(),
	})
	s.tasks.Wait() // each bounded by closeTimeout; the worker kills what takes longer than it likes
}

// newGRPCServer makes the server with the windows and buffers of the data path.
func newGRPCServer(opts []grpc.ServerOption) *grpc.Server {
	recordMax, err := strconv.Atoi(os.Getenv(wire.RecordMaxEnv))
	if err != nil || recordMax <= 0 {
		recordMax = wire.DefaultRecordMaxBytes
	}
	return grpc.NewServer(append(opts,
		grpc.Creds(newPeerCredentials(os.Getppid())),
		grpc.ForceServerCodecV2(wire.NewCodec()),
		grpc.MaxRecvMsgSize(min(recordMax+wire.MessageOverhead, math.MaxInt32)),
		grpc.InitialWindowSize(wire.WindowBytes),
		grpc.InitialConnWindowSize(wire.WindowBytes),
		grpc.ReadBufferSize(wire.BufferBytes),
		grpc.WriteBufferSize(wire.BufferBytes),
	)...)
}

// grpcPlugin registers the service with go-plugin.
type grpcPlugin struct {
	plugin.NetRPCUnsupportedPlugin
	server *server
}

// GRPCServer registers the service.
func (g *grpcPlugin) GRPCServer(_ *plugin.GRPCBroker, s *grpc.Server) error {
	pb.RegisterPluginServer(s, g.server)
	return nil
}

// GRPCClient is not used on this side.
func (*grpcPlugin) GRPCClient(context.Context, *plugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, fmt.Errorf("serve: not a client")
}

// server answers the worker.
type server struct {
	pb.UnimplementedPluginServer
	plugin sdk.Plugin
	log    *slog.Logger
	tasks  *sync.WaitGroup
}

// connector finds a class by the name it is listed under.
func (s *server) connector(class string) (sdk.Connector, error) {
	for _, c := range s.plugin.Connectors {
		if c.Class == class {
			return c, nil
		}
	}
	return sdk.Connector{}, sdk.Errorf(sdk.NotFound, "plugin.class", "class %q is not in this plugin", class)
}

// inherited returns the descriptor that an environment variable names.
func inherited(env string) *os.File {
	fd, err := strconv.Atoi(os.Getenv(env))
	if err != nil || fd < 3 {
		return nil
	}
	return os.NewFile(uintptr(fd), env)
}

func closeFile(env string) {
	if f := inherited(env); f != nil {
		_ = f.Close() // only a descriptor that nobody needs
	}
}

// newLogger writes JSON lines that the worker reads from the plugin's standard
// error; it is made before go-plugin redirects that.
func newLogger(w io.Writer, level string) *slog.Logger {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		l = slog.LevelInfo
	}
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: l}))
}
