package runtime

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/millrace-io/millrace/logstore"
	"github.com/millrace-io/millrace/logstore/recordbatch"
)

// The worker's tables: compacted topics of the log, by the names Kafka Connect
// gives them where it has them.
const (
	configsTopic = "connect-configs"
	offsetsTopic = "connect-offsets"
	statusTopic  = "connect-status"
	schemasTopic = "millrace-schemas"
)

// foldBytes is how much of a table's topic is read at a time when it is opened.
const foldBytes = 1 << 20

// entry is one change of a table; a nil value removes the key.
type entry struct {
	key   string
	value []byte
}

// table is a map folded from a compacted topic of one partition: what is in it
// is durable. Its methods may be called concurrently.
type table struct {
	topic string

	mu   sync.RWMutex
	rows map[string][]byte
}

// openTable creates the topic if it is not there and folds it to its end.
func openTable(ctx context.Context, log logstore.Log, topic string) (*table, error) {
	config := logstore.TopicConfig{Partitions: 1, Cleanup: logstore.CleanupCompact, Internal: true}
	if _, err := log.CreateTopic(ctx, topic, config); err != nil && !errors.Is(err, logstore.ErrExists) {
		return nil, fmt.Errorf("create table %q: %w", topic, err)
	}
	t := &table{topic: topic, rows: make(map[string][]byte)}
	_, end, err := log.Bounds(topic, 0)
	if err != nil {
		return nil, fmt.Errorf("open table %q: %w", topic, err)
	}
	r, err := log.OpenReader(topic, 0, logstore.OffsetEarliest)
	if err != nil {
		return nil, fmt.Errorf("open table %q: %w", topic, err)
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	for r.Position() < end {
		got, err := r.Next(ctx, foldBytes)
		if err != nil {
			return nil, fmt.Errorf("read table %q at offset %d: %w", topic, r.Position(), err)
		}
		if err := t.fold(got.Data); err != nil {
			return nil, fmt.Errorf("read table %q before offset %d: %w", topic, got.Next, err)
		}
	}
	return t, err
}

func (t *table) fold(data []byte) error {
	return eachRecord(data, func(r *recordbatch.Record) error {
		if r.Value == nil {
			delete(t.rows, string(r.Key))
		} else {
			t.rows[string(r.Key)] = append([]byte{}, r.Value...)
		}
		return nil
	})
}

// eachRecord calls f for every record of the batches in data. What f gets is
// valid during the call.
func eachRecord(data []byte, f func(*recordbatch.Record) error) error {
	for len(data) > 0 {
		batch, rest, err := recordbatch.Split(data)
		if err != nil {
			return err
		}
		data = rest
		it := recordbatch.Iter(batch)
		var r recordbatch.Record
		for it.Next(&r) {
			if err := f(&r); err != nil {
				return err
			}
		}
		if err := it.Err(); err != nil {
			return err
		}
	}
	return nil
}

// batch encodes changes for a unit. Call apply with the same changes when the
// unit is durable.
func (t *table) batch(changes []entry) (logstore.Batch, error) {
	var b recordbatch.Builder
	b.Reset()
	now := time.Now().UnixMilli()
	for _, c := range changes {
		if err := b.Append(&recordbatch.Record{Timestamp: now, Key: []byte(c.key), Value: c.value}); err != nil {
			return logstore.Batch{}, fmt.Errorf("encode %q for table %q: %w", c.key, t.topic, err)
		}
	}
	return logstore.Batch{Topic: t.topic, Data: b.Bytes()}, nil
}

// apply makes durable changes visible.
func (t *table) apply(changes []entry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range changes {
		if c.value == nil {
			delete(t.rows, c.key)
		} else {
			t.rows[c.key] = c.value
		}
	}
}

// put makes changes durable, then visible. Changes of one writer become visible
// in the order of the log.
func (t *table) put(ctx context.Context, w logstore.Writer, changes ...entry) error {
	b, err := t.batch(changes)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	err = w.Append(ctx, &logstore.Unit{Batches: []logstore.Batch{b}}, func(_ logstore.Result, err error) {
		if err == nil {
			t.apply(changes)
		}
		done <- err
	})
	if err != nil {
		return fmt.Errorf("write table %q: %w", t.topic, err)
	}
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("write table %q: %w", t.topic, err)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// get returns a value, which must not be changed.
func (t *table) get(key string) ([]byte, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	v, ok := t.rows[key]
	return v, ok
}

// snapshot returns a copy of the map.
func (t *table) snapshot() map[string][]byte {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return maps.Clone(t.rows)
}
