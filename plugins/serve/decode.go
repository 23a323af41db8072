package serve

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/millrace-io/millrace/logstore/recordbatch"
	"github.com/millrace-io/millrace/plugins/convert"
	"github.com/millrace-io/millrace/plugins/internal/wire"
	"github.com/millrace-io/millrace/plugins/sdk"
)

const (
	// writeRecords and writeBytes are how much one Write gets: enough to fill a
	// request to most targets, little enough to repeat.
	writeRecords = 2000
	writeBytes   = 1 << 20
	// shownBytes is how much of a message an error prints.
	shownBytes = 200
	// keptHeaders bounds the header memory kept from one Write to the next.
	keptHeaders = 64 << 10
)

// item is the records of one frame for one partition.
type item struct {
	part   wire.Part
	data   []byte
	buffer *[]byte // to be kept for reuse, or nil
}

// decoder turns frames into records. It is used by the task's goroutine.
type decoder struct {
	converters
	door    *door
	board   *board
	retry   backoff
	raw     bool // values are not decoded
	schemas map[uint32]*sdk.Schema
	counts  counters // since they were passed on

	records []sdk.Record
	headers []sdk.Header
	marks   []mark
	bytes   int
	spent   []item // frames whose records are all in records

	cur  *item // the frame being decoded
	mark *mark
	rest []byte // its batches that were not begun
	it   recordbatch.Iterator
	live bool // it has records left
	full bool // nothing more fits in this Write
	rec  recordbatch.Record
}

// reset makes room for the next Write.
func (d *decoder) reset() {
	clear(d.records)
	d.records, d.marks, d.spent = d.records[:0], d.marks[:0], d.spent[:0]
	if cap(d.headers) > keptHeaders {
		d.headers = nil
	}
	clear(d.headers)
	d.headers = d.headers[:0]
	d.bytes, d.full = 0, false
}

// gather decodes frames until enough records for one Write are there, or no
// frame is left. It reports whether anything moved.
func (d *decoder) gather(ctx context.Context, next func() (item, bool)) (bool, error) {
	d.reset()
	if d.cur != nil && !d.board.current(d.mark) {
		d.spent = append(d.spent, *d.cur)
		d.cur, d.mark, d.rest, d.live = nil, nil, nil, false
	}
	for !d.full && len(d.records) < writeRecords && d.bytes < writeBytes {
		if d.cur == nil {
			it, ok := next()
			if !ok {
				break
			}
			d.begin(it)
			continue
		}
		if err := d.step(ctx); err != nil {
			return false, err
		}
	}
	if d.mark != nil {
		d.note()
	}
	return len(d.marks) > 0 || len(d.spent) > 0, nil
}

func (d *decoder) begin(it item) {
	tp := sdk.TopicPartition{Topic: it.part.Topic, Partition: it.part.Partition}
	m := d.board.open(tp, it.part.Generation)
	if m == nil {
		d.spent = append(d.spent, it)
		return
	}
	m.next = max(it.part.From, m.next)
	for i := range d.marks { // a second frame in this Write goes on where the first one ended
		if d.marks[i].part == m.part {
			m.next = max(m.next, d.marks[i].next)
		}
	}
	d.cur, d.mark, d.rest, d.live = &it, m, it.data, false
}

// note keeps how far the frame in hand has come.
func (d *decoder) note() {
	for i := range d.marks {
		if d.marks[i].part == d.mark.part {
			d.marks[i].next, d.marks[i].given = max(d.marks[i].next, d.mark.next), max(d.marks[i].given, d.mark.given)
			return
		}
	}
	d.marks = append(d.marks, *d.mark)
}

// end is reached when the frame in hand is used up, or dropped.
func (d *decoder) end() {
	d.note()
	d.spent = append(d.spent, *d.cur)
	d.cur, d.mark, d.rest, d.live = nil, nil, nil, false
}

// step decodes the next record of the frame in hand, or goes to its next batch.
func (d *decoder) step(ctx context.Context) error {
	if !d.live {
		if len(d.rest) == 0 {
			d.end()
			return nil
		}
		return d.nextBatch()
	}
	if !d.it.Next(&d.rec) {
		if err := d.it.Err(); err != nil {
			return d.corrupt(err)
		}
		info := d.it.Info()
		d.mark.next = max(d.mark.next, info.NextOffset())
		d.live = false
		// The records of a compressed batch lie in the iterator's own memory.
		d.full = info.Codec != recordbatch.CodecNone && len(d.records) > 0
		return nil
	}
	if d.rec.Offset < d.mark.next {
		return nil
	}
	d.bytes += len(d.rec.Key) + len(d.rec.Value)
	d.mark.next = d.rec.Offset + 1
	return d.record(ctx)
}

