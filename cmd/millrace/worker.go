package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/oklog/run"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"

	"github.com/millrace-io/millrace/api/server"
	"github.com/millrace-io/millrace/logstore"
	"github.com/millrace-io/millrace/logstore/disk"
	"github.com/millrace-io/millrace/plugins/host"
	"github.com/millrace-io/millrace/runtime"
)

func workerCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "worker", Short: "Run a worker: its log, its connectors and the REST API", Args: noArgs,
		Long: `Run a worker until SIGTERM or SIGINT: then readiness goes off, tasks end in
order, and what they have confirmed is committed. A second signal ends at once.

Each flag can also be given in the environment, as MILLRACE_DATA_DIR and so on.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := loadSettings(cmd.Flags())
			if err != nil {
				return err
			}
			go exitOnSecondSignal()
			w, err := openWorker(cmd.Context(), s)
			if err != nil {
				return err
			}
			return w.run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.String("data-dir", "", "directory of the log (default ./millrace-data)")
	f.String("listen", "", "address of the REST API (default 127.0.0.1:8083)")
	f.String("plugin-path", "", "more directories with plugins, separated by commas")
	f.String("config", "", "config file, in Kafka Connect's properties form or JSON")
	return cmd
}

// exitOnSecondSignal ends the process at once when a signal comes twice.
func exitOnSecondSignal() {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	<-signals
	<-signals
	os.Exit(exitKilled)
}

// batchOverhead is what a batch with the largest record needs beyond it.
const batchOverhead = 1 << 20

// worker is everything one worker process consists of.
type worker struct {
	logger   *slog.Logger
	log      *disk.Log
	runtime  *runtime.Worker
	listener net.Listener
	http     *http.Server
	finder   *host.Finder
	address  string // of the REST API, as a URL
	failed   chan error
}

// openWorker opens the log, then the listener. Nothing is served before run.
func openWorker(ctx context.Context, s *settings) (_ *worker, err error) {
	refuse := func(err error) (*worker, error) { return nil, &codedError{exitRefused, err} }
	addr, err := s.address()
	if err != nil {
		return refuse(err)
	}
	token, tlsConfig, err := s.secure(addr)
	if err != nil {
		return refuse(err)
	}
	levels := server.NewLevels(s.logLevel)
	w := &worker{logger: slog.New(levels.Handler(logHandler(s.logFormat))), failed: make(chan error, 1)}
	for _, k := range s.unknown {
		w.logger.Warn("unknown key in the worker's config", "key", k)
	}
	if w.listener, err = net.Listen("tcp", addr); err != nil { //nolint:noctx // one listener for the life of the process
		return refuse(fmt.Errorf("listen on %s: %w; choose another by --listen", addr, err))
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.close())
		}
	}()
	w.address = "http://" + w.listener.Addr().String()
	if tlsConfig != nil {
		w.address = "https://" + w.listener.Addr().String()
		w.listener = tls.NewListener(w.listener, tlsConfig)
	}
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	w.log, err = disk.Open(s.dataDir, disk.Options{
		Logger: w.logger, Registerer: metrics, JournalBytes: int64(s.journalMiB) << 20, MaxBatchBytes: host.DefaultRecordMaxBytes + batchOverhead,
		OnStorageError: func(err error) { w.failed <- err },
	})
	if err != nil {
		w.log = nil
		return refuse(err)
	}
	if err = w.assemble(ctx, s, parts{levels, metrics, token}); err != nil {
		return nil, err
	}
	return w, nil
}

// parts are what assemble passes on.
type parts struct {
	levels  *server.Levels
	metrics *prometheus.Registry
	token   string
}

// assemble builds the worker and its API over the open log.
func (w *worker) assemble(ctx context.Context, s *settings, p parts) error {
	dirs, err := s.pluginDirs()
	if err != nil {
		return err
	}
	plugin := host.Options{Log: w.logger, RunDir: filepath.Join(s.dataDir, "run"), Env: pluginEnvironment()}
	w.finder = host.NewFinder(dirs, filepath.Join(s.dataDir, "plugins"), plugin)
	w.runtime, err = runtime.New(ctx, runtime.Options{
		Log: w.log, Finder: w.finder, Plugin: plugin, ID: w.listener.Addr().String(),
		Converters: s.converters, DrainTimeout: s.drain, Logger: w.logger, Registerer: p.metrics,
	})
	if err != nil {
		return err
	}
	w.http = server.New(server.Options{
		Worker: w.runtime, Version: version, ClusterID: w.runtime.ClusterID(), Levels: p.levels, Token: p.token, Gatherer: p.metrics, Logger: w.logger,
	}).HTTP()
	return nil
}

// pluginEnvironment is the whole environment of plugin processes: what TLS, time
// zones and cloud credentials are found by.
func pluginEnvironment() []string {
	var env []string
	for _, name := range []string{
		"PATH", "HOME", "TZ", "LANG", "SSL_CERT_FILE", "SSL_CERT_DIR", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
		"AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE",
		"AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
	} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// drainHTTP is how long requests under way may take when the worker stops.
const drainHTTP = 2 * time.Second

// run serves until ctx ends, then drains.
func (w *worker) run(ctx context.Context) error {
	var g run.Group
	signalled, stop := context.WithCancel(ctx)
	g.Add(func() error {
		select {
		case <-signalled.Done():
			w.logger.Info("stopping: tasks end in order")
			return nil
		case err := <-w.failed:
			return &codedError{exitStorage, err}
		}
	}, func(error) { stop() })
	working, drain := context.WithCancel(context.WithoutCancel(ctx))
	g.Add(func() error { return w.runtime.Run(working) }, func(error) { drain() })
	scanning, stopScan := context.WithCancel(context.WithoutCancel(ctx))
	g.Add(func() error {
		if err := w.finder.Scan(scanning); err != nil && scanning.Err() == nil {
			w.logger.Error("plugins are not found", "err", err)
		}
		for _, err := range w.finder.Broken() {
			w.logger.Error("plugin is skipped", "err", err)
		}
		<-scanning.Done()
		return nil
	}, func(error) { stopScan() })
	g.Add(func() error {
		if err := w.http.Serve(w.listener); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	}, func(error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainHTTP)
		defer cancel()
		if err := w.http.Shutdown(ctx); err != nil {
			w.logger.Debug("requests were cut off", "err", err)
		}
	})
	w.logger.Info("worker is ready", "url", w.address, "version", version)
	err := g.Run()
	return errors.Join(err, w.close())
}

// close releases what openWorker took.
func (w *worker) close() error {
	var err error
	if w.log != nil {
		err = w.log.Close()
		if errors.Is(err, logstore.ErrStorage) {
			err = nil // said already
		}
	}
	if cerr := w.listener.Close(); cerr != nil && !errors.Is(cerr, net.ErrClosed) {
		err = errors.Join(err, cerr)
	}
	return err
}

func logHandler(format string) slog.Handler {
	o := &slog.HandlerOptions{Level: slog.Level(-100)}
	if format == "json" {
		return slog.NewJSONHandler(os.Stderr, o)
	}
	return slog.NewTextHandler(os.Stderr, o)
}
