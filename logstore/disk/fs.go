package disk

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// FS is the file system below one data directory. Names are slash-separated
// paths relative to it. Tests put a crashable or fault-injecting one here.
type FS interface {
	// OpenFile opens a file for reading and writing and returns its size. With
	// create it makes the file when it is missing; without, the error then
	// matches os.ErrNotExist.
	OpenFile(name string, create bool) (File, int64, error)
	// MkdirAll makes a directory and its parents.
	MkdirAll(name string) error
	// Rename replaces to by from, atomically.
	Rename(from, to string) error
	// RemoveAll removes a file or a tree; that it is missing is no error.
	RemoveAll(name string) error
	// ReadDir lists a directory, sorted by name. A missing one gives an error
	// that matches os.ErrNotExist.
	ReadDir(name string) ([]FileInfo, error)
	// SyncDir makes the entries of a directory durable.
	SyncDir(name string) error
}

// File is one open file. Reads and writes at explicit positions may run
// concurrently.
type File interface {
	io.ReaderAt
	io.WriterAt
	// Truncate cuts or extends the file to size.
	Truncate(size int64) error
	// Allocate reserves space for the first size bytes, so that writing them
	// cannot run out of space, and extends the file to that size.
	Allocate(size int64) error
	// Sync makes what was written durable. It is never called again on a file
	// after it failed.
	Sync() error
	io.Closer
}

// FileInfo is one entry of a directory.
type FileInfo struct {
	Name string
	Dir  bool
	Size int64
}

// locker is the optional ability of an FS to keep other processes out.
type locker interface {
	// Lock takes an exclusive lock that ends with the process, or says at once
	// that somebody else has it.
	Lock(name string) (io.Closer, error)
}

// Clock tells the time of day, for retention.
type Clock interface{ Now() time.Time }

// SystemClock is the Clock of the machine.
type SystemClock struct{}

// Now returns the time of day.
func (SystemClock) Now() time.Time { return time.Now() }

// errLocked says that another process holds the lock.
var errLocked = errors.New("locked by another process")

// OS returns the FS of a real directory.
func OS(dir string) FS { return osFS{dir} }

type osFS struct{ dir string }

func (o osFS) path(name string) string { return filepath.Join(o.dir, filepath.FromSlash(name)) }

// File modes: the log holds users' data, so nobody else reads it.
const (
	dirMode  = 0o700
	fileMode = 0o600
)

func (o osFS) OpenFile(name string, create bool) (File, int64, error) {
	flag := os.O_RDWR
	if create {
		flag |= os.O_CREATE
	}
	f, err := os.OpenFile(o.path(name), flag, fileMode)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return osFile{f}, info.Size(), nil
}

func (o osFS) MkdirAll(name string) error { return os.MkdirAll(o.path(name), dirMode) }

func (o osFS) Rename(from, to string) error { return os.Rename(o.path(from), o.path(to)) }

func (o osFS) RemoveAll(name string) error { return os.RemoveAll(o.path(name)) }

func (o osFS) ReadDir(name string) ([]FileInfo, error) {
	entries, err := os.ReadDir(o.path(name))
	if err != nil {
		return nil, err
	}
	infos := make([]FileInfo, 0, len(entries))
	for _, e := range entries {
		info, err := e.Info()
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		infos = append(infos, FileInfo{Name: e.Name(), Dir: e.IsDir(), Size: info.Size()})
	}
	slices.SortFunc(infos, func(a, b FileInfo) int { return strings.Compare(a.Name, b.Name) })
	return infos, nil
}

func (o osFS) SyncDir(name string) error {
	d, err := os.Open(o.path(name))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (o osFS) Lock(name string) (io.Closer, error) {
	f, err := os.OpenFile(o.path(name), os.O_RDWR|os.O_CREATE, fileMode)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errLocked
		}
		return nil, fmt.Errorf("lock %q: %w", name, err)
	}
	return f, nil
}

// osFile adds to os.File what package os does not have.
type osFile struct{ *os.File }

func (f osFile) Sync() error { return fdatasync(f.File) }

func (f osFile) Allocate(size int64) error { return allocate(f.File, size) }

// isFull reports whether err says that there is no space, which heals by itself,
// except where a sync says so: then something is lost.
func isFull(err error) bool {
	if errors.Is(err, errSync) {
		return false
	}
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// outOfFiles reports whether err says that there are no file descriptors left,
// which heals by itself.
func outOfFiles(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}

// writeFile writes a small file and makes its content durable, not its name.
func writeFile(fs FS, name string, data []byte) error {
	f, _, err := fs.OpenFile(name, true)
	if err != nil {
		return err
	}
	if err = f.Truncate(0); err == nil {
		if _, err = f.WriteAt(data, 0); err == nil {
			if err = f.Sync(); err != nil {
				err = fmt.Errorf("%w: %w", errSync, err)
			}
		}
	}
	return errors.Join(err, f.Close())
}

// readFile reads a whole small file of at most limit bytes.
func readFile(fs FS, name string, limit int64) ([]byte, error) {
	f, size, err := fs.OpenFile(name, false)
	if err != nil {
		return nil, err
	}
	if size > limit {
		return nil, errors.Join(fmt.Errorf("file %q has %d bytes, at most %d make sense", name, size, limit), f.Close())
	}
	data := make([]byte, size)
	if _, err = f.ReadAt(data, 0); err == io.EOF {
		err = nil
	}
	return data, errors.Join(err, f.Close())
}
