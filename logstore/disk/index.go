package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"sort"
	"sync"

	"github.com/millrace-io/millrace/logstore"
	"github.com/millrace-io/millrace/logstore/recordbatch"
)

// Index files. Both begin with the same header; all numbers are big-endian.
//
//	byte  0  magic        "MRIX" for .index, "MRTX" for .timeindex
//	byte  4  CRC          uint32  CRC-32C of byte 8 to the end
//	byte  8  version      uint32  1
//	byte 12  entry count  uint32
//	byte 16  covered      int64   bytes of the segment that the entries cover
//	byte 24  max time     int64   highest timestamp in those bytes
//	byte 32  entries:     .index:     uint32 offset - base, uint32 position
//	                      .timeindex: int64 highest timestamp before that position
//
// Entry i of both describes one batch: the first after every indexInterval
// bytes. An index that does not match is built again from the segment.
const (
	indexMagic      = 0x4d524958
	timeIndexMagic  = 0x4d525458
	indexVersion    = 1
	indexHeaderSize = 32
	indexEntrySize  = 8
	indexInterval   = 8 << 10 // one entry per so many bytes: a lookup reads at most this and one batch
	indexSuffix     = ".index"
	timeIndexSuffix = ".timeindex"
	indexMaxBytes   = 64 << 20
)

// indexEntry points at the first byte of a batch.
type indexEntry struct {
	offset  uint32 // base offset of the batch, less that of the segment
	pos     uint32
	maxTime int64 // highest timestamp of the batches before it
}

// segmentIndex is the sparse index of one segment. Entries cover the bytes from
// low to high; what is below low is read from the index file, or from the
// segment, when somebody asks.
type segmentIndex struct {
	mu      sync.Mutex
	entries []indexEntry
	low     int64
	high    int64
	maxTime int64 // highest timestamp below high
	loading sync.Mutex
}

// reset forgets everything below pos: a segment opened again.
func (x *segmentIndex) reset(pos, maxTime int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.entries, x.low, x.high, x.maxTime = nil, pos, pos, maxTime
}

// drop forgets the entries, which are in the index files now.
func (x *segmentIndex) drop() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.low == 0 {
		x.entries, x.low = nil, x.high
	}
}

// add notes a batch at high.
func (x *segmentIndex) add(base int64, info *recordbatch.Info) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.addLocked(base, info)
}

func (x *segmentIndex) addLocked(base int64, info *recordbatch.Info) {
	last := int64(-indexInterval)
	if n := len(x.entries); n > 0 {
		last = int64(x.entries[n-1].pos)
	} else if x.low > 0 {
		last = x.low - indexInterval
	}
	delta := info.BaseOffset - base
	before := x.maxTime
	if x.high == 0 {
		before = math.MinInt64
	}
	if x.high-last >= indexInterval && delta <= math.MaxUint32 && x.high <= math.MaxUint32 {
		x.entries = append(x.entries, indexEntry{offset: uint32(delta), pos: uint32(x.high), maxTime: before})
	}
	if x.high == 0 {
		x.maxTime = info.MaxTimestamp
	}
	x.maxTime = max(x.maxTime, info.MaxTimestamp)
	x.high += int64(info.Size)
}

// complete makes sure that the entries of s begin at byte 0. Size is how many
// bytes of the segment are in the file. It reads the index file, and the headers
// of the segment where that does not reach.
func (l *Log) completeIndex(s *segment, size int64) error {
	x := &s.index
	x.loading.Lock()
	defer x.loading.Unlock()
	x.mu.Lock()
	low := x.low
	x.mu.Unlock()
	if low == 0 {
		return nil
	}
	var head segmentIndex
	limit := min(low, size)
	if err := loadIndex(l.fs, s, &head, limit); err != nil {
		head.entries, head.high, head.maxTime = nil, 0, 0
		l.log.Info("index is built again from its segment", "file", s.path(), "reason", err.Error())
	}
	walked := head.high < limit
	if walked {
		if err := l.walkHeaders(s, &head, limit); err != nil {
			return err
		}
	}
	x.mu.Lock()
	x.entries = append(head.entries, x.entries...)
	x.low = 0
	x.mu.Unlock()
	if walked && s.sealed() {
		return l.writeIndex(s)
	}
	return nil
}

// sealed reports whether the segment does not grow any more.
func (s *segment) sealed() bool {
	s.part.mu.Lock()
	defer s.part.mu.Unlock()
	return s.part.last() != s
}

// walkHeaders indexes the batches from x.high up to limit.
func (l *Log) walkHeaders(s *segment, x *segmentIndex, limit int64) error {
	f, err := l.files.use(s, false)
	if err != nil {
		return err
	}
	defer l.files.release(f)
	r := io.NewSectionReader(f, 0, limit)
	var header [recordbatch.HeaderSize]byte
	for x.high < limit {
		_, err := r.ReadAt(header[:], x.high)
		var info recordbatch.Info
		if err == nil {
			info, err = recordbatch.Parse(header[:])
		}
		if err == nil && x.high+int64(info.Size) > limit {
			err = fmt.Errorf("batch of %d bytes reaches beyond the end", info.Size)
		}
		if err != nil {
			return &logstore.CorruptError{File: s.path(), Offset: x.high, Bytes: limit - x.high, Reason: err.Error()}
		}
		x.addLocked(s.base, &info)
	}
	return nil
}

