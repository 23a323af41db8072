// Package runtime is the worker: it keeps configs, statuses and offsets as
// tables over the log, brings up what they ask for, moves batches between the
// plugins' tasks and the log, and tells what it sees.
//
// One goroutine, Worker.Run, decides: it asks runtime/plan for each connector's
// next actions and starts them. Everything that happens (a config that changed,
// a process that died, a timer) only wakes it.
package runtime

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace-io/millrace/logstore"
	"github.com/millrace-io/millrace/plugins/host"
	"github.com/millrace-io/millrace/runtime/plan"
)

// Options are what a worker is made of.
type Options struct {
	Log    logstore.Log
	Finder *host.Finder
	Plugin host.Options // how plugin processes are started
	// ID is the worker's address as statuses show it: host:port.
	ID string
	// Converters are the worker's default converters and their settings, such as
	// "value.converter.schemas.enable".
	Converters map[string]string
	// DrainTimeout is how long a task may take to end in order before it is cut
	// off; 0 means DefaultDrainTimeout.
	DrainTimeout time.Duration
	Logger       *slog.Logger          // nil discards
	Registerer   prometheus.Registerer // nil for none
}

// DefaultDrainTimeout leaves a stop on Kubernetes (30 s) some room.
const DefaultDrainTimeout = 20 * time.Second

// Worker hosts connectors. Its methods may be called concurrently.
type Worker struct {
	o      Options
	log    logstore.Log
	logger *slog.Logger
	pool   *host.Pool
	writer *tableWriter

	configs, status, offsets *table
	schemas                  *schemas

	configMu sync.Mutex // held by whoever changes configs, from reading to writing

	mu         sync.Mutex // guards what follows
	connectors map[string]*connector
	draining   bool
	startups   startups

	kick    chan struct{}
	actions sync.WaitGroup // goroutines that carry out actions
	ready   chan struct{}
}

// startups counts what was started, for the metrics.
type startups struct {
	connectors, connectorFailures, tasks, taskFailures int64
}

// New opens the worker's tables. Call Run to bring the connectors up, also when
// only Close is wanted next.
func New(ctx context.Context, o Options) (*Worker, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.DrainTimeout == 0 {
		o.DrainTimeout = DefaultDrainTimeout
	}
	w := &Worker{
		o: o, log: o.Log, logger: o.Logger, pool: host.NewPool(o.Plugin),
		connectors: make(map[string]*connector),
		kick:       make(chan struct{}, 1), ready: make(chan struct{}),
	}
	if err := w.openTables(ctx); err != nil {
		w.pool.Close()
		return nil, err
	}
	if o.Registerer != nil {
		if err := o.Registerer.Register(&collector{w}); err != nil {
			return nil, fmt.Errorf("register the worker's metrics: %w", err)
		}
	}
	return w, nil
}

func (w *Worker) openTables(ctx context.Context) (err error) {
	if w.writer, err = openTableWriter(ctx, w.log); err != nil {
		return err
	}
	for topic, t := range map[string]**table{configsTopic: &w.configs, statusTopic: &w.status, offsetsTopic: &w.offsets} {
		if *t, err = openTable(ctx, w.log, topic); err != nil {
			return err
		}
	}
	if w.schemas, err = openSchemas(ctx, w.log, w.writer); err != nil {
		return err
	}
	return w.loadConnectors()
}

// Run brings up the connectors and keeps them as their configs say. When ctx
// ends it drains: every task ends in order, with what it has confirmed
// committed. It returns when all its goroutines and processes are gone.
func (w *Worker) Run(ctx context.Context) error {
	close(w.ready)
	// Actions outlive ctx: a drain still needs them.
	act := context.WithoutCancel(ctx)
	done := ctx.Done()
	for {
		wake, quiet := w.step(act)
		if quiet {
			break
		}
		var timer <-chan time.Time
		if !wake.IsZero() {
			timer = time.After(time.Until(wake))
		}
		select {
		case <-w.kick:
		case <-timer:
		case <-done:
			done = nil
			w.mu.Lock()
			w.draining = true
			w.mu.Unlock()
		}
	}
	w.actions.Wait()
	w.pool.Close()
	return w.writer.Close()
}

// step starts what is to be done now. It returns when to look again, and whether
// a drain has come to its end.
func (w *Worker) step(ctx context.Context) (wake time.Time, quiet bool) {
	var changes []entry
	defer func() { w.storeStatus(ctx, changes) }()
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	quiet = w.draining
	for name, c := range w.connectors {
		view := c.plan
		if w.draining {
			view.Target = plan.Stopped
		}
		actions, at := plan.Next(&view, now)
		if !at.IsZero() && (wake.IsZero() || at.Before(wake)) {
			wake = at
		}
		for _, a := range actions {
			if a.Verb == plan.Forget && !w.draining {
				changes = append(changes, w.statusChanges(c)...)
				delete(w.connectors, name)
			}
			w.begin(ctx, c, a)
		}
		quiet = quiet && c.idle()
		changes = append(changes, w.statusChanges(c)...)
	}
	return wake, quiet
}

// wakeUp makes Run look at everything again.
func (w *Worker) wakeUp() {
	select {
	case w.kick <- struct{}{}:
	default:
	}
}

// Ready is closed when the worker has its tables and has begun to bring up
// connectors.
func (w *Worker) Ready() <-chan struct{} { return w.ready }

// Healthy reports whether the deciding goroutine answers before ctx ends.
func (w *Worker) Healthy(ctx context.Context) bool {
	answered := make(chan struct{})
	go func() {
		w.mu.Lock()
		w.mu.Unlock() //nolint:staticcheck // holding the lock once is the question
		close(answered)
	}()
	select {
	case <-answered:
		return true
	case <-ctx.Done():
		return false
	}
}

// ClusterID names this worker's log for good: it is the id of the configs topic.
func (w *Worker) ClusterID() string {
	t, _ := w.log.Catalog().Lookup(configsTopic)
	return t.ID.String()
}
