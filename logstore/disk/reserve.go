package disk

import (
	"errors"
	"sync"
)

// reserve is a file that takes space away from users' records, so that offsets
// and internal topics still have some when the disk is full. It is given up as a
// whole and made again, in pieces, when there is space.
type reserve struct {
	fs   FS
	want int64

	mu   sync.Mutex
	file File
	have int64
}

// reservePiece is how much is reserved at a time: what is left of a nearly full
// disk counts too.
const reservePiece = 4 << 20

func (r *reserve) open() error {
	if r.want <= 0 {
		return nil
	}
	f, size, err := r.fs.OpenFile(reserveName, true)
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.file, r.have = f, 0
	if size > r.want {
		err = f.Truncate(r.want)
	}
	r.mu.Unlock()
	if err != nil {
		return err
	}
	return r.refill()
}

// refill reserves what is missing, as far as there is space.
func (r *reserve) refill() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.file != nil && r.have < r.want {
		next := min(r.want, r.have+reservePiece)
		if r.have == 0 && r.file.Allocate(r.want) == nil {
			next = r.want
		} else if err := r.file.Allocate(next); err != nil {
			return err
		}
		r.have = next
	}
	return nil
}

// release gives the space free and reports whether there was any.
func (r *reserve) release() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.file == nil || r.have == 0 {
		return false
	}
	r.have = 0
	return r.file.Truncate(0) == nil
}

func (r *reserve) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.file == nil {
		return nil
	}
	err := r.file.Close()
	r.file = nil
	if err != nil {
		return errors.Join(errors.New("close space reserve"), err)
	}
	return nil
}
