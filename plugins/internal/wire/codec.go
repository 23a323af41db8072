package wire

import (
	"errors"
	"fmt"
	"sync/atomic"

	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // registers the stock codec that Codec falls back on
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/millrace-io/millrace/plugins/internal/pb"
)

// Codec is gRPC's protobuf codec with one exception: a *Frame is written and
// read without copying its payload. The bytes on the wire are those of the
// message pb.Frame, so that the other side may use the stock codec. All other
// messages go through the stock codec: go-plugin's own services share the server.
type Codec struct{ stock encoding.CodecV2 }

// NewCodec returns the codec.
func NewCodec() Codec { return Codec{stock: encoding.GetCodecV2("proto")} }

// Name returns "proto": it is the same format.
func (Codec) Name() string { return "proto" }

// The field numbers of pb.Frame and pb.Part.
const (
	frameSeq       = 1
	frameLast      = 2
	frameParts     = 3
	framePositions = 4
	frameControl   = 5
	frameBatches   = 15

	partTopic      = 1
	partPartition  = 2
	partLength     = 3
	partRecords    = 4
	partFrom       = 5
	partGeneration = 6
)

// Marshal encodes v.
func (c Codec) Marshal(v any) (mem.BufferSlice, error) {
	f, ok := v.(*Frame)
	if !ok {
		return c.stock.Marshal(v)
	}
	head, err := f.appendHead(nil)
	if err != nil {
		return nil, err
	}
	size := 0
	for _, p := range f.Payload {
		size += len(p)
	}
	if size == 0 {
		f.sent()
		return mem.BufferSlice{mem.SliceBuffer(head)}, nil
	}
	head = protowire.AppendTag(head, frameBatches, protowire.BytesType)
	head = protowire.AppendVarint(head, uint64(size))
	out := make(mem.BufferSlice, 0, len(f.Payload)+1)
	done := &countdown{fn: f.Sent}
	done.left.Store(1)
	for _, p := range f.Payload {
		if len(p) < aliasBytes {
			head = append(head, p...)
			continue
		}
		if len(head) > 0 {
			out = append(out, mem.SliceBuffer(head))
			head = nil
		}
		done.left.Add(1)
		out = append(out, mem.NewBuffer(&p, done))
	}
	if len(head) > 0 {
		out = append(out, mem.SliceBuffer(head))
	}
	done.Put(nil)
	return out, nil
}

// countdown is a buffer pool that only counts what gRPC gives back.
type countdown struct {
	left atomic.Int32
	fn   func()
}

// Get is never called: the pool is only given buffers to release.
func (c *countdown) Get(n int) *[]byte {
	b := make([]byte, n)
	return &b
}

// Put counts one buffer; the last one tells the sender.
func (c *countdown) Put(*[]byte) {
	if c.left.Add(-1) == 0 && c.fn != nil {
		c.fn()
	}
}

func (f *Frame) sent() {
	if f.Sent != nil {
		f.Sent()
	}
}

// appendHead encodes everything but the batches.
func (f *Frame) appendHead(b []byte) ([]byte, error) {
	if b == nil {
		b = make([]byte, 0, 64+48*len(f.Parts))
	}
	b = appendUint(b, frameSeq, f.Seq)
	if f.Last {
		b = appendUint(b, frameLast, 1)
	}
	for i := range f.Parts {
		b = appendPart(b, &f.Parts[i])
	}
	for _, p := range f.Positions {
		b = protowire.AppendTag(b, framePositions, protowire.BytesType)
		b = protowire.AppendBytes(b, p)
	}
	if f.Control != nil {
		c, err := proto.Marshal(f.Control)
		if err != nil {
			return nil, fmt.Errorf("encode control message: %w", err)
		}
		b = protowire.AppendTag(b, frameControl, protowire.BytesType)
		b = protowire.AppendBytes(b, c)
	}
	return b, nil
}

func appendPart(b []byte, p *Part) []byte {
	var scratch [64]byte
	m := scratch[:0]
	m = protowire.AppendTag(m, partTopic, protowire.BytesType)
	m = protowire.AppendString(m, p.Topic)
	m = appendUint(m, partPartition, uint64(int64(p.Partition)))
	m = appendUint(m, partLength, uint64(p.Length))
	m = appendUint(m, partRecords, uint64(p.Records))
	m = appendUint(m, partFrom, uint64(p.From))
	m = appendUint(m, partGeneration, p.Generation)
	b = protowire.AppendTag(b, frameParts, protowire.BytesType)
	return protowire.AppendBytes(b, m)
}

func appendUint(b []byte, field protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	b = protowire.AppendTag(b, field, protowire.VarintType)
	return protowire.AppendVarint(b, v)
}

var errFrame = errors.New("malformed frame")

// Unmarshal decodes v.
func (c Codec) Unmarshal(data mem.BufferSlice, v any) error {
	f, ok := v.(*Frame)
	if !ok {
		return c.stock.Unmarshal(data, v)
	}
	f.reset()
	if len(data) == 0 {
		return nil
	}
	whole, err := f.parse(data)
	if err != nil {
		return err
	}
	if !whole {
		if err := f.parseSlowly(data.Materialize()); err != nil {
			return err
		}
	}
	sum := 0
	for i := range f.Parts {
		if f.Parts[i].Length < 0 || f.Parts[i].Length > f.In.Len() {
			return f.refuse("a part's length is out of range")
		}
		sum += f.Parts[i].Length
	}
	if sum != f.In.Len() {
		return f.refuse(fmt.Sprintf("parts have %d bytes, batches %d", sum, f.In.Len()))
	}
	return nil
}

