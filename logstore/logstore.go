// Package logstore is the contract of Millrace's log: topics of partitions that
// hold Kafka RecordBatch v2 bytes, writers that append atomic units over many
// partitions, readers of whole batches, and consumer groups whose offsets move
// in the same units.
//
// Two engines fulfil it: logstore/disk, embedded in the worker, and later a
// Kafka-protocol cluster. Nothing above this package knows which one runs.
//
// Everything here takes batches; nothing takes a single record. The bytes of a
// batch are those of Kafka's on-disk format (message format magic 2, see
// https://kafka.apache.org/documentation/#recordbatch); package
// logstore/recordbatch reads and writes them.
package logstore

import (
	"context"
	"io"
)

// Log is one open log. All methods may be called concurrently.
type Log interface {
	Topics
	Groups

	// OpenWriter returns the newest writer of identity and fences every older
	// one: their later Appends fail with ErrFenced. It returns only when the
	// units that older writers of the identity had handed over are either
	// committed or dropped, so offsets read after it returns are final. The new
	// epoch is durable before OpenWriter returns.
	OpenWriter(ctx context.Context, identity string) (Writer, error)

	// OpenReader returns a reader of one partition that starts at offset.
	// Offset may be OffsetEarliest or OffsetLatest. An offset below the
	// partition's start or beyond its end gives ErrOutOfRange, a missing topic
	// or partition ErrNotFound.
	OpenReader(topic string, partition int32, offset int64) (Reader, error)

	// Close commits what was handed over, ends the log's goroutines and
	// releases its files. Writers and readers still open fail with ErrClosed
	// from then on.
	io.Closer
}

// Symbolic start offsets of OpenReader.
const (
	OffsetEarliest int64 = -2 // the first record kept
	OffsetLatest   int64 = -1 // the record appended next
)

// Topics is the part of a Log that knows which topics exist.
type Topics interface {
	// CreateTopic makes a topic durable and returns it. It fails with ErrExists
	// when there is one of that name, whatever its settings, and with
	// ErrInvalid when ValidTopicName or the settings refuse it.
	CreateTopic(ctx context.Context, name string, config TopicConfig) (Topic, error)

	// DeleteTopic removes a topic and its records for good, and the group
	// offsets on it. Readers of it fail with ErrNotFound. A topic created later
	// under the same name has another ID.
	DeleteTopic(ctx context.Context, name string) error

	// Catalog returns the topics as they are now: an immutable snapshot.
	Catalog() *Catalog

	// Bounds returns the offset of the first record kept and the offset that
	// the next record will get, counting only what is durable.
	Bounds(topic string, partition int32) (start, end int64, err error)
}

// Groups is the part of a Log that keeps consumer group offsets. Offsets are
// moved by the units of a Writer; reading them shows what is durable.
type Groups interface {
	// GroupOffsets returns the next offset to read per partition of a group, an
	// empty map for a group that never committed. The map is the caller's.
	GroupOffsets(group string) map[TopicPartition]int64

	// GroupNames returns the names of the groups that hold offsets, sorted.
	GroupNames() []string
}

// TopicPartition names one partition.
type TopicPartition struct {
	Topic     string
	Partition int32
}

// Writer appends units under one identity. Its methods may be called
// concurrently; units commit in the order in which Append accepted them, and so
// do units of different writers on one partition.
type Writer interface {
	// Append hands a unit over. When it returns nil, done is called exactly
	// once, in the order of acceptance, from a goroutine of the engine that must
	// not be blocked: with the result when the unit is durable, or with an error
	// when nothing of it is in the log. When Append itself returns an error,
	// done is not called and nothing of the unit is in the log.
	//
	// Append blocks while the engine's queue is full, until ctx ends. The unit
	// and its bytes belong to the engine until done is called; the engine stamps
	// base offset and leader epoch into the batches' headers.
	//
	// When a unit fails, every later unit of the same writer fails with ErrBehind,
	// whether it was handed over before or after, until the identity is opened
	// anew: a unit is never in the log without those before it.
	//
	// Every batch is checked before it is accepted: whole, of the right checksum,
	// and of a shape that a producer may write (recordbatch.Check). What is wrong
	// with one is in the chain of the error beside ErrInvalid; callers need not
	// check again.
	//
	// Errors: ErrBehind, ErrFenced, ErrNotFound (topic or partition), ErrInvalid (a batch
	// that is refused), ErrFull (no space left; try again),
	// ErrClosed, ErrStorage (the log has stopped).
	Append(ctx context.Context, unit *Unit, done func(Result, error)) error

	// Epoch is the writer's epoch, one more than that of the writer it fenced.
	Epoch() int64

	// Close waits for what was accepted. It does not fence anybody.
	io.Closer
}

// Unit is what commits whole or not at all.
type Unit struct {
	Batches []Batch
	Offsets []GroupOffset
}

// Batch is a run of one or more whole record batches for one partition.
type Batch struct {
	Topic     string
	Partition int32
	Data      []byte
}

// GroupOffset moves one offset of a consumer group: the next offset to read.
// A negative offset forgets the partition.
type GroupOffset struct {
	Group string
	TopicPartition
	Offset int64
}

// Result tells where a unit went: BaseOffsets[i] is the offset of the first
// record of Batches[i].
type Result struct {
	BaseOffsets []int64
}

// Append appends unit by w and waits until it is durable. When ctx ends first
// the outcome is unknown: the unit may still commit.
func Append(ctx context.Context, w Writer, unit *Unit) (Result, error) {
	type outcome struct {
		result Result
		err    error
	}
	done := make(chan outcome, 1)
	if err := w.Append(ctx, unit, func(r Result, err error) { done <- outcome{r, err} }); err != nil {
		return Result{}, err
	}
	select {
	case o := <-done:
		return o.result, o.err
	case <-ctx.Done():
		return Result{}, ctx.Err()
	}
}

// Reader yields the durable batches of one partition in offset order. It is
// used by one goroutine at a time.
type Reader interface {
	// Next returns one or more whole batches, as many as fit into maxBytes but
	// at least one, and moves on. It blocks at the durable end until there is
	// more or ctx ends. The bytes are valid until the next call.
	//
	// The first batch may begin below the offset that was asked for, since
	// batches are handed out whole: skip records below Fetched.From.
	//
	// Errors: ErrOutOfRange when retention has removed the position,
	// ErrNotFound when the topic was deleted, a *CorruptError when the bytes do
	// not match their checksum, ErrClosed.
	Next(ctx context.Context, maxBytes int) (Fetched, error)

	// Position is the offset of the record that Next will begin with.
	Position() int64

	io.Closer
}

// Fetched is a run of batches as a Reader returned it.
type Fetched struct {
	Data []byte // whole record batches, back to back
	From int64  // offset of the first record asked for
	Next int64  // offset after the last record
}
