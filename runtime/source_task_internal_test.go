package runtime

import (
	"errors"
	"testing"

	"github.com/millrace-io/millrace/logstore"
	"github.com/millrace-io/millrace/logstore/disk"
	"github.com/millrace-io/millrace/logstore/recordbatch"
	"github.com/millrace-io/millrace/plugins/sdk"
)

// TestABadBatchIsRefusedByItsSender gives a real log batches as a broken plugin
// would, and looks at what the task says of each.
func TestABadBatchIsRefusedByItsSender(t *testing.T) {
	const limit = 64 << 10
	log, err := disk.Open(t.TempDir(), disk.Options{JournalBytes: 1 << 20, MaxBatchBytes: limit})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	if _, err := log.CreateTopic(t.Context(), "t", logstore.TopicConfig{}); err != nil {
		t.Fatal(err)
	}
	batch := func(value []byte, spoil func([]byte)) []byte {
		var b recordbatch.Builder
		b.Reset()
		if err := b.Append(&recordbatch.Record{Value: value}); err != nil {
			t.Fatal(err)
		}
		data := append([]byte{}, b.Bytes()...)
		spoil(data)
		return data
	}
	small := []byte("value")
	cases := map[string][]byte{
		"a flipped bit":   batch(small, func(b []byte) { b[len(b)-1] ^= 1 }),
		"an older format": batch(small, func(b []byte) { b[16] = 1 }),
		"a producer's id": batch(small, func(b []byte) { b[50] = 0 }),
		"cut short":       batch(small, func([]byte) {})[:40],
		"too large":       batch(make([]byte, limit), func([]byte) {}),
		"empty":           {},
	}
	for what, data := range cases {
		w, err := log.OpenWriter(t.Context(), "connector/c/0")
		if err != nil {
			t.Fatal(err)
		}
		err = w.Append(t.Context(), &logstore.Unit{Batches: []logstore.Batch{{Topic: "t", Data: data}}}, func(logstore.Result, error) {
			t.Errorf("%s: the log took it", what)
		})
		err = storeError(refusedBatch(err))
		if sdk.CodeOf(err) != sdk.Corrupt || sdk.ReasonOf(err) != "plugin.bad_batch" || !errors.Is(err, logstore.ErrInvalid) {
			t.Errorf("%s: %v, want plugin.bad_batch", what, err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