func (f *Frame) refuse(why string) error {
	f.Free()
	return fmt.Errorf("%s: %w", why, errFrame)
}

// parse reads the fields from the first buffer, where they always lie when the
// sender put the batches last, and refers to the rest. It reports false when the
// frame is laid out in another way.
func (f *Frame) parse(data mem.BufferSlice) (bool, error) {
	first := data[0].ReadOnlyData()
	b, total := first, data.Len()
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return false, whenWhole(data, protowire.ParseError(n))
		}
		if num == frameBatches && typ == protowire.BytesType {
			size, m := protowire.ConsumeVarint(b[n:])
			if m < 0 {
				return false, whenWhole(data, protowire.ParseError(m))
			}
			start := len(first) - len(b) + n + m
			if uint64(total-start) != size {
				return false, nil
			}
			f.In = slice(data, start)
			return true, nil
		}
		m, err := f.field(num, typ, b[n:])
		if err != nil {
			return false, whenWhole(data, err)
		}
		b = b[n+m:]
	}
	return len(data) == 1, nil
}

// whenWhole keeps an error only when there is no more data that could mend it.
func whenWhole(data mem.BufferSlice, err error) error {
	if len(data) > 1 {
		return nil
	}
	return fmt.Errorf("%w: %w", errFrame, err)
}

// slice returns data from start on, with references of its own.
func slice(data mem.BufferSlice, start int) mem.BufferSlice {
	out := make(mem.BufferSlice, 0, len(data))
	for _, b := range data {
		n := b.Len()
		switch {
		case start >= n:
			start -= n
			continue
		case start > 0:
			out = append(out, b.Slice(start, n))
			start = 0
		default:
			b.Ref()
			out = append(out, b)
		}
	}
	return out
}

// field decodes one field but the batches and returns its length.
func (f *Frame) field(num protowire.Number, typ protowire.Type, b []byte) (int, error) {
	if typ == protowire.VarintType {
		v, n := protowire.ConsumeVarint(b)
		if n < 0 {
			return 0, protowire.ParseError(n)
		}
		switch int(num) {
		case frameSeq:
			f.Seq = v
		case frameLast:
			f.Last = v != 0
		}
		return n, nil
	}
	if typ != protowire.BytesType {
		n := protowire.ConsumeFieldValue(num, typ, b)
		if n < 0 {
			return 0, protowire.ParseError(n)
		}
		return n, nil
	}
	v, n := protowire.ConsumeBytes(b)
	if n < 0 {
		return 0, protowire.ParseError(n)
	}
	switch int(num) {
	case frameParts:
		return n, f.part(v)
	case framePositions:
		f.Positions = append(f.Positions, append([]byte(nil), v...))
	case frameControl:
		f.Control = new(pb.Control)
		return n, proto.Unmarshal(v, f.Control)
	}
	return n, nil
}

func (f *Frame) part(b []byte) error {
	var p Part
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		switch {
		case num == partTopic && typ == protowire.BytesType:
			v, n := protowire.ConsumeBytes(b)
			if n < 0 {
				return protowire.ParseError(n)
			}
			p.Topic = f.topic(v)
			b = b[n:]
		case typ == protowire.VarintType:
			v, n := protowire.ConsumeVarint(b)
			if n < 0 {
				return protowire.ParseError(n)
			}
			p.set(num, v)
			b = b[n:]
		default:
			n := protowire.ConsumeFieldValue(num, typ, b)
			if n < 0 {
				return protowire.ParseError(n)
			}
			b = b[n:]
		}
	}
	f.Parts = append(f.Parts, p)
	return nil
}

func (p *Part) set(num protowire.Number, v uint64) {
	switch int(num) {
	case partPartition:
		p.Partition = int32(v)
	case partLength:
		p.Length = int(v)
	case partRecords:
		p.Records = int(uint32(v))
	case partFrom:
		p.From = int64(v)
	case partGeneration:
		p.Generation = v
	}
}

// parseSlowly decodes a frame that an encoder of another kind has laid out.
func (f *Frame) parseSlowly(b []byte) error {
	f.reset()
	var m pb.Frame
	if err := proto.Unmarshal(b, &m); err != nil {
		return fmt.Errorf("%w: %w", errFrame, err)
	}
	f.Seq, f.Last, f.Positions = m.GetSeq(), m.GetLast(), m.GetPositions()
	for _, p := range m.GetParts() {
		f.Parts = append(f.Parts, Part{
			Topic: p.GetTopic(), Partition: p.GetPartition(), Length: int(p.GetLength()),
			Records: int(p.GetRecords()), From: p.GetFrom(), Generation: p.GetGeneration(),
		})
	}
	if len(m.GetControl()) > 0 {
		f.Control = new(pb.Control)
		if err := proto.Unmarshal(m.GetControl(), f.Control); err != nil {
			return fmt.Errorf("%w: %w", errFrame, err)
		}
	}
	if len(m.GetBatches()) > 0 {
		f.In = mem.BufferSlice{mem.SliceBuffer(m.GetBatches())}
	}
	return nil
}
