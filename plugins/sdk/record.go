package sdk

// Record is one record on its way. A source fills it and hands it to
// Batch.Append, which does not keep it: the same Record may be used again.
type Record struct {
	Topic     string
	Partition int32 // a source sets PartitionByKey unless it knows better
	Offset    int64 // position in the log; sinks only
	Timestamp int64 // milliseconds since 1970 UTC, or NoTimestamp
	Key       Data
	Value     Data
	Headers   []Header
}

// PartitionByKey lets the worker's side choose the partition: by murmur2 of the
// key as Kafka's Java client does, round robin per batch without a key.
const PartitionByKey int32 = -1

// NoTimestamp says that a record has no time of its own; a source's record then
// gets the time it was appended.
const NoTimestamp int64 = -1

// Data is a key, a value or a header's value: a Value with the Schema that
// describes it. A nil Schema means schemaless. With Raw set, Value is Bytes as
// stored in the log (or to be stored there), and no converter touches it.
type Data struct {
	Schema *Schema
	Value  Value
	Raw    bool
}

// Header is one header of a record; keys may repeat and order is kept.
type Header struct {
	Key string
	Data
}

// Batch takes what a source reads. It is used by the goroutine that calls Read.
type Batch struct {
	emit     func(*Record) error
	position func(Position) error
	records  int
}

// NewBatch makes a batch that hands on what it is given. It is for plugins/serve
// and tests.
func NewBatch(emit func(*Record) error, position func(Position) error) *Batch {
	return &Batch{emit: emit, position: position}
}

// Append converts and encodes the record at once; r may be used again. It blocks
// while too much is in flight. The error is one of conversion that the config
// does not tolerate, or of a stream that has ended: return it from Read.
func (b *Batch) Append(r *Record) error {
	b.records++
	return b.emit(r)
}

// Position says that everything appended so far, to any topic, lies before this
// position. After a crash the source is opened with it again, and no record
// appended before it comes twice. The maps must not be changed afterwards.
func (b *Batch) Position(p Position) error { return b.position(p) }

// Len is the number of records appended since Reset.
func (b *Batch) Len() int { return b.records }

// Reset makes the batch ready for the next Read. It is for plugins/serve.
func (b *Batch) Reset() { b.records = 0 }
