package recordbatch

import (
	"encoding/binary"
	"fmt"
	"unsafe"
)

// Iterator walks the records of one batch without copying them: keys, values
// and headers alias the batch's bytes (or, when it is compressed, the
// Iterator's own buffer) and are valid as long as those are. It is used by one
// goroutine at a time.
type Iterator struct {
	data  []byte // the records not yet handed out
	info  Info
	left  int32
	last  int64 // offset delta handed out last
	err   error
	plain *plain // made for the first compressed batch, so that an Iterator can live on the stack
}

// Iter returns an Iterator of the batch that begins data. It does not check the
// checksum. What is wrong with the batch shows in Err after the first Next.
func Iter(data []byte) Iterator {
	var it Iterator
	it.Reset(data)
	return it
}

// Reset starts over with another batch and keeps the buffers.
func (it *Iterator) Reset(data []byte) { it.ResetLimit(data, MaxDecompressedBytes) }

// ResetLimit is Reset for a reader that is willing to inflate a compressed batch
// to at most maxBytes.
func (it *Iterator) ResetLimit(data []byte, maxBytes int) {
	it.data, it.left, it.last, it.err = nil, 0, -1, nil
	batch, _, err := Split(data)
	if err == nil {
		it.info, err = Parse(batch)
	}
	if err != nil {
		it.err = err
		return
	}
	it.data = batch[HeaderSize:]
	if it.info.Codec != CodecNone {
		if it.plain == nil {
			it.plain = new(plain)
		}
		it.data, it.err = it.plain.decompress(it.info.Codec, it.data, maxBytes)
	}
	it.left = it.info.Count
}

// Info returns the header of the batch.
func (it *Iterator) Info() Info { return it.info }

// Err returns what ended the iteration before the last record.
func (it *Iterator) Err() error { return it.err }

// Next decodes the next record into r, whose Headers slice is reused, and
// reports whether there was one. A header's Key aliases the batch as its Value
// does: clone it to keep it.
func (it *Iterator) Next(r *Record) bool {
	if it.err != nil {
		return false
	}
	if it.left == 0 {
		if len(it.data) != 0 {
			it.err = fmt.Errorf("%d bytes after the last record: %w", len(it.data), ErrInvalid)
		}
		return false
	}
	length, n := varint(it.data)
	if n == 0 || length < 0 || length > int64(len(it.data)-n) {
		return it.fail("record length")
	}
	body := it.data[n : n+int(length)]
	it.data = it.data[n+int(length):]
	if len(body) == 0 {
		return it.fail("record attributes")
	}
	body = body[1:]
	timestamp, n := varint(body)
	if n == 0 {
		return it.fail("timestamp")
	}
	body = body[n:]
	delta, n := varint(body)
	if n == 0 || delta <= it.last || delta > int64(it.info.LastOffsetDelta) {
		return it.fail("offset delta")
	}
	body = body[n:]
	var ok bool
	if r.Key, body, ok = cutBytes(body); !ok {
		return it.fail("key")
	}
	if r.Value, body, ok = cutBytes(body); !ok {
		return it.fail("value")
	}
	if body, ok = it.headers(r, body); !ok || len(body) != 0 {
		return it.fail("headers")
	}
	it.last = delta
	it.left--
	r.Offset = it.info.BaseOffset + delta
	r.Timestamp = it.info.FirstTimestamp + timestamp
	if it.info.Attributes&attrLogAppendTime != 0 {
		r.Timestamp = it.info.MaxTimestamp
	}
	return true
}

// headers decodes the headers of a record and returns what follows them.
func (it *Iterator) headers(r *Record, body []byte) ([]byte, bool) {
	r.Headers = r.Headers[:0]
	count, n := varint(body)
	if n == 0 || count < 0 || count > MaxHeaders {
		return nil, false
	}
	body = body[n:]
	for range count {
		key, rest, ok := cutBytes(body)
		if !ok || key == nil {
			return nil, false
		}
		value, rest, ok := cutBytes(rest)
		if !ok {
			return nil, false
		}
		body = rest
		r.Headers = append(r.Headers, Header{Key: unsafe.String(unsafe.SliceData(key), len(key)), Value: value})
	}
	return body, true
}

func (it *Iterator) fail(what string) bool {
	it.err = fmt.Errorf("record %d of %d: bad %s: %w", it.info.Count-it.left, it.info.Count, what, ErrInvalid)
	return false
}

// cutBytes reads a length and that many bytes; length -1 gives nil.
func cutBytes(d []byte) (value, rest []byte, ok bool) {
	length, n := varint(d)
	if n == 0 || length < -1 || length > int64(len(d)-n) {
		return nil, nil, false
	}
	d = d[n:]
	if length == -1 {
		return nil, d, true
	}
	return d[:length:length], d[length:], true
}

// varint decodes a zigzag varint and returns how many bytes it took, 0 when it
// is cut or too long.
func varint(d []byte) (int64, int) {
	if len(d) > 0 && d[0] < 0x80 {
		u := uint64(d[0])
		return int64(u>>1) ^ -int64(u&1), 1
	}
	if len(d) > 1 && d[1] < 0x80 {
		u := uint64(d[0]&0x7f) | uint64(d[1])<<7
		return int64(u>>1) ^ -int64(u&1), 2
	}
	x, n := binary.Varint(d)
	return x, max(n, 0)
}
