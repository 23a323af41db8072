//go:build !linux

package disk

import "os"

func fdatasync(f *os.File) error { return f.Sync() }

// allocate only extends the file: a full disk shows when writing.
func allocate(f *os.File, size int64) error {
	info, err := f.Stat()
	if err != nil || info.Size() >= size {
		return err
	}
	return f.Truncate(size)
}