// seek returns the position of the last indexed batch that begins at or below
// offset.
func (x *segmentIndex) seek(delta int64) int64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	i := sort.Search(len(x.entries), func(i int) bool { return int64(x.entries[i].offset) > delta })
	if i == 0 {
		return 0
	}
	return int64(x.entries[i-1].pos)
}

// seekTime returns the offset, less the segment's base, of an indexed batch
// before which every timestamp is below ms.
func (x *segmentIndex) seekTime(ms int64) int64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	i := sort.Search(len(x.entries), func(i int) bool { return x.entries[i].maxTime >= ms })
	if i == 0 {
		return 0
	}
	return int64(x.entries[i-1].offset)
}

// writeIndex writes both index files. They are hints: nothing syncs them.
func (l *Log) writeIndex(s *segment) error {
	x := &s.index
	x.mu.Lock()
	if x.low != 0 {
		x.mu.Unlock()
		return nil // it was not needed so far and the files are there already
	}
	offsets, times := indexHeader(indexMagic, x), indexHeader(timeIndexMagic, x)
	be := binary.BigEndian
	for _, e := range x.entries {
		offsets = be.AppendUint32(be.AppendUint32(offsets, e.offset), e.pos)
		times = be.AppendUint64(times, uint64(e.maxTime))
	}
	x.mu.Unlock()
	for _, f := range []struct {
		suffix string
		data   []byte
	}{{indexSuffix, offsets}, {timeIndexSuffix, times}} {
		be.PutUint32(f.data[4:], castagnoli(f.data[8:]))
		if err := writeHint(l.fs, s.file(f.suffix), f.data); err != nil {
			return fmt.Errorf("write index: %w", err)
		}
	}
	return nil
}

func indexHeader(magic uint32, x *segmentIndex) []byte {
	be := binary.BigEndian
	b := be.AppendUint32(nil, magic)
	b = be.AppendUint32(b, 0)
	b = be.AppendUint32(b, indexVersion)
	b = be.AppendUint32(b, uint32(len(x.entries)))
	b = be.AppendUint64(b, uint64(x.high))
	return be.AppendUint64(b, uint64(x.maxTime))
}

// writeHint writes a file that may be lost or torn.
func writeHint(fs FS, name string, data []byte) error {
	f, _, err := fs.OpenFile(name, true)
	if err != nil {
		return err
	}
	if err = f.Truncate(0); err == nil {
		_, err = f.WriteAt(data, 0)
	}
	return errors.Join(err, f.Close())
}

// loadIndex reads both index files into x, up to limit bytes of the segment.
func loadIndex(fs FS, s *segment, x *segmentIndex, limit int64) error {
	offsets, err := readIndexFile(fs, s.file(indexSuffix), indexMagic)
	if err != nil {
		return err
	}
	times, err := readIndexFile(fs, s.file(timeIndexSuffix), timeIndexMagic)
	if err != nil {
		return err
	}
	be := binary.BigEndian
	covered, timesCovered := int64(be.Uint64(offsets[16:])), int64(be.Uint64(times[16:]))
	if covered != timesCovered || len(offsets) != len(times) || covered > limit {
		return fmt.Errorf("index files cover %d and %d bytes of %d", covered, timesCovered, limit)
	}
	x.high, x.maxTime = covered, int64(be.Uint64(offsets[24:]))
	offsets, times = offsets[indexHeaderSize:], times[indexHeaderSize:]
	last := int64(-1)
	for i := 0; i < len(offsets); i += indexEntrySize {
		e := indexEntry{offset: be.Uint32(offsets[i:]), pos: be.Uint32(offsets[i+4:]), maxTime: int64(be.Uint64(times[i:]))}
		if int64(e.pos) <= last || int64(e.pos) >= covered {
			return fmt.Errorf("index entry %d points to byte %d", i/indexEntrySize, e.pos)
		}
		last = int64(e.pos)
		x.entries = append(x.entries, e)
	}
	return nil
}

// readIndexFile returns a whole index file that matches its checksum.
func readIndexFile(fs FS, name string, magic uint32) ([]byte, error) {
	data, err := readFile(fs, name, indexMaxBytes)
	if err != nil {
		return nil, err
	}
	be := binary.BigEndian
	if len(data) < indexHeaderSize || be.Uint32(data) != magic || castagnoli(data[8:]) != be.Uint32(data[4:]) ||
		be.Uint32(data[8:]) != indexVersion || len(data) != indexHeaderSize+int(be.Uint32(data[12:]))*indexEntrySize {
		return nil, fmt.Errorf("index file %q does not match its checksum or version", name)
	}
	return data, nil
}
