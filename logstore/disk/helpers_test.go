package disk_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/millrace-io/millrace/logstore"
	"github.com/millrace-io/millrace/logstore/disk"
	"github.com/millrace-io/millrace/logstore/recordbatch"
)

// small are options under which everything happens early.
func small() disk.Options {
	return disk.Options{
		JournalBytes: 256 << 10, SegmentBytes: 32 << 10, BypassBytes: 8 << 10, TailBytes: 16 << 10,
		TailsBytes: 64 << 10, ReserveBytes: -1, MaintainEvery: -1,
	}
}

func open(t testing.TB, dir string, o disk.Options) *disk.Log {
	t.Helper()
	l, err := disk.Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func closeLog(t testing.TB, l *disk.Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func create(t testing.TB, l *disk.Log, name string, config logstore.TopicConfig) logstore.Topic {
	t.Helper()
	topic, err := l.CreateTopic(t.Context(), name, config)
	if err != nil {
		t.Fatal(err)
	}
	return topic
}

func writerOf(t testing.TB, l *disk.Log, identity string) logstore.Writer {
	t.Helper()
	w, err := l.OpenWriter(t.Context(), identity)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// batchOf builds one batch of records with these values; "k=v" has a key, and
// "k=" is a deletion.
func batchOf(t testing.TB, values ...string) []byte {
	t.Helper()
	var b recordbatch.Builder
	b.Reset()
	for _, v := range values {
		r := recordbatch.Record{Timestamp: 1790000000000, Value: []byte(v)}
		if key, value, ok := bytes.Cut([]byte(v), []byte("=")); ok {
			r.Key, r.Value = key, value
			if len(value) == 0 {
				r.Value = nil
			}
		}
		if err := b.Append(&r); err != nil {
			t.Fatal(err)
		}
	}
	return bytes.Clone(b.Bytes())
}

func to(topic string, partition int32, data []byte) logstore.Batch {
	return logstore.Batch{Topic: topic, Partition: partition, Data: data}
}

func appendUnit(t testing.TB, w logstore.Writer, unit *logstore.Unit) logstore.Result {
	t.Helper()
	r, err := logstore.Append(t.Context(), w, unit)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func appendTo(t testing.TB, w logstore.Writer, topic string, partition int32, values ...string) int64 {
	t.Helper()
	r := appendUnit(t, w, &logstore.Unit{Batches: []logstore.Batch{to(topic, partition, batchOf(t, values...))}})
	return r.BaseOffsets[0]
}

// contents reads a partition from an offset to its end and returns the records
// as "offset:value".
func contents(t testing.TB, l *disk.Log, topic string, partition int32, from int64) []string {
	t.Helper()
	all, err := readAll(l, topic, partition, from)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func readAll(l *disk.Log, topic string, partition int32, from int64) ([]string, error) {
	_, end, err := l.Bounds(topic, partition)
	if err != nil {
		return nil, err
	}
	r, err := l.OpenReader(topic, partition, from)
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	var all []string
	for r.Position() < end {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		got, err := r.Next(ctx, 64<<10)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			return all, fmt.Errorf("nothing to read at %d of %d", r.Position(), end)
		}
		if err != nil {
			return all, err
		}
		values, err := decode(got.Data, got.From)
		if err != nil {
			return all, err
		}
		all = append(all, values...)
	}
	return all, nil
}

func decode(data []byte, from int64) ([]string, error) {
	var all []string
	for len(data) > 0 {
		batch, rest, err := recordbatch.Split(data)
		if err != nil {
			return all, err
		}
		it := recordbatch.Iter(batch)
		var r recordbatch.Record
		for it.Next(&r) {
			if r.Offset < from {
				continue
			}
			v := string(r.Value)
			if r.Key != nil {
				v = string(r.Key) + "=" + v
			}
			all = append(all, fmt.Sprintf("%d:%s", r.Offset, v))
		}
		if it.Err() != nil {
			return all, it.Err()
		}
		data = rest
	}
	return all, nil
}

// oneRecord builds a batch of one record.
func oneRecord(value string) []byte {
	var b recordbatch.Builder
	b.Reset()
	if err := b.Append(&recordbatch.Record{Timestamp: 1790000000000, Value: []byte(value)}); err != nil {
		panic(err)
	}
	return b.Bytes()
}
