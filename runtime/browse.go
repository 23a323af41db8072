package runtime

import (
	"context"
	"errors"

	"github.com/millrace-io/millrace/logstore"
	"github.com/millrace-io/millrace/logstore/recordbatch"
	"github.com/millrace-io/millrace/plugins/sdk"
)

// TopicDetail is a topic with what its partitions hold.
type TopicDetail struct {
	logstore.Topic
	Partitions []PartitionDetail
}

// PartitionDetail is the range of offsets that a partition holds: Start is the
// first, End the one the next record will get.
type PartitionDetail struct{ Start, End int64 }

// Topics returns all topics, sorted by name.
func (w *Worker) Topics() []TopicDetail {
	all := w.log.Catalog().All()
	details := make([]TopicDetail, 0, len(all))
	for _, t := range all {
		d := TopicDetail{Topic: t}
		for n := range t.Config.Partitions {
			start, end, err := w.log.Bounds(t.Name, n)
			if err != nil {
				break // deleted meanwhile, or damaged: shown without
			}
			d.Partitions = append(d.Partitions, PartitionDetail{start, end})
		}
		details = append(details, d)
	}
	return details
}

// Symbolic offsets of a Spot.
const (
	Earliest = logstore.OffsetEarliest
	Latest   = logstore.OffsetLatest
)

// Spot is a place in the log to read from.
type Spot struct {
	Topic     string
	Partition int32
	Offset    int64 // or Earliest, Latest
}

// RecordView is a record as it is stored; its bytes are valid while it is shown.
type RecordView = recordbatch.Record

// Records shows the records from a spot on, at most limit, and waits for more
// until ctx ends. It returns the offset to go on from.
func (w *Worker) Records(ctx context.Context, from Spot, limit int, show func(RecordView)) (next int64, err error) {
	r, err := w.log.OpenReader(from.Topic, from.Partition, from.Offset)
	if errors.Is(err, logstore.ErrNotFound) {
		return 0, sdk.Errorf(sdk.NotFound, "topic.not_found", "topic %q has no partition %d", from.Topic, from.Partition)
	}
	if errors.Is(err, logstore.ErrOutOfRange) {
		return 0, sdk.Errorf(sdk.Invalid, "topic.offset_out_of_range", "topic %q partition %d does not hold offset %d", from.Topic, from.Partition, from.Offset)
	}
	if err != nil {
		return 0, storeError(err)
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	next = r.Position()
	for limit > 0 {
		got, err := r.Next(ctx, fetchBytes)
		if ctx.Err() != nil {
			return next, nil
		}
		if err != nil {
			return next, storeError(err)
		}
		err = eachRecord(got.Data, func(rec *recordbatch.Record) error {
			if rec.Offset >= next && limit > 0 {
				limit--
				next = rec.Offset + 1
				show(*rec)
			}
			return nil
		})
		if err != nil {
			return next, storeError(err)
		}
	}
	return next, nil
}