// nextBatch checks and opens the next batch of the frame in hand.
func (d *decoder) nextBatch() error {
	batch, rest, err := recordbatch.Split(d.rest)
	if err == nil {
		err = recordbatch.VerifyChecksum(batch)
	}
	if err != nil {
		return d.corrupt(err)
	}
	d.rest = rest
	d.it.Reset(batch)
	d.live = true
	return nil
}

func (d *decoder) corrupt(err error) error {
	return sdk.Errorf(sdk.Corrupt, "record.corrupt", "topic %q partition %d: damaged batch at or after offset %d: %w",
		d.mark.tp.Topic, d.mark.tp.Partition, d.mark.next, err)
}

// record converts the record in hand. This is where it is transformed, once
// there are transforms.
func (d *decoder) record(ctx context.Context) error {
	r := sdk.Record{
		Topic: d.mark.tp.Topic, Partition: d.mark.tp.Partition, Offset: d.rec.Offset, Timestamp: d.rec.Timestamp,
	}
	d.counts.read++
	err := d.convert(ctx, &r)
	if err == nil {
		d.mark.given = r.Offset + 1
		d.records = append(d.records, r)
		return nil
	}
	bad, ok := errors.AsType[*conversionError](err)
	if !ok || ctx.Err() != nil {
		return err
	}
	if !d.board.tolerate {
		d.counts.failed++
		return d.unreadable(bad)
	}
	d.board.skip(d.mark.part, r.Offset, failure{bad.side.stage, bad.side.class, bad.err})
	return nil
}

// unreadable is the error of a record that no converter can read.
func (d *decoder) unreadable(bad *conversionError) error {
	message := d.rec.Value
	if bad.side == &d.key {
		message = d.rec.Key
	}
	return sdk.Errorf(sdk.CodeOf(bad.err), "record.conversion",
		"record at topic %q partition %d offset %d: %s: %s; the message begins with %q; set errors.tolerance=all to pass over such records, or correct the converter in the config",
		d.mark.tp.Topic, d.mark.tp.Partition, d.rec.Offset, bad.side.stage, wire.Text(bad.Error()), message[:min(len(message), shownBytes)])
}

// convert fills the record from the one in hand.
func (d *decoder) convert(ctx context.Context, r *sdk.Record) (err error) {
	var keySchema, valueSchema *sdk.Schema
	from := len(d.headers)
	for i := range d.rec.Headers {
		h := &d.rec.Headers[i]
		switch h.Key {
		case keySchemaHeader:
			keySchema, err = d.schema(ctx, &d.key, h.Value)
		case valueSchemaHeader:
			if !d.raw {
				valueSchema, err = d.schema(ctx, &d.value, h.Value)
			}
		default:
			var v sdk.Data
			if v, err = d.header.Decode(h.Value); err != nil {
				err = &conversionError{&d.header, fmt.Errorf("header %q: %w", h.Key, err)}
			}
			d.headers = append(d.headers, sdk.Header{Key: h.Key, Data: v})
		}
		if err != nil {
			d.headers = d.headers[:from]
			return err
		}
	}
	if len(d.headers) > from {
		r.Headers = d.headers[from:len(d.headers):len(d.headers)]
	}
	if r.Key, err = d.key.decode(keySchema, d.rec.Key); err != nil {
		return err
	}
	if d.raw {
		r.Value.Raw = true
		if d.rec.Value != nil {
			r.Value.Value = sdk.Bytes(d.rec.Value)
		}
		return nil
	}
	r.Value, err = d.value.decode(valueSchema, d.rec.Value)
	return err
}

func (s *side) decode(schema *sdk.Schema, b []byte) (d sdk.Data, err error) {
	if schema != nil && s.typed != nil {
		d, err = s.typed.DecodeAs(schema, b)
	} else {
		d, err = s.Decode(b)
	}
	if err != nil {
		return d, &conversionError{s, err}
	}
	return d, nil
}

// schema resolves the id in a header; a converter that reads schemas by itself
// needs none.
func (d *decoder) schema(ctx context.Context, s *side, id []byte) (*sdk.Schema, error) {
	if s.typed == nil {
		return nil, nil
	}
	if len(id) != 4 {
		return nil, &conversionError{s, fmt.Errorf("the schema's id in the header has %d bytes, not 4", len(id))}
	}
	n := binary.BigEndian.Uint32(id)
	if known, ok := d.schemas[n]; ok {
		return known, nil
	}
	var definition []byte
	err := d.retry.do(ctx, d.door, func() (err error) {
		definition, err = d.door.schema(ctx, n)
		return err
	})
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, &conversionError{s, fmt.Errorf("schema %d: %w", n, err)}
	}
	parsed, err := convert.ParseSchema(definition)
	if err != nil {
		return nil, &conversionError{s, fmt.Errorf("schema %d: %w", n, err)}
	}
	if d.schemas == nil || len(d.schemas) >= maxSchemaPointers {
		d.schemas = make(map[uint32]*sdk.Schema)
	}
	d.schemas[n] = parsed
	return parsed, nil
}
