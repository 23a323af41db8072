package logstore

import (
	"errors"
	"fmt"
)

// The errors that callers tell apart with errors.Is.
var (
	ErrNotFound   = errors.New("not found")
	ErrExists     = errors.New("already exists")
	ErrInvalid    = errors.New("invalid")
	ErrBehind     = errors.New("a unit before it failed; open the writer anew")
	ErrFenced     = errors.New("fenced by a newer writer of the same identity")
	ErrOutOfRange = errors.New("offset out of range")
	ErrFull       = errors.New("no space left for the log")
	ErrClosed     = errors.New("log is closed")
	ErrStorage    = errors.New("log has stopped after a storage error")
	ErrCorrupt    = errors.New("corrupt")
)

// CorruptError names damage in committed data. The partition stops; nothing is
// deleted. It matches ErrCorrupt.
type CorruptError struct {
	File   string // path below the data directory
	Offset int64  // byte position in File
	Bytes  int64  // how many bytes are unreadable, 0 when unknown
	Reason string // what disagreed with what
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("corrupt: %s at byte %d (%d bytes): %s", e.File, e.Offset, e.Bytes, e.Reason)
}

// Is matches ErrCorrupt.
func (e *CorruptError) Is(target error) bool { return target == ErrCorrupt }
