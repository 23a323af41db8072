package runtime

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/millrace-io/millrace/logstore"
	"github.com/millrace-io/millrace/plugins/host"
	"github.com/millrace-io/millrace/plugins/sdk"
)

// taskEnv is what one start of a task works with; it answers the task's
// questions as host.Services.
type taskEnv struct {
	w       *Worker
	c       *connector
	id      int
	process *host.Process
	class   host.Class
	config  map[string]string
	logger  *slog.Logger
	up      func(pauser) // call it when the task is open

	creations []creation // sources: how topics are made
}

// identity names the writer of a task, so that a newer start fences an older one.
func (e *taskEnv) identity() string {
	return "connector/" + e.c.name + "/" + strconv.Itoa(e.id)
}

// spec is what source and sink tasks have in common.
func (e *taskEnv) spec() host.TaskSpec {
	millis := func(key string, def int64) time.Duration {
		n, err := strconv.ParseInt(strings.TrimSpace(e.config[key]), 10, 64)
		if err != nil {
			n = def
		}
		return time.Duration(n) * time.Millisecond
	}
	return host.TaskSpec{
		Connector: e.c.name, Task: e.id, Class: e.class.Name, Config: e.config,
		Converters:    e.w.converters(e.config),
		Tolerate:      e.config["errors.tolerance"] == "all",
		RetryTimeout:  millis("errors.retry.timeout", 0),
		RetryDelayMax: millis("errors.retry.delay.max.ms", 60_000),
	}
}

// Topic answers how many partitions a topic has, creating it if need be.
func (e *taskEnv) Topic(ctx context.Context, name string) (int32, error) {
	t, err := e.w.ensureTopic(ctx, name, e.creations)
	if err != nil {
		return 0, storeError(err)
	}
	e.w.trackTopic(ctx, e.c.name, name, e.id)
	return t.Config.Partitions, nil
}

// RegisterSchema gives a schema its id.
func (e *taskEnv) RegisterSchema(ctx context.Context, definition []byte) (uint32, error) {
	id, err := e.w.schemas.register(ctx, definition)
	return id, storeError(err)
}

// Schema returns the schema of an id.
func (e *taskEnv) Schema(_ context.Context, id uint32) ([]byte, error) {
	return e.w.schemas.definition(id)
}

// Progress shows a task's long work.
func (e *taskEnv) Progress(p sdk.Progress) {
	e.update(func(t *task) { t.progress = &p })
}

// Condition shows a state of the task under a code; an empty code clears it.
func (e *taskEnv) Condition(code, message string) {
	e.update(func(t *task) { t.condition = Condition{code, message} })
}

// Counted takes the task's totals.
func (e *taskEnv) Counted(n host.Counters) {
	e.update(func(t *task) { t.counters = n })
}

func (e *taskEnv) update(f func(*task)) {
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	if e.id < len(e.c.tasks) {
		f(e.c.tasks[e.id])
	}
}

// storeError gives an error of the log the code by which a task is restarted or
// fails.
func storeError(err error) error {
	var coded *sdk.Error
	switch {
	case err == nil || errors.As(err, &coded):
		return err
	case errors.Is(err, logstore.ErrFull):
		return &sdk.Error{Code: sdk.Unavailable, Reason: "disk.full", Msg: "the log's disk is full; free space or add some, nothing is lost", Err: err}
	case errors.Is(err, logstore.ErrBehind):
		return &sdk.Error{Code: sdk.Unavailable, Reason: "log.behind", Err: err}
	case errors.Is(err, logstore.ErrNotFound):
		return &sdk.Error{Code: sdk.Unavailable, Reason: "topic.missing", Err: err}
	case errors.Is(err, logstore.ErrFenced):
		return &sdk.Error{Code: sdk.Unavailable, Reason: "task.fenced", Err: err}
	case errors.Is(err, logstore.ErrCorrupt):
		return &sdk.Error{Code: sdk.Corrupt, Reason: "log.corrupt", Err: err}
	case errors.Is(err, logstore.ErrInvalid):
		return &sdk.Error{Code: sdk.Invalid, Reason: "log.refused", Err: err}
	}
	return &sdk.Error{Code: sdk.Internal, Err: err}
}

// ConverterKeys are the keys that name a converter; its settings begin with the
// key and a dot.
func ConverterKeys() []string {
	return []string{"key.converter", "value.converter", "header.converter"}
}

// converters returns the converters of a config: a side that names its converter
// has that and its settings, another one the worker's as a whole.
func (w *Worker) converters(config map[string]string) map[string]string {
	resolved := make(map[string]string)
	for _, side := range ConverterKeys() {
		from := w.o.Converters
		if config[side] != "" {
			from = config
		}
		for k, v := range from {
			if k == side || strings.HasPrefix(k, side+".") {
				resolved[k] = v
			}
		}
	}
	return resolved
}

// tasksMax reads tasks.max, 1 when it is absent or wrong: validation has said so.
func tasksMax(config map[string]string) int {
	n, err := strconv.Atoi(strings.TrimSpace(config["tasks.max"]))
	if err != nil {
		return 1
	}
	return max(n, 1)
}

// firstError keeps the first error of a task that did not come from its stream.
// The log's callbacks note it, so its lock is never held while waiting.
type firstError struct {
	mu  sync.Mutex
	err error
}

func (f *firstError) note(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = storeError(err)
	}
}

// ending tells why a task ended whose stream gave err: by the error noted, unless
// that only says that the process is gone, which err says better. It is nil for a
// stream that came to its end in order.
func (f *firstError) ending(err error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil && !errors.Is(f.err, host.ErrProcessGone) {
		return f.err
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// stopInOrder asks a stream to end when ctx does. The function it returns says
// how that went; call it when the stream has ended.
func stopInOrder(ctx context.Context, s interface {
	Stop(ctx context.Context) error
}, limit time.Duration,
) func() error {
	outcome := make(chan error, 1)
	cancelled := context.AfterFunc(ctx, func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
		defer cancel()
		outcome <- s.Stop(ctx)
	})
	return func() error {
		if cancelled() {
			return nil // ctx never ended
		}
		return <-outcome
	}
}
