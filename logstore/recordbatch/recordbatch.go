// Package recordbatch reads and writes Kafka's RecordBatch v2 (message format
// magic 2): an append-style Builder, a zero-copy Iterator, and the checks of a
// batch's header and checksum. It imports nothing of ours and knows nothing
// about logs.
//
// The layout of a batch, all numbers big-endian
// (https://kafka.apache.org/documentation/#recordbatch):
//
//	byte  0  base offset        int64   stamped by the log, outside the checksum
//	byte  8  length             int32   bytes after this field
//	byte 12  leader epoch       int32   stamped by the log, outside the checksum
//	byte 16  magic              int8    2
//	byte 17  CRC-32C            uint32  over byte 21 to the end
//	byte 21  attributes         int16   bits 0-2 codec, 3 timestamp type, 4 transactional, 5 control
//	byte 23  last offset delta  int32
//	byte 27  first timestamp    int64   milliseconds
//	byte 35  max timestamp      int64   milliseconds
//	byte 43  producer id        int64   -1 when unused
//	byte 51  producer epoch     int16   -1 when unused
//	byte 53  base sequence      int32   -1 when unused
//	byte 57  record count       int32
//	byte 61  records, compressed together when the codec says so
package recordbatch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// HeaderSize is the number of bytes before the first record.
const HeaderSize = 61

// Limits, each with its reason.
const (
	// MaxBytes bounds one batch: far above record.max.bytes, and below what the
	// int32 length field could hold, so that sums of sizes never overflow.
	MaxBytes = 1 << 30
	// MaxRecords bounds the records of one batch, so that a reader can trust the
	// count with memory of its own.
	MaxRecords = 1 << 24
	// MaxHeaders bounds the headers of one record for the same reason.
	MaxHeaders = 10_000
	// MaxDecompressedBytes is what an Iterator is willing to inflate a batch to
	// unless told otherwise: record.max.bytes (64 MiB) and room for a few more.
	MaxDecompressedBytes = 128 << 20
)

// The errors that callers tell apart with errors.Is.
var (
	ErrShort    = errors.New("batch is cut short")
	ErrChecksum = errors.New("batch does not match its checksum")
	ErrInvalid  = errors.New("invalid batch")
	ErrTooLarge = errors.New("batch is too large")
)

// Header is one header of a record. A nil Value is a null.
type Header struct {
	Key   string
	Value []byte
}

// Record is one record of a batch. A nil Key or Value is a null.
type Record struct {
	Offset    int64
	Timestamp int64 // milliseconds since 1970
	Key       []byte
	Value     []byte
	Headers   []Header
}

// Codec says how the records of a batch are compressed.
type Codec int8

// The codecs, by their numbers on disk.
const (
	CodecNone   Codec = 0
	CodecGzip   Codec = 1
	CodecSnappy Codec = 2
	CodecLZ4    Codec = 3
	CodecZstd   Codec = 4
)

// String returns the codec's name as Kafka's compression.type spells it.
func (c Codec) String() string {
	switch c {
	case CodecNone:
		return "none"
	case CodecGzip:
		return "gzip"
	case CodecSnappy:
		return "snappy"
	case CodecLZ4:
		return "lz4"
	case CodecZstd:
		return "zstd"
	}
	return fmt.Sprintf("codec %d", int8(c))
}

// The bits of the attributes field above the codec.
const (
	attrCodecMask     = 0x07
	attrLogAppendTime = 0x08
	attrTransactional = 0x10
	attrControl       = 0x20
	magic             = 2
	lengthEnd         = 12 // byte after the length field, where length counts from
)

// Info is the header of a batch.
type Info struct {
	BaseOffset      int64
	Size            int // bytes of the whole batch
	LeaderEpoch     int32
	CRC             uint32
	Attributes      int16
	Codec           Codec
	LastOffsetDelta int32
	FirstTimestamp  int64
	MaxTimestamp    int64
	ProducerID      int64
	ProducerEpoch   int16
	BaseSequence    int32
	Count           int32
}

// LastOffset is the offset of the batch's last record, also when compaction has
// removed it.
func (i *Info) LastOffset() int64 { return i.BaseOffset + int64(i.LastOffsetDelta) }

// NextOffset is the offset after the batch.
func (i *Info) NextOffset() int64 { return i.LastOffset() + 1 }

// Size returns the bytes of the batch that begins data, by its length field. It
// needs the first 12 bytes; ErrShort says that there are fewer.
func Size(data []byte) (int, error) {
	if len(data) < lengthEnd {
		return 0, fmt.Errorf("%d bytes of a batch header: %w", len(data), ErrShort)
	}
	length := int64(int32(binary.BigEndian.Uint32(data[8:])))
	size := length + lengthEnd
	if size < HeaderSize || size > MaxBytes {
		return 0, fmt.Errorf("length field says %d: %w", length, ErrInvalid)
	}
	return int(size), nil
}

