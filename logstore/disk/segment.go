package disk

import (
	"fmt"
	"sync"
	"sync/atomic"
)

// segment is one file of a partition: record batches back to back, named by the
// offset of the first.
type segment struct {
	part *partition
	base int64

	// Guarded by part.mu.
	size     int64 // committed bytes that are in the file
	next     int64 // offset after the last committed record, in the file or in the tail
	maxTime  int64 // highest timestamp
	replaced bool  // compaction put another file in its place
	cleaned  bool  // compaction has been here

	index segmentIndex

	allocated int64       // the committer's: bytes of space behind the file
	dirSynced atomic.Bool // the file's name is durable

	// The bypass pool's.
	ioMu    sync.Mutex
	jobs    []*bypassJob
	running bool
}

func (s *segment) path() string { return s.file(".log") }

func (s *segment) file(suffix string) string {
	return fmt.Sprintf("%s/%020d%s", s.part.dir(), s.base, suffix)
}
