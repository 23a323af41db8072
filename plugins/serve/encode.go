package serve

import (
	"context"
	"encoding/binary"
	"fmt"
	"strings"
	"time"

	"github.com/millrace-io/millrace/logstore/recordbatch"
	"github.com/millrace-io/millrace/plugins/convert"
	"github.com/millrace-io/millrace/plugins/internal/pb"
	"github.com/millrace-io/millrace/plugins/internal/wire"
	"github.com/millrace-io/millrace/plugins/sdk"
)

// The headers that carry the ids of the schemas that plain JSON does not show.
const (
	keySchemaHeader   = "__millrace.key.schema"
	valueSchemaHeader = "__millrace.value.schema"
)

// maxSchemaPointers bounds the schemas known by their address: a source that
// makes a schema per record must not grow without end.
const maxSchemaPointers = 10_000

// The stages of Connect's dead letter headers.
const (
	stageKey    = "KEY_CONVERTER"
	stageValue  = "VALUE_CONVERTER"
	stageHeader = "HEADER_CONVERTER"
	stagePut    = "TASK_PUT"
)

// defaultConverter is the converter that is used when the worker names none.
const defaultConverter = "org.apache.kafka.connect.json.JsonConverter"

// defaultHeaderConverter is Connect's default.
const defaultHeaderConverter = "org.apache.kafka.connect.storage.SimpleHeaderConverter"

// side is one converter with what is known about it.
type side struct {
	convert.Converter
	class string
	stage string
	typed convert.SchemaDecoder // set when it is plain JSON
}

// converters are those of one task.
type converters struct{ key, value, header side }

func newConverters(open *pb.OpenTask) (converters, error) {
	var c converters
	for i, target := range []*side{&c.key, &c.value, &c.header} {
		s := sides[i]
		config := under(open.GetConverters(), s.key+".")
		class := open.GetConverters()[s.key]
		if class == "" && s.side == convert.Header {
			class = defaultHeaderConverter
		} else if class == "" {
			class, config = defaultConverter, map[string]string{"schemas.enable": "false"}
		}
		conv, err := convert.New(class, s.side, config)
		if err != nil {
			return c, fmt.Errorf("%s: %w", s.key, err)
		}
		target.Converter, target.class = conv, class
		target.stage = []string{stageKey, stageValue, stageHeader}[i]
		if t, ok := conv.(convert.SchemaDecoder); ok && strings.EqualFold(strings.TrimSpace(config["schemas.enable"]), "false") {
			target.typed = t
		}
	}
	return c, nil
}

// encoder turns records into those of a batch. It is used by the goroutine that
// reads.
type encoder struct {
	converters
	door    *door
	retry   backoff
	byAddr  map[*sdk.Schema]uint32
	byText  map[string]uint32
	scratch []byte
	ids     [2][4]byte
	record  recordbatch.Record
}

func newEncoder(c converters, d *door, open *pb.OpenTask) *encoder {
	return &encoder{
		converters: c, door: d, retry: newBackoff(open),
		byAddr: make(map[*sdk.Schema]uint32), byText: make(map[string]uint32),
	}
}

// conversionError says which converter could not handle a record.
type conversionError struct {
	side *side
	err  error
}

func (e *conversionError) Error() string { return e.side.class + ": " + e.err.Error() }

func (e *conversionError) Unwrap() error { return e.err }

// encode converts one record. The result is valid until the next call.
func (e *encoder) encode(ctx context.Context, r *sdk.Record) (*recordbatch.Record, error) {
	out := &e.record
	out.Timestamp = r.Timestamp
	if r.Timestamp == sdk.NoTimestamp {
		out.Timestamp = time.Now().UnixMilli()
	}
	buf, headers := e.scratch[:0], out.Headers[:0]
	var spans [2]span
	for i, s := range [2]*side{&e.key, &e.value} {
		d := r.Key
		if i == 1 {
			d = r.Value
		}
		start := len(buf)
		grown, err := s.Encode(buf, d)
		if err != nil {
			return nil, &conversionError{s, err}
		}
		if grown == nil {
			spans[i].null = true
		} else {
			buf = grown
		}
		spans[i].from, spans[i].to = start, len(buf)
		if s.typed == nil || d.Schema == nil || d.Raw {
			continue
		}
		id, err := e.schemaID(ctx, d.Schema)
		if err != nil {
			return nil, &conversionError{s, err}
		}
		binary.BigEndian.PutUint32(e.ids[i][:], id)
		name := keySchemaHeader
		if i == 1 {
			name = valueSchemaHeader
		}
		headers = append(headers, recordbatch.Header{Key: name, Value: e.ids[i][:]})
	}
	for i := range r.Headers {
		h := &r.Headers[i]
		if h.Key == keySchemaHeader || h.Key == valueSchemaHeader {
			continue // ours to set
		}
		b, err := e.header.Encode(nil, h.Data)
		if err != nil {
			return nil, &conversionError{&e.header, fmt.Errorf("header %q: %w", h.Key, err)}
		}
		headers = append(headers, recordbatch.Header{Key: h.Key, Value: b})
	}
	e.scratch = buf
	if cap(buf) > keptScratch {
		e.scratch = nil
	}
	out.Key, out.Value, out.Headers = spans[0].of(buf), spans[1].of(buf), headers
	return out, nil
}

// keptScratch bounds the buffer kept for conversion after a large record.
const keptScratch = 1 << 20

// span is where a part of a record lies in the scratch buffer, which moves when
// it grows.
type span struct {
	from, to int
	null     bool
}

func (s span) of(b []byte) []byte {
	if s.null {
		return nil
	}
	return b[s.from:s.to:s.to]
}

// schemaID returns the worker's id of a schema.
func (e *encoder) schemaID(ctx context.Context, s *sdk.Schema) (uint32, error) {
	if id, ok := e.byAddr[s]; ok {
		return id, nil
	}
	text := convert.AppendSchema(nil, s)
	id, ok := e.byText[string(text)]
	if !ok {
		err := e.retry.do(ctx, e.door, func() (err error) {
			id, err = e.door.registerSchema(ctx, text)
			return err
		})
		if err != nil {
			return 0, fmt.Errorf("register schema: %w", err)
		}
		if len(e.byText) >= maxSchemaPointers {
			clear(e.byText)
		}
		e.byText[string(text)] = id
	}
	if len(e.byAddr) >= maxSchemaPointers {
		clear(e.byAddr)
	}
	e.byAddr[s] = id
	return id, nil
}

// size is at most how large a batch of this one record is.
func size(r *recordbatch.Record) int {
	const perRecord, perHeader = 40, 10 // lengths, deltas and attributes at their longest
	n := recordbatch.HeaderSize + perRecord + len(r.Key) + len(r.Value)
	for i := range r.Headers {
		n += perHeader + len(r.Headers[i].Key) + len(r.Headers[i].Value)
	}
	return n
}

// tooLarge is the error of a record over the limit.
func tooLarge(topic string, r *recordbatch.Record, limit int) error {
	key := "no key"
	if r.Key != nil {
		key = fmt.Sprintf("a key that begins with %q", r.Key[:min(len(r.Key), 64)])
	}
	return sdk.Errorf(sdk.Invalid, "record.too_large",
		"a record for topic %q with %s has %d bytes, record.max.bytes allows %d: raise it in the worker's config, or keep such values out of the source",
		topic, key, size(r), limit)
}

// unconvertible is the error of a source's record that no converter handles.
func unconvertible(topic string, err error) error {
	return sdk.Errorf(sdk.CodeOf(err), "record.conversion", "convert a record for topic %q: %s", topic, wire.Text(err.Error()))
}
