// Package host is the worker's side of the plugin boundary: it finds plugin
// binaries, starts them as processes of their own, watches and ends them, and
// carries batches of records between the worker and the tasks inside them.
//
// A Finder knows which classes there are. A Pool answers questions about a class
// with processes that live for a moment (Validate, PlanTasks, AlterOffsets). A
// connector that runs has one Process, and each of its tasks is one stream in
// it: a SourceStream or a SinkStream.
//
// The worker never looks into a record here: data is whole RecordBatches.
package host

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/millrace-io/millrace/plugins/sdk"
)

// ErrProcessGone is wrapped by the errors of streams and calls whose plugin
// process has ended; the text says how it ended and what it said last.
var ErrProcessGone = errors.New("the plugin process is gone")

// ErrAborted is wrapped by the errors of a stream that the worker ended itself,
// by Abort, or because the deadline given to Stop passed.
var ErrAborted = errors.New("the task's stream was ended")

// Class is one thing a plugin binary offers.
type Class struct {
	Name    string   // as listed by REST
	Aliases []string // other names that Lookup accepts
	// Type is "source", "sink", "converter", "header_converter",
	// "transformation" or "predicate".
	Type     string
	Version  string
	Doc      string
	Keys     []sdk.Key
	Path     string // the binary
	Checksum string // its SHA-256 in hexadecimal when it was asked
}

// Options are what a worker decides for all its plugin processes.
type Options struct {
	// Log gets what the plugins log and what happens to them; nil discards.
	Log *slog.Logger
	// RunDir is a directory for sockets, made with mode 0700 when it is not
	// there. Empty, or too long for a socket's path, means the system's
	// temporary directory; each process gets a private directory of its own in
	// any case.
	RunDir string
	// RecordMaxBytes bounds one record, encoded; 0 means DefaultRecordMaxBytes.
	RecordMaxBytes int
	// Env is the whole environment of the plugins, as NAME=VALUE.
	Env []string
	// StartTimeout is how long a plugin may take to answer; 0 means 10 seconds.
	StartTimeout time.Duration
}

// TaskSpec is what a source and a sink task have in common.
type TaskSpec struct {
	Connector string
	Task      int
	Class     string
	Config    map[string]string // the task's whole config, secrets resolved
	// Converters holds the converters the task uses and their settings, resolved
	// by the worker: "key.converter", "key.converter.schemas.enable", and the
	// same for "value." and "header.".
	Converters map[string]string
	Tolerate   bool // errors.tolerance=all
	// RecordMaxBytes bounds one record; 0 means the process's Options.
	RecordMaxBytes int
	RetryTimeout   time.Duration // errors.retry.timeout; negative means no end
	RetryDelayMax  time.Duration // errors.retry.delay.max.ms
}

// SourceSpec starts a source task.
type SourceSpec struct {
	TaskSpec
	Offsets []sdk.Position // the connector's stored positions
}

// SinkSpec starts a sink task.
type SinkSpec struct {
	TaskSpec
	Partitions []sdk.AssignedPartition
}

// Counters are totals since the task was opened.
type Counters struct {
	Read     int64 // by the source, or handed to the sink's process
	Written  int64 // converted and sent by a source, taken by a sink's Write
	Failed   int64 // records that could not be converted or were reported
	Skipped  int64 // failed records that were passed over
	Retries  int64 // calls of Read, Write or a converter made again
	Filtered int64 // dropped by a transform
}

// Services answers what a task asks of the worker. The calls of one task come
// from goroutines of its stream and may run beside each other.
type Services interface {
	// Topic returns how many partitions a topic has, after creating it when the
	// connector's config or the worker's says so.
	Topic(ctx context.Context, name string) (partitions int32, err error)
	// RegisterSchema returns the id of a schema in Connect's JSON form, durable
	// when it returns. The same definition gives the same id.
	RegisterSchema(ctx context.Context, definition []byte) (uint32, error)
	// Schema returns the definition of an id.
	Schema(ctx context.Context, id uint32) ([]byte, error)
	// Progress replaces what is shown of a task's long work.
	Progress(p sdk.Progress)
	// Condition replaces the task's state that is neither failure nor health;
	// an empty code clears it.
	Condition(code, message string)
	// Counted replaces the task's totals.
	Counted(c Counters)
}

// Validation is the outcome of Process.Validate.
type Validation struct {
	// Report has the plugin's keys in their order, then those of the converters
	// that the config names, with their prefix.
	Report sdk.Report
	// Problems are what the connector's own Validate found; it is asked only
	// when no single key is wrong.
	Problems sdk.FieldErrors
}

// SourceBatch is the records of one unit for one partition.
type SourceBatch struct {
	Topic     string
	Partition int32
	// Data is one or more whole record batches, one after the other, not yet
	// checked. It may be changed in place until Release.
	Data []byte
}

// SourceUnit is what a source read up to a position: all of it goes into the log
// at once, or nothing.
type SourceUnit struct {
	Seq       uint64 // ascends; give it to Ack
	Batches   []SourceBatch
	Positions []sdk.Position // newest per source partition; a nil Offset removes
	Records   int
	Bytes     int // of all batches

	release func()
}

// Release gives the unit's memory back to the stream, and with it the source's
// right to send as much again. Batches must not be used afterwards. Call it
// once, before or after Ack.
func (u *SourceUnit) Release() {
	if u.release != nil {
		u.release()
		u.release = nil
	}
}

// DeadLetter names one record that its sink task has given up on.
type DeadLetter struct {
	sdk.TopicPartition
	Offset     int64
	Stage      string // KEY_CONVERTER, VALUE_CONVERTER, HEADER_CONVERTER, TRANSFORMATION or TASK_PUT
	Class      string // what was executing
	ErrorClass string
	Message    string
}

// SinkEvent is what a sink task says; any of its fields may be empty.
type SinkEvent struct {
	// Commit has per partition the next offset to read after a restart. It holds
	// only what the target has confirmed, and never goes back.
	Commit map[sdk.TopicPartition]int64
	// Letters belong to the records below Commit that were given up, or to
	// records that somebody waits for; each comes once.
	Letters []DeadLetter
	// LetterID is set when there are Letters; SettleLetters wants it.
	LetterID uint64
	// Rewind has per partition the offset to send from again: read there, call
	// Restarted, then Send.
	Rewind map[sdk.TopicPartition]int64
	// Pause and Resume name partitions whose flow stops and goes on. A partition
	// that is resumed is also in Rewind when records of it were on their way.
	Pause, Resume []sdk.TopicPartition
}
