package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/millrace-io/millrace/logstore"
)

// The checkpoint file says what the segments hold and where in the journal
// replay begins. It is written beside the old one and renamed over it. All
// numbers are big-endian.
//
//	byte  0  magic            "MRCP"
//	byte  4  CRC              uint32   CRC-32C of byte 8 to the end
//	byte  8  version          uint32   1
//	byte 12  flags            uint32   bit 0: clean, nothing to replay
//	byte 16  journal bytes    int64    size of the journal's circle
//	byte 24  position         int64    of the first frame to replay
//	byte 32  lap              uint64   of that frame
//	byte 40  sequence         uint64   of that frame
//	byte 48  wall clock       int64    milliseconds, for people
//	byte 56  log id           uint64   random, the same in every frame
//	byte 64  partition count  uint32
//	byte 68  partitions, each:
//	         topic id         16 bytes
//	         partition        int32
//	         start            int64    offset of the first record kept
//	         end              int64    offset of the next record
//	         flags            uint32   bit 0: committed batches at the end are lost, the partition is stopped
//	         segment count    uint32
//	         segments, each: base, size, next offset, max timestamp, int64 each,
//	                         and flags, int64, bit 0: compacted
const (
	checkpointMagic      = 0x4d524350
	checkpointVersion    = 1
	checkpointHeaderSize = 68
	checkpointPartSize   = 44
	checkpointSegSize    = 40
	checkpointMaxBytes   = 1 << 30 // 33 million segments
	checkpointTemporary  = checkpointName + ".tmp"
	flagClean            = 1
	flagLost             = 1
	flagCompacted        = 1
)

// checkpoint is the decoded file.
type checkpoint struct {
	clean        bool
	journalBytes int64
	position     int64
	lap          uint64
	sequence     uint64
	logID        uint64
	partitions   []checkpointPart
}

type checkpointPart struct {
	topic      logstore.TopicID
	partition  int32
	start, end int64
	lost       bool
	segments   []checkpointSegment
}

type checkpointSegment struct{ base, size, next, maxTime, flags int64 }

func (c *checkpoint) encode(now time.Time) []byte {
	be := binary.BigEndian
	size := checkpointHeaderSize
	for i := range c.partitions {
		size += checkpointPartSize + len(c.partitions[i].segments)*checkpointSegSize
	}
	buf := make([]byte, 0, size)
	buf = be.AppendUint32(buf, checkpointMagic)
	buf = be.AppendUint32(buf, 0)
	buf = be.AppendUint32(buf, checkpointVersion)
	flags := uint32(0)
	if c.clean {
		flags |= flagClean
	}
	buf = be.AppendUint32(buf, flags)
	buf = be.AppendUint64(buf, uint64(c.journalBytes))
	buf = be.AppendUint64(buf, uint64(c.position))
	buf = be.AppendUint64(buf, c.lap)
	buf = be.AppendUint64(buf, c.sequence)
	buf = be.AppendUint64(buf, uint64(now.UnixMilli()))
	buf = be.AppendUint64(buf, c.logID)
	buf = be.AppendUint32(buf, uint32(len(c.partitions)))
	for i := range c.partitions {
		p := &c.partitions[i]
		buf = append(buf, p.topic[:]...)
		buf = be.AppendUint32(buf, uint32(p.partition))
		buf = be.AppendUint64(buf, uint64(p.start))
		buf = be.AppendUint64(buf, uint64(p.end))
		lost := uint32(0)
		if p.lost {
			lost = flagLost
		}
		buf = be.AppendUint32(buf, lost)
		buf = be.AppendUint32(buf, uint32(len(p.segments)))
		for _, s := range p.segments {
			for _, v := range [...]int64{s.base, s.size, s.next, s.maxTime, s.flags} {
				buf = be.AppendUint64(buf, uint64(v))
			}
		}
	}
	be.PutUint32(buf[4:], castagnoli(buf[8:]))
	return buf
}

func decodeCheckpoint(data []byte) (*checkpoint, error) {
	corrupt := func(at int, reason string, args ...any) error {
		return &logstore.CorruptError{
			File: checkpointName, Offset: int64(at), Bytes: int64(len(data) - at),
			Reason: fmt.Sprintf(reason, args...),
		}
	}
	be := binary.BigEndian
	switch {
	case len(data) < checkpointHeaderSize:
		return nil, corrupt(0, "%d bytes, a checkpoint has at least %d", len(data), checkpointHeaderSize)
	case be.Uint32(data) != checkpointMagic:
		return nil, corrupt(0, "magic is %08x", be.Uint32(data))
	case castagnoli(data[8:]) != be.Uint32(data[4:]):
		return nil, corrupt(4, "checksum says %08x, content gives %08x", be.Uint32(data[4:]), castagnoli(data[8:]))
	case be.Uint32(data[8:]) > checkpointVersion:
		return nil, fmt.Errorf("checkpoint has version %d and this millrace knows versions up to %d: use the newer millrace that wrote it",
			be.Uint32(data[8:]), checkpointVersion)
	}
	c := &checkpoint{
		clean:        be.Uint32(data[12:])&flagClean != 0,
		journalBytes: int64(be.Uint64(data[16:])),
		position:     int64(be.Uint64(data[24:])),
		lap:          be.Uint64(data[32:]),
		sequence:     be.Uint64(data[40:]),
		logID:        be.Uint64(data[56:]),
	}
	d := data[checkpointHeaderSize:]
	for range be.Uint32(data[64:]) {
		if len(d) < checkpointPartSize {
			return nil, corrupt(len(data)-len(d), "partition is cut")
		}
		p := checkpointPart{partition: int32(be.Uint32(d[16:])), start: int64(be.Uint64(d[20:])), end: int64(be.Uint64(d[28:])), lost: be.Uint32(d[36:])&flagLost != 0}
		copy(p.topic[:], d)
		count := int64(be.Uint32(d[40:]))
		d = d[checkpointPartSize:]
		if int64(len(d)) < count*checkpointSegSize {
			return nil, corrupt(len(data)-len(d), "segment list is cut")
		}
		for range count {
			p.segments = append(p.segments, checkpointSegment{
				base: int64(be.Uint64(d)), size: int64(be.Uint64(d[8:])),
				next: int64(be.Uint64(d[16:])), maxTime: int64(be.Uint64(d[24:])), flags: int64(be.Uint64(d[32:])),
			})
			d = d[checkpointSegSize:]
		}
		c.partitions = append(c.partitions, p)
	}
	return c, nil
}

func readCheckpoint(fs FS) (*checkpoint, error) {
	data, err := readFile(fs, checkpointName, checkpointMaxBytes)
	if errors.Is(err, os.ErrNotExist) {
		return nil, &logstore.CorruptError{File: checkpointName, Reason: "the file is missing"}
	}
	if err != nil {
		return nil, err
	}
	return decodeCheckpoint(data)
}

func writeCheckpoint(fs FS, c *checkpoint, now time.Time) error {
	if err := writeFile(fs, checkpointTemporary, c.encode(now)); err != nil {
		return fmt.Errorf("write checkpoint: %w", err)
	}
	if err := fs.Rename(checkpointTemporary, checkpointName); err != nil {
		return fmt.Errorf("write checkpoint: %w", err)
	}
	if err := fs.SyncDir("."); err != nil {
		return fmt.Errorf("write checkpoint: %w: %w", errSync, err)
	}
	return nil
}