// Split returns the first whole batch of data and what follows it.
func Split(data []byte) (batch, rest []byte, err error) {
	size, err := Size(data)
	if err != nil {
		return nil, nil, err
	}
	if size > len(data) {
		return nil, nil, fmt.Errorf("batch of %d bytes, %d are there: %w", size, len(data), ErrShort)
	}
	return data[:size:size], data[size:], nil
}

// Parse reads the header of the batch that begins data. The whole header must
// be there, the records need not be. It does not check the checksum.
func Parse(data []byte) (Info, error) {
	size, err := Size(data)
	if err != nil {
		return Info{}, err
	}
	if len(data) < HeaderSize {
		return Info{}, fmt.Errorf("%d bytes of a batch header: %w", len(data), ErrShort)
	}
	if data[16] != magic {
		return Info{}, fmt.Errorf("magic is %d, only 2 is known: %w", data[16], ErrInvalid)
	}
	be := binary.BigEndian
	attributes := int16(be.Uint16(data[21:]))
	info := Info{
		BaseOffset:      int64(be.Uint64(data)),
		Size:            size,
		LeaderEpoch:     int32(be.Uint32(data[12:])),
		CRC:             be.Uint32(data[17:]),
		Attributes:      attributes,
		Codec:           Codec(attributes & attrCodecMask),
		LastOffsetDelta: int32(be.Uint32(data[23:])),
		FirstTimestamp:  int64(be.Uint64(data[27:])),
		MaxTimestamp:    int64(be.Uint64(data[35:])),
		ProducerID:      int64(be.Uint64(data[43:])),
		ProducerEpoch:   int16(be.Uint16(data[51:])),
		BaseSequence:    int32(be.Uint32(data[53:])),
		Count:           int32(be.Uint32(data[57:])),
	}
	switch {
	case info.LastOffsetDelta < 0:
		return Info{}, fmt.Errorf("last offset delta is %d: %w", info.LastOffsetDelta, ErrInvalid)
	case info.Count < 0 || info.Count > MaxRecords || int64(info.Count) > int64(info.LastOffsetDelta)+1:
		return Info{}, fmt.Errorf("record count is %d, last offset delta %d: %w", info.Count, info.LastOffsetDelta, ErrInvalid)
	case info.Codec > CodecZstd:
		return Info{}, fmt.Errorf("unknown compression codec %d: %w", info.Codec, ErrInvalid)
	}
	return info, nil
}

// VerifyChecksum checks one whole batch against its CRC-32C.
func VerifyChecksum(batch []byte) error {
	size, err := Size(batch)
	if err != nil {
		return err
	}
	if size > len(batch) {
		return fmt.Errorf("batch of %d bytes, %d are there: %w", size, len(batch), ErrShort)
	}
	want := binary.BigEndian.Uint32(batch[17:])
	if got := checksum(batch[21:size]); got != want {
		return fmt.Errorf("header says %08x, content gives %08x: %w", want, got, ErrChecksum)
	}
	return nil
}

// Check is what a log demands of a batch that comes in: exactly one batch of at
// most maxBytes, whole, matching its checksum, of magic 2, with as many records
// as its last offset delta says, a known codec, and none of the fields and bits
// that are reserved: transactional, control, log append time, producer id,
// epoch and sequence (without a producer id the sequence means nothing; clients
// leave -1 or 0 there). It does not look at the records.
func Check(batch []byte, maxBytes int) error {
	if len(batch) > maxBytes {
		return fmt.Errorf("%d bytes, the limit is %d: %w", len(batch), maxBytes, ErrTooLarge)
	}
	info, err := Parse(batch)
	if err != nil {
		return err
	}
	switch {
	case info.Size > len(batch):
		return fmt.Errorf("batch of %d bytes, %d are there: %w", info.Size, len(batch), ErrShort)
	case info.Size < len(batch):
		return fmt.Errorf("%d bytes after a batch of %d: %w", len(batch)-info.Size, info.Size, ErrInvalid)
	case info.Count == 0 || info.Count != info.LastOffsetDelta+1:
		return fmt.Errorf("record count is %d, last offset delta %d: %w", info.Count, info.LastOffsetDelta, ErrInvalid)
	case info.Attributes&^attrCodecMask != 0:
		return fmt.Errorf("attributes %#04x hold a reserved bit: %w", uint16(info.Attributes), ErrInvalid)
	case info.ProducerID != -1 || info.ProducerEpoch != -1 || info.BaseSequence != -1 && info.BaseSequence != 0:
		return fmt.Errorf("producer id %d, epoch %d, sequence %d are set: %w",
			info.ProducerID, info.ProducerEpoch, info.BaseSequence, ErrInvalid)
	}
	return VerifyChecksum(batch)
}

// SetBaseOffset stamps the offset of the batch's first record, and leader epoch
// 0. Neither is covered by the checksum.
func SetBaseOffset(batch []byte, offset int64) {
	binary.BigEndian.PutUint64(batch, uint64(offset))
	binary.BigEndian.PutUint32(batch[12:], 0)
}

// checksum is CRC-32C. MakeTable returns the one table of the standard library
// for this polynomial, so it costs nothing.
func checksum(data []byte) uint32 {
	return crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli))
}
