package runtime

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/millrace-io/millrace/logstore"
)

// tableWriter is the worker's own writer, for its tables. A writer that had a
// unit refused takes no more; table changes are independent of each other, so
// this one is opened anew then. Its methods may be called concurrently.
type tableWriter struct {
	log logstore.Log

	mu     sync.Mutex
	writer logstore.Writer
}

// writerIdentity is the identity of the worker's own writer.
const writerIdentity = "worker"

func openTableWriter(ctx context.Context, log logstore.Log) (*tableWriter, error) {
	w, err := log.OpenWriter(ctx, writerIdentity)
	if err != nil {
		return nil, fmt.Errorf("open the worker's writer: %w", err)
	}
	return &tableWriter{log: log, writer: w}, nil
}

// Append hands a unit over, as logstore.Writer says.
func (t *tableWriter) Append(ctx context.Context, unit *logstore.Unit, done func(logstore.Result, error)) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	err := t.writer.Append(ctx, unit, done)
	if !errors.Is(err, logstore.ErrBehind) {
		return err
	}
	w, err := t.log.OpenWriter(ctx, writerIdentity)
	if err != nil {
		return fmt.Errorf("open the worker's writer anew: %w", err)
	}
	t.writer = w
	return t.writer.Append(ctx, unit, done)
}

// Epoch is the epoch of the writer in use.
func (t *tableWriter) Epoch() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.writer.Epoch()
}

// Close waits for what was accepted.
func (t *tableWriter) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.writer.Close()
}
