// Package sdk is what a connector author writes against: sources and sinks,
// records with typed values, one definition per config key, and errors with
// codes. It imports the standard library only.
//
// A source has Define, Open, Read and Close; a sink has Define, Open, Write and
// Close. Everything else is an optional one-method interface that the plugin
// side of the process boundary (package plugins/serve) finds by type assertion:
//
//	Validator        checks that need several keys or a connection
//	TaskPlanner      splits the work over tasks
//	OffsetAlterer    accepts or refuses offsets set by an operator
//	Acknowledger     a source that tells its system what is durable
//	Flusher          a sink that buffers and can flush
//	Committer        a sink that knows per partition what its target holds
//	PartitionOpener  a sink that follows which partitions it has
//	RawSink          a sink that takes the stored bytes undecoded
//
// All methods of one task run on one goroutine, except Acknowledged, which comes
// on its own, also while Read blocks. A panic is contained: it fails the task
// that caused it, not the process.
package sdk

import (
	"context"
	"log/slog"
	"time"
)

// Plugin is what one binary offers; pass it to serve.Main.
type Plugin struct {
	Version    string // such as "0.1.0"
	Connectors []Connector
}

// Connector is one connector class of a plugin. Exactly one of Source and Sink
// is set; each call makes a fresh, unopened task.
type Connector struct {
	// Class is the name the class is listed under; where users have configs
	// with a Java class name, it is that one.
	Class string
	// Aliases are other accepted names. The simple name of Class and the simple
	// name without "Connector" need not be listed.
	Aliases []string
	Doc     string // one sentence for `plugins describe`
	Source  func() Source
	Sink    func() Sink
}

// Source reads from a system outside. See the package comment for goroutines.
type Source interface {
	// Define declares the config keys and binds them to the source's fields. It
	// is called before Open, and for documentation on a source never opened.
	Define(d *Def)

	// Open connects. The fields bound by Define are filled. It may return an
	// Error; its code decides whether the task fails or is tried again.
	Open(ctx context.Context, t *SourceTask) error

	// Read appends what is new to out and returns; it blocks while there is
	// nothing, until ctx ends, and then returns ctx.Err(). It should call
	// out.Position before it returns: only a position moves the stored offset.
	// Records of one Read are written to the log in one atomic unit up to each
	// position. An error fails the task unless it is a Retry.
	Read(ctx context.Context, out *Batch) error

	// Close releases what Open took. It is called once, also after a failed
	// Open, and never beside Read.
	Close(ctx context.Context) error
}

// Sink writes to a system outside. See the package comment for goroutines.
type Sink interface {
	// Define declares the config keys, as for a Source.
	Define(d *Def)

	// Open connects.
	Open(ctx context.Context, t *SinkTask) error

	// Write takes records in offset order per partition. The slice and what it
	// holds are valid until Write returns. When a sink is neither Flusher nor
	// Committer, a nil return says that the records are stored for good. An
	// error fails the task; a Retry makes the same records come again after a
	// pause. A record that can never succeed is given to SinkTask.Report.
	//
	// Write is also called with no records, at least once a second while nothing
	// comes, so that a sink can act on the clock.
	Write(ctx context.Context, records []Record) error

	// Close releases what Open took; what was not flushed comes again.
	Close(ctx context.Context) error
}

// Validator is implemented by a source or sink that checks more than single
// keys: combinations, connections, rights. The fields bound by Define are
// filled. Return FieldErrors to name keys.
type Validator interface {
	Validate(ctx context.Context) error
}

// TaskPlanner is implemented by a source or sink that decides on its task
// configs. It returns at most max maps; each is the whole config of one task.
// Without it a source gets one task and a sink as many as tasks.max says, each
// with the connector's own config.
type TaskPlanner interface {
	PlanTasks(ctx context.Context, config map[string]string, max int) ([]map[string]string, error)
}

// OffsetAlterer is implemented by a source or sink that wants a say before an
// operator's offsets are stored: an error refuses them. A nil Offset removes the
// position. external says that it also changed the offsets kept outside.
type OffsetAlterer interface {
	AlterOffsets(ctx context.Context, offsets []Position) (external bool, err error)
}

// Acknowledger is implemented by a source whose system wants to know what may be
// forgotten. Acknowledged is called on a goroutine of its own, in order, with
// the newest position per source partition that is durable in the log; positions
// in between may be left out. It is called once after Open with the stored
// positions, if there are any.
type Acknowledger interface {
	Acknowledged(ctx context.Context, positions []Position) error
}

// Flusher is implemented by a sink that buffers: records given to Write count as
// stored when Flush has returned nil.
type Flusher interface {
	Flush(ctx context.Context) error
}

// Committer is implemented by a sink that knows what its target holds. Committable
// returns per partition the offset P such that every record below P is stored,
// skipped on purpose, or reported. A partition without progress is left out.
// It is called after Write, often; it must be cheap.
type Committer interface {
	Committable(ctx context.Context) (map[TopicPartition]int64, error)
}

// PartitionOpener is implemented by a sink that keeps state per partition. Both
// are called between Writes, OpenPartitions also before the first one.
// ClosePartitions is not called when the task ends: Close is.
type PartitionOpener interface {
	OpenPartitions(ctx context.Context, partitions []AssignedPartition) error
	ClosePartitions(ctx context.Context, partitions []TopicPartition) error
}

