package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/millrace-io/millrace/logstore"
	"github.com/millrace-io/millrace/logstore/recordbatch"
)

// A frame commits one unit. All numbers are big-endian.
//
//	byte  0  magic          "MRJF"
//	byte  4  header CRC     uint32   CRC-32C of byte 8 to the end of the entries
//	byte  8  length         uint32   bytes of the frame, padding included
//	byte 12  entry count    uint32
//	byte 16  lap            uint64   goes up when the journal starts over, and at every opening
//	byte 24  sequence       uint64   one more than the frame's before
//	byte 32  durable        uint64   highest sequence known durable when this was written
//	byte 40  log id         uint64   random, of the data directory: records cannot forge frames
//	byte 48  entries, 72 bytes each:
//	         byte  0  topic id        16 bytes
//	         byte 16  partition       int32
//	         byte 20  kind            uint8    1 the bytes follow in the frame, 2 they are in the segment
//	         byte 21  reserved        3 bytes  zero
//	         byte 24  segment         int64    base offset that names the segment file
//	         byte 32  position        int64    byte position in the segment file
//	         byte 40  base offset     int64
//	         byte 48  next offset     int64
//	         byte 56  max timestamp   int64    milliseconds
//	         byte 64  size            uint32   bytes of the record batches
//	         byte 68  reserved        4 bytes  zero
//	then     the record batches of the entries of kind 1, in order
//	then     zeros up to a multiple of 8
//
// The header CRC covers what places the bytes, each batch's own CRC the bytes.
const (
	frameMagic      = 0x4d524a46
	frameHeaderSize = 48
	frameEntrySize  = 72
	frameAlign      = 8
	kindInline      = 1
	kindSegment     = 2
)

// errTorn says that no frame begins here, or a damaged one.
var errTorn = errors.New("no valid frame")

// frame is a decoded frame header.
type frame struct {
	length   int64
	lap      uint64
	sequence uint64
	durable  uint64
	logID    uint64
	entries  []frameEntry
}

// frameEntry tells where the batches of one partition go.
type frameEntry struct {
	topic     logstore.TopicID
	partition int32
	bypass    bool // the bytes are in the segment already
	segment   int64
	position  int64
	base      int64
	next      int64
	maxTime   int64
	size      int64
	payload   int64 // position of the bytes in the frame, when they are inline
}

func castagnoli(data []byte) uint32 { return crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli)) }

// frameSize is the length of a frame of that many entries and inline bytes.
func frameSize(entries, inline int) int {
	n := frameHeaderSize + entries*frameEntrySize + inline
	return (n + frameAlign - 1) / frameAlign * frameAlign
}

// appendFrame appends the frame that commits entries. Its lap, sequence,
// durable mark and log id come from f.
func appendFrame(buf []byte, f frame, entries []entry) []byte {
	be := binary.BigEndian
	start, inline := len(buf), 0
	for i := range entries {
		if !entries[i].bypass {
			inline += entries[i].size()
		}
	}
	length := frameSize(len(entries), inline)
	buf = be.AppendUint32(buf, frameMagic)
	buf = be.AppendUint32(buf, 0)
	buf = be.AppendUint32(buf, uint32(length))
	buf = be.AppendUint32(buf, uint32(len(entries)))
	buf = be.AppendUint64(buf, f.lap)
	buf = be.AppendUint64(buf, f.sequence)
	buf = be.AppendUint64(buf, f.durable)
	buf = be.AppendUint64(buf, f.logID)
	for i := range entries {
		e := &entries[i]
		kind := uint32(kindInline)
		if e.bypass {
			kind = kindSegment
		}
		buf = append(buf, e.part.topic.id[:]...)
		buf = be.AppendUint32(buf, uint32(e.part.id))
		buf = be.AppendUint32(buf, kind<<24)
		buf = be.AppendUint64(buf, uint64(e.seg.base))
		buf = be.AppendUint64(buf, uint64(e.pos))
		buf = be.AppendUint64(buf, uint64(e.base))
		buf = be.AppendUint64(buf, uint64(e.next))
		buf = be.AppendUint64(buf, uint64(e.maxTime))
		buf = be.AppendUint32(buf, uint32(e.size()))
		buf = be.AppendUint32(buf, 0)
	}
	be.PutUint32(buf[start+4:], castagnoli(buf[start+8:]))
	for i := range entries {
		if !entries[i].bypass {
			buf = append(buf, entries[i].data...)
		}
	}
	for len(buf) < start+length {
		buf = append(buf, 0)
	}
	return buf
}

// parseFrame decodes the frame header that begins data; the payload need not be
// there. Any doubt gives errTorn.
func parseFrame(data []byte) (frame, error) {
	be := binary.BigEndian
	if len(data) < frameHeaderSize || be.Uint32(data) != frameMagic {
		return frame{}, errTorn
	}
	count := int64(be.Uint32(data[12:]))
	head := frameHeaderSize + count*frameEntrySize
	f := frame{
		length:   int64(be.Uint32(data[8:])),
		lap:      be.Uint64(data[16:]),
		sequence: be.Uint64(data[24:]),
		durable:  be.Uint64(data[32:]),
		logID:    be.Uint64(data[40:]),
	}
	if head > int64(len(data)) || f.length < head || castagnoli(data[8:head]) != be.Uint32(data[4:]) {
		return frame{}, errTorn
	}
	payload := head
	f.entries = make([]frameEntry, count)
	for i := range f.entries {
		d := data[frameHeaderSize+i*frameEntrySize:]
		e := frameEntry{
			partition: int32(be.Uint32(d[16:])),
			bypass:    d[20] == kindSegment,
			segment:   int64(be.Uint64(d[24:])),
			position:  int64(be.Uint64(d[32:])),
			base:      int64(be.Uint64(d[40:])),
			next:      int64(be.Uint64(d[48:])),
			maxTime:   int64(be.Uint64(d[56:])),
			size:      int64(be.Uint32(d[64:])),
		}
		copy(e.topic[:], d)
		if !e.bypass {
			e.payload = payload
			payload += e.size
		}
		f.entries[i] = e
	}
	if payload > f.length {
		return frame{}, errTorn
	}
	return f, nil
}

// checkRun verifies that data is a run of whole batches that match their
// checksums and carry the offsets from base up to next. It returns the position
// of the first byte that is not good, or len(data).
func checkRun(data []byte, base, next int64) (int64, error) {
	at := int64(0)
	for rest := data; len(rest) > 0; {
		batch, after, err := recordbatch.Split(rest)
		if err != nil {
			return at, err
		}
		info, err := recordbatch.Parse(batch)
		if err == nil {
			err = recordbatch.VerifyChecksum(batch)
		}
		if err == nil && info.BaseOffset != base {
			err = fmt.Errorf("base offset is %d, not %d", info.BaseOffset, base)
		}
		if err != nil {
			return at, err
		}
		base, rest = info.NextOffset(), after
		at += int64(len(batch))
	}
	if base != next {
		return at, fmt.Errorf("batches end at offset %d, not %d", base, next)
	}
	return at, nil
}

// frameLength reads the length of the frame that begins data, unchecked.
func frameLength(data []byte) (int64, bool) {
	if len(data) < frameHeaderSize || binary.BigEndian.Uint32(data) != frameMagic {
		return 0, false
	}
	n := int64(binary.BigEndian.Uint32(data[8:]))
	return n, n >= frameHeaderSize && n <= maxFrameBytes
}
