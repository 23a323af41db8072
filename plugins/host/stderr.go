package host

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/millrace-io/millrace/plugins/internal/wire"
)

// Limits on what a plugin may say on its standard error, so that a plugin that
// floods it costs the worker little CPU and no memory.
const (
	// lineMax bounds one line; the rest of a longer one is dropped. It holds a
	// log line with a full error.
	lineMax = 64 << 10
	// linesBurst and linesPerSecond are how much is logged: a crash with all its
	// goroutines at once, and a chatty plugin all day.
	linesBurst     = 1000
	linesPerSecond = 100
	// attrsMax bounds the attributes taken from one line.
	attrsMax = 64
	// tailLines and tailBytes are what is kept to explain the end of a process.
	tailLines = 20
	tailBytes = 500
)

// transcript turns what a plugin writes into log records, defensively: it is
// whatever the plugin, or an attacker in it, chooses to write.
type transcript struct {
	log *slog.Logger

	mu      sync.Mutex // guards the fields below
	tokens  float64
	filled  time.Time
	dropped int
	tail    []string
	crash   string // the first line of a Go crash
}

func newTranscript(log *slog.Logger) *transcript {
	return &transcript{log: log, tokens: linesBurst, filled: time.Now()}
}

// read takes everything from r, until its end.
func (t *transcript) read(r io.Reader) {
	w := &lineWriter{t: t}
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		_, _ = w.Write(buf[:n]) // never fails
		if err != nil {
			w.end()
			return
		}
	}
}

// lineWriter cuts a stream into lines of bounded length.
type lineWriter struct {
	t    *transcript
	mu   sync.Mutex // guards the fields below
	line []byte
	long bool // the rest of this line is dropped
}

// Write takes a piece of the stream.
func (w *lineWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := len(p)
	for len(p) > 0 {
		piece, rest, whole := bytes.Cut(p, []byte{'\n'})
		if room := lineMax - len(w.line); len(piece) > room {
			piece, w.long = piece[:room], true
		}
		w.line = append(w.line, piece...)
		if whole {
			w.flush()
		}
		p = rest
	}
	return n, nil
}

func (w *lineWriter) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.line) > 0 {
		w.flush()
	}
}

func (w *lineWriter) flush() {
	w.t.line(bytes.TrimRight(w.line, "\r"), w.long)
	w.line, w.long = w.line[:0], false
}

// line handles one line.
func (t *transcript) line(line []byte, cut bool) {
	if len(bytes.TrimSpace(line)) == 0 {
		return
	}
	t.mu.Lock()
	t.remember(line)
	now := time.Now()
	t.tokens = min(linesBurst, t.tokens+linesPerSecond*now.Sub(t.filled).Seconds())
	t.filled = now
	if t.tokens < 1 {
		t.dropped++
		t.mu.Unlock()
		return
	}
	t.tokens--
	dropped := t.dropped
	t.dropped = 0
	t.mu.Unlock()
	ctx := context.Background() //nolint:forbidigo // log records of another process belong to no call
	if dropped > 0 {
		t.log.WarnContext(ctx, "plugin logs too much, lines were dropped", slog.Int("lines", dropped))
	}
	if !cut && t.structured(ctx, line) {
		return
	}
	t.log.WarnContext(ctx, "plugin wrote to standard error", slog.String("line", wire.Text(string(line))), slog.Bool("cut", cut))
}

// remember keeps the line for the explanation of an exit. The caller holds t.mu.
func (t *transcript) remember(line []byte) {
	s := wire.Text(string(line[:min(len(line), tailBytes)]))
	if t.crash == "" && (strings.HasPrefix(s, "panic: ") || strings.HasPrefix(s, "fatal error: ")) {
		t.crash = s
	}
	if len(t.tail) == tailLines {
		t.tail = slices.Delete(t.tail, 0, 1)
	}
	t.tail = append(t.tail, s)
}

// last returns what best explains the end of the process.
func (t *transcript) last() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.crash != "" {
		return t.crash
	}
	const shown = 3
	return strings.Join(t.tail[max(0, len(t.tail)-shown):], "; ")
}

// structured logs a JSON line of the SDK's logger.
func (t *transcript) structured(ctx context.Context, line []byte) bool {
	if line[0] != '{' {
		return false
	}
	var fields map[string]any
	if err := json.Unmarshal(line, &fields); err != nil {
		return false
	}
	msg, isText := fields[slog.MessageKey].(string)
	levelText, hasLevel := fields[slog.LevelKey].(string)
	var level slog.Level
	if !isText || !hasLevel || level.UnmarshalText([]byte(levelText)) != nil {
		return false
	}
	if !t.log.Enabled(ctx, level) {
		return true
	}
	when := time.Now()
	if s, ok := fields[slog.TimeKey].(string); ok {
		if parsed, err := time.Parse(time.RFC3339Nano, s); err == nil {
			when = parsed
		}
	}
	r := slog.NewRecord(when, level, msg, 0)
	for _, own := range []string{slog.MessageKey, slog.LevelKey, slog.TimeKey, wire.LogConnector, wire.LogPlugin} {
		delete(fields, own) // the worker knows better which connector this is
	}
	for i, k := range slices.Sorted(maps.Keys(fields)) {
		if i == attrsMax {
			break
		}
		v := fields[k]
		if f, ok := v.(float64); ok && f == float64(int64(f)) {
			v = int64(f)
		}
		r.AddAttrs(slog.Any(k, v))
	}
	if err := t.log.Handler().Handle(ctx, r); err != nil {
		return false
	}
	return true
}

// explain describes how a process ended.
func (t *transcript) explain(how string) error {
	if said := t.last(); said != "" {
		return fmt.Errorf("%s; it said last: %s", how, said)
	}
	return fmt.Errorf("%s", how)
}