// RawSink is implemented by a sink that can take values as they are stored. When
// RawValues returns true and no transform stands between, Record.Value holds the
// stored bytes with Raw set (a null value is Null), and is not decoded. It is
// asked after Open.
type RawSink interface {
	RawValues() bool
}

// TopicPartition names one partition.
type TopicPartition struct {
	Topic     string
	Partition int32
}

// AssignedPartition is a partition given to a sink task.
type AssignedPartition struct {
	TopicPartition
	TopicID string // the topic's incarnation: differs after delete and create
	Offset  int64  // where reading begins
}

// Position is a place in a source: which part of it, and how far. Both are
// objects of JSON values (string, bool, int64, float64, nil), stored as Connect
// stores them. A nil Offset means: from the beginning.
type Position struct {
	Partition map[string]any `json:"partition"`
	Offset    map[string]any `json:"offset"`
}

// Task is what a source and a sink task have in common.
type Task struct {
	Connector string            // name of the connector
	ID        int               // number of the task, from 0
	Config    map[string]string // the task's whole config, secrets resolved
	Log       *slog.Logger      // goes to the worker's log with connector and task
	Host      TaskHost          // answers the methods below; set by plugins/serve
}

// TaskHost is the task's door to the worker. Authors use the methods of Task,
// SourceTask and SinkTask instead.
type TaskHost interface {
	Progress(p Progress)
	Condition(code, message string)
}

// Progress describes long work, such as a snapshot; the worker shows it in the
// status with rate and time left. Counts are totals so far.
type Progress struct {
	Phase     string        `json:"phase"` // "snapshot", "streaming", ...
	Item      string        `json:"item,omitempty"`
	Done      int64         `json:"done"`            // records
	Total     int64         `json:"total,omitempty"` // estimate; 0 means unknown
	ItemsDone int           `json:"items_done,omitempty"`
	Items     int           `json:"items,omitempty"` // tables, files, ...
	Lag       time.Duration `json:"lag_ns,omitempty"`
}

// Progress replaces what is shown for this task. It is cheap to call often.
func (t *Task) Progress(p Progress) { t.Host.Progress(p) }

// Condition shows a state that is neither failure nor health, such as a target
// that is being retried, under a stable dotted code. An empty code clears it.
func (t *Task) Condition(code, message string) { t.Host.Condition(code, message) }

// SourceTask is what the worker gives a source at Open.
type SourceTask struct {
	Task
	// Offsets are the stored positions of this connector, one per source
	// partition, in no order.
	Offsets []Position
}

// Offset returns the stored offset of one source partition, nil when there is none.
func (t *SourceTask) Offset(partition map[string]any) map[string]any {
	for _, p := range t.Offsets {
		if samePartition(p.Partition, partition) {
			return p.Offset
		}
	}
	return nil
}

// SinkTask is what the worker gives a sink at Open.
type SinkTask struct {
	Task
	Sink SinkHost // answers the methods below; set by plugins/serve
}

// SinkHost is a sink task's door to the worker. Authors use the methods of SinkTask.
type SinkHost interface {
	Rewind(tp TopicPartition, offset int64)
	RetryAfter(d time.Duration)
	Pause(tps ...TopicPartition)
	Resume(tps ...TopicPartition)
	Report(r *Record, err error) (*Receipt, error)
}

// Rewind makes the partition's next record the one at offset; it takes effect
// before the next Write. Offsets committed so far stay.
func (t *SinkTask) Rewind(tp TopicPartition, offset int64) { t.Sink.Rewind(tp, offset) }

// RetryAfter sets how long the worker waits when Write returns a Retry that does
// not say so itself.
func (t *SinkTask) RetryAfter(d time.Duration) { t.Sink.RetryAfter(d) }

// Pause stops the flow of the partitions until Resume. Records already on their
// way are held back on the plugin's side, never lost.
func (t *SinkTask) Pause(tps ...TopicPartition) { t.Sink.Pause(tps...) }

// Resume lets the partitions flow again.
func (t *SinkTask) Resume(tps ...TopicPartition) { t.Sink.Resume(tps...) }

// Report gives up on one record: with errors.tolerance=all it goes to the dead
// letter topic (if there is one) in the same atomic unit that moves the
// partition's offset past it, and Report returns a receipt at once. With "none"
// nothing is written and Report returns an error, which Write should return.
func (t *SinkTask) Report(r *Record, err error) (*Receipt, error) { return t.Sink.Report(r, err) }

// Receipt is the answer to a Report.
type Receipt struct {
	done chan struct{}
	err  error
	ask  func()
}

// NewReceipt makes a receipt and the function that settles it, once; ask is
// called when somebody waits. It is for plugins/serve.
func NewReceipt(ask func()) (*Receipt, func(error)) {
	r := &Receipt{done: make(chan struct{}), ask: ask}
	return r, func(err error) {
		r.err = err
		close(r.done)
	}
}

// Wait returns when the dead letter is durable. A sink that keeps its own offsets
// calls it before it stores an offset past the record; then the letter is written
// ahead of the offset and may come twice after a crash. Others need not wait.
func (r *Receipt) Wait(ctx context.Context) error {
	r.ask()
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return ctx.Err()
	}
}
