package disk

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
)

// journal is the circle of frames. Its space is reserved at once, written by the
// first lap, and overwritten in place from then on, which is what makes a sync
// cheap. It is the committer's alone.
type journal struct {
	file  File
	size  int64 // of the circle
	logID uint64

	pos      int64 // where the next frame goes
	lap      uint64
	sequence uint64 // of the next frame
	durable  uint64 // the highest sequence that is durable

	head int64        // bytes used since the log was opened, what a lap's end wasted included
	tail atomic.Int64 // head at the newest durable checkpoint, which the keeper moves
}

// journalPos is a place in the journal.
type journalPos struct {
	pos      int64
	lap      uint64
	sequence uint64
	head     int64
}

func openJournal(fs FS, size int64) (*journal, error) {
	f, have, err := fs.OpenFile(journalName, true)
	if err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	if have < size {
		if err := f.Allocate(size); err != nil {
			return nil, errors.Join(fmt.Errorf("reserve %d bytes for the journal: %w", size, err), f.Close())
		}
	}
	return &journal{file: f, size: size}, nil
}

// here is where the next frame goes.
func (j *journal) here() journalPos {
	return journalPos{pos: j.pos, lap: j.lap, sequence: j.sequence, head: j.head}
}

// need returns how much of the circle n bytes take, and whether they begin a lap.
func (j *journal) need(n int64) (used int64, wrap bool) {
	if j.pos+n > j.size {
		return j.size - j.pos + n, true
	}
	return n, false
}

// fits reports whether n bytes can be written without touching what the newest
// checkpoint still needs.
func (j *journal) fits(n int64) bool {
	used, _ := j.need(n)
	return j.head-j.tail.Load()+used <= j.size
}

// used is the part of the circle that replay would read.
func (j *journal) used() int64 { return j.head - j.tail.Load() }

// wrap begins the next lap when n bytes do not fit into this one.
func (j *journal) wrap(n int64) {
	if used, wrap := j.need(n); wrap {
		j.head += used - n
		j.pos = 0
		j.lap++
	}
}

// write makes frames durable that were built for the place after wrap.
func (j *journal) write(frames []byte) error {
	if _, err := j.file.WriteAt(frames, j.pos); err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	if err := j.file.Sync(); err != nil {
		return fmt.Errorf("sync journal: %w: %w", errSync, err)
	}
	j.pos += int64(len(frames))
	j.head += int64(len(frames))
	j.durable = j.sequence - 1
	return nil
}

// journalReader reads frames from a journal file through a window.
type journalReader struct {
	file   File
	size   int64 // bytes that are there
	window []byte
	at     int64 // position of the window
}

const (
	windowBytes = 1 << 20
	// maxFrameBytes bounds a frame when its length cannot be trusted yet.
	maxFrameBytes = 1 << 30
)

// bytes returns n bytes at pos, fewer at the end of the file. They are valid
// until the next call.
func (r *journalReader) bytes(pos, n int64) ([]byte, error) {
	n = min(n, r.size-pos)
	if n <= 0 {
		return nil, nil
	}
	if pos < r.at || pos+n > r.at+int64(len(r.window)) {
		want := min(max(n, windowBytes), r.size-pos)
		if int64(cap(r.window)) < want {
			r.window = make([]byte, want)
		}
		r.window = r.window[:want]
		if _, err := r.file.ReadAt(r.window, pos); err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("read journal at byte %d: %w", pos, err)
		}
		r.at = pos
	}
	return r.window[pos-r.at : pos-r.at+n], nil
}

// frame decodes the frame at pos and returns its bytes too, which may be cut
// when the frame's length runs over the end of the file.
func (r *journalReader) frame(pos int64) (frame, []byte, error) {
	data, err := r.bytes(pos, frameHeaderSize)
	if err != nil {
		return frame{}, nil, err
	}
	length, ok := frameLength(data)
	if !ok || length > r.size-pos {
		return frame{}, nil, errTorn
	}
	if data, err = r.bytes(pos, length); err != nil {
		return frame{}, nil, err
	}
	f, err := parseFrame(data)
	return f, data, err
}

// openJournalReader reads the journal as it is on disk.
func openJournalReader(fs FS) (*journalReader, error) {
	f, size, err := fs.OpenFile(journalName, false)
	if errors.Is(err, os.ErrNotExist) {
		return &journalReader{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	return &journalReader{file: f, size: size}, nil
}

func (r *journalReader) close() error {
	if r.file == nil {
		return nil
	}
	return r.file.Close()
}
