package server

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/millrace-io/millrace/api"
	"github.com/millrace-io/millrace/plugins/sdk"
)

// The loggers that are always there: the whole tree, and the runtime under the
// name that Kafka Connect's clients know.
const (
	rootLogger    = "root"
	runtimeLogger = "org.apache.kafka.connect"
	// connectorLoggers begins the name of each connector's logger.
	connectorLoggers = "millrace.connector."
)

// levels are Connect's names for levels.
func levelOf(name string) (slog.Level, bool) {
	l, ok := map[string]slog.Level{
		"ALL": -100, "TRACE": -8, "DEBUG": slog.LevelDebug, "INFO": slog.LevelInfo,
		"WARN": slog.LevelWarn, "ERROR": slog.LevelError, "FATAL": 12, "OFF": 100,
	}[name]
	return l, ok
}

// Levels keeps the level of each logger. A logger without one has that of the
// nearest above it; names are separated by dots. Methods may be called
// concurrently.
type Levels struct {
	mu     sync.RWMutex
	levels map[string]api.Logger
}

// NewLevels makes Levels with everything at one level, such as "INFO".
func NewLevels(level string) *Levels {
	return &Levels{levels: map[string]api.Logger{rootLogger: {Level: level}, runtimeLogger: {Level: level}}}
}

// All returns the loggers that have a level.
func (l *Levels) All() map[string]api.Logger {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return maps.Clone(l.levels)
}

// Get returns one logger.
func (l *Levels) Get(name string) (api.Logger, bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if strings.EqualFold(name, rootLogger) {
		name = rootLogger
	}
	v, ok := l.levels[name]
	return v, ok
}

// Set changes the level of a logger and of all below it. It returns the names of
// those whose level really changed, sorted.
func (l *Levels) Set(name, level string) ([]string, error) {
	level = strings.ToUpper(strings.TrimSpace(level))
	if _, ok := levelOf(level); !ok {
		return nil, sdk.Errorf(sdk.NotFound, "logger.level", "invalid log level '%s'; use TRACE, DEBUG, INFO, WARN, ERROR, FATAL, OFF or ALL", level)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if strings.EqualFold(name, rootLogger) {
		name = rootLogger
	}
	if _, ok := l.levels[name]; !ok {
		l.levels[name] = api.Logger{Level: l.effective(name)}
	}
	now := time.Now().UnixMilli()
	changed := []string{}
	for n, v := range l.levels {
		if (name == rootLogger || n == name || strings.HasPrefix(n, name+".")) && v.Level != level {
			l.levels[n] = api.Logger{Level: level, LastModified: &now}
			changed = append(changed, n)
		}
	}
	slices.Sort(changed)
	return changed, nil
}

// effective returns the level that a name has by those above it.
func (l *Levels) effective(name string) string {
	for {
		if v, ok := l.levels[name]; ok {
			return v.Level
		}
		i := strings.LastIndexByte(name, '.')
		if i < 0 {
			return l.levels[rootLogger].Level
		}
		name = name[:i]
	}
}

// Handler returns a handler that lets pass what the levels allow: records with
// the attribute connector belong to that connector's logger, others to the
// runtime's.
func (l *Levels) Handler(next slog.Handler) slog.Handler {
	return &leveled{l: l, name: runtimeLogger, next: next}
}

type leveled struct {
	l    *Levels
	name string
	next slog.Handler
}

// Enabled reports whether a record of the level passes.
func (h *leveled) Enabled(_ context.Context, level slog.Level) bool {
	h.l.mu.RLock()
	defer h.l.mu.RUnlock()
	low, _ := levelOf(h.l.effective(h.name))
	return level >= low
}

// Handle passes a record on.
func (h *leveled) Handle(ctx context.Context, r slog.Record) error { return h.next.Handle(ctx, r) }

// WithAttrs looks for the connector's name.
func (h *leveled) WithAttrs(attrs []slog.Attr) slog.Handler {
	name := h.name
	for _, a := range attrs {
		if a.Key == "connector" {
			name = connectorLoggers + a.Value.String()
		}
	}
	return &leveled{h.l, name, h.next.WithAttrs(attrs)}
}

// WithGroup opens a group.
func (h *leveled) WithGroup(name string) slog.Handler {
	return &leveled{h.l, h.name, h.next.WithGroup(name)}
}
