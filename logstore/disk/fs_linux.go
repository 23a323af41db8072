package disk

import (
	"errors"
	"os"
	"syscall"
)

func fdatasync(f *os.File) error {
	for {
		err := syscall.Fdatasync(int(f.Fd()))
		if err != syscall.EINTR {
			return os.NewSyscallError("fdatasync", err)
		}
	}
}

// allocate extends f to size with space behind every byte. On a file system that
// cannot reserve, it only extends, and a full disk shows when writing.
func allocate(f *os.File, size int64) error {
	for {
		err := syscall.Fallocate(int(f.Fd()), 0, 0, size)
		switch {
		case err == nil:
			return nil
		case err == syscall.EINTR:
		case errors.Is(err, syscall.EOPNOTSUPP) || err == syscall.ENOSYS:
			info, err := f.Stat()
			if err != nil || info.Size() >= size {
				return err
			}
			return f.Truncate(size)
		default:
			return os.NewSyscallError("fallocate", err)
		}
	}
}
