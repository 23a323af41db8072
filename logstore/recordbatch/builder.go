package recordbatch

import (
	"encoding/binary"
	"fmt"
	"math"
)

// initialBuilderBytes is the first buffer of a Builder: a few hundred small
// records. It grows by doubling and is kept over Resets.
const initialBuilderBytes = 16 << 10

// Builder builds one uncompressed batch after the other in one buffer, without
// an allocation per record. The zero value is ready. It is used by one
// goroutine at a time.
type Builder struct {
	buf            []byte
	count          int32
	lastDelta      int32
	base           int64
	firstTimestamp int64
	maxTimestamp   int64
}

// Reset begins a new batch. The bytes of the one before are overwritten.
func (b *Builder) Reset() {
	if cap(b.buf) < HeaderSize {
		b.buf = make([]byte, HeaderSize, initialBuilderBytes)
	}
	b.buf = b.buf[:HeaderSize]
	b.count, b.lastDelta, b.base = 0, -1, 0
	b.firstTimestamp, b.maxTimestamp = 0, 0
}

// Count returns how many records the batch holds.
func (b *Builder) Count() int { return int(b.count) }

// Size returns the bytes of the batch as it is now, its header included.
func (b *Builder) Size() int { return max(len(b.buf), HeaderSize) }

// Append adds a copy of r. Its Offset is ignored: the log assigns offsets. On an
// error the batch is as it was.
func (b *Builder) Append(r *Record) error { return b.append(r, b.lastDelta+1) }

// AppendAt adds a copy of r at its own Offset in a batch whose base offset is
// base, for a compaction that keeps some records of a batch. Offsets must
// ascend.
func (b *Builder) AppendAt(base int64, r *Record) error {
	delta := r.Offset - base
	if delta <= int64(b.lastDelta) && b.count > 0 || delta < 0 || delta > math.MaxInt32 {
		return fmt.Errorf("offset %d after %d in a batch of base %d: %w", r.Offset, base+int64(b.lastDelta), base, ErrInvalid)
	}
	if err := b.append(r, int32(delta)); err != nil {
		return err
	}
	b.base = base
	return nil
}

func (b *Builder) append(r *Record, delta int32) error {
	if len(b.buf) < HeaderSize {
		b.Reset()
		delta = max(delta, 0)
	}
	if b.count >= MaxRecords {
		return fmt.Errorf("batch holds %d records, the limit: %w", b.count, ErrTooLarge)
	}
	if len(r.Headers) > MaxHeaders {
		return fmt.Errorf("record has %d headers, at most %d are allowed: %w", len(r.Headers), MaxHeaders, ErrTooLarge)
	}
	first := b.firstTimestamp
	if b.count == 0 {
		first = r.Timestamp
	}
	body := bodySize(r, r.Timestamp-first, delta)
	size := len(b.buf) + body + binary.MaxVarintLen32
	if body > MaxBytes || size > MaxBytes {
		return fmt.Errorf("batch would have %d bytes, at most %d are allowed: %w", size, MaxBytes, ErrTooLarge)
	}
	if b.count == 0 {
		b.firstTimestamp, b.maxTimestamp = first, first
	}
	b.maxTimestamp = max(b.maxTimestamp, r.Timestamp)
	d := binary.AppendVarint(b.buf, int64(body))
	d = append(d, 0) // attributes of a record: none are defined
	d = binary.AppendVarint(d, r.Timestamp-first)
	d = binary.AppendVarint(d, int64(delta))
	d = appendBytes(d, r.Key)
	d = appendBytes(d, r.Value)
	d = binary.AppendVarint(d, int64(len(r.Headers)))
	for i := range r.Headers {
		h := &r.Headers[i]
		d = binary.AppendVarint(d, int64(len(h.Key)))
		d = append(d, h.Key...)
		d = appendBytes(d, h.Value)
	}
	b.buf = d
	b.count++
	b.lastDelta = delta
	return nil
}

// Bytes writes the batch's header and checksum and returns it. The bytes are
// valid until Reset. It returns nil for a batch without records.
func (b *Builder) Bytes() []byte { return b.finish(b.lastDelta) }

// BytesUpTo is Bytes for a batch that stands for the offsets up to last even
// when the record there is gone.
func (b *Builder) BytesUpTo(last int64) []byte {
	return b.finish(max(b.lastDelta, int32(last-b.base)))
}

func (b *Builder) finish(lastDelta int32) []byte {
	if b.count == 0 {
		return nil
	}
	d, be := b.buf, binary.BigEndian
	be.PutUint64(d, uint64(b.base))
	be.PutUint32(d[8:], uint32(len(d)-lengthEnd))
	be.PutUint32(d[12:], 0)
	d[16] = magic
	be.PutUint16(d[21:], 0)
	be.PutUint32(d[23:], uint32(lastDelta))
	be.PutUint64(d[27:], uint64(b.firstTimestamp))
	be.PutUint64(d[35:], uint64(b.maxTimestamp))
	be.PutUint64(d[43:], math.MaxUint64)
	be.PutUint16(d[51:], math.MaxUint16)
	be.PutUint32(d[53:], math.MaxUint32)
	be.PutUint32(d[57:], uint32(b.count))
	be.PutUint32(d[17:], checksum(d[21:]))
	return d
}

// bodySize is the length of a record after its own length field.
func bodySize(r *Record, timestampDelta int64, offsetDelta int32) int {
	n := 1 + varintSize(timestampDelta) + varintSize(int64(offsetDelta)) +
		bytesSize(r.Key) + bytesSize(r.Value) + varintSize(int64(len(r.Headers)))
	for i := range r.Headers {
		h := &r.Headers[i]
		n += varintSize(int64(len(h.Key))) + len(h.Key) + bytesSize(h.Value)
	}
	return n
}

func bytesSize(b []byte) int {
	if b == nil {
		return 1
	}
	return varintSize(int64(len(b))) + len(b)
}

func appendBytes(d, b []byte) []byte {
	if b == nil {
		return append(d, 1) // -1, zigzag
	}
	d = binary.AppendVarint(d, int64(len(b)))
	return append(d, b...)
}

func varintSize(x int64) int {
	u := uint64(x<<1) ^ uint64(x>>63)
	n := 1
	for u >= 0x80 {
		u >>= 7
		n++
	}
	return n
}
