package disk

import (
	"container/list"
	"errors"
	"fmt"
	"sync"
)

// files keeps at most max segment files open, least recently used ones first to
// go. A file that was written since its last sync is synced before it is closed,
// so that a write error the kernel finds later is never missed.
type files struct {
	fs  FS
	max int

	mu     sync.Mutex
	broken error // a sync failed: nothing is synced any more
	open   map[*segment]*openFile
	lru    *list.List // of *openFile, most recent first
}

// openFile is an open segment file with the number of its users.
type openFile struct {
	File
	seg    *segment
	syncMu sync.Mutex // one sync at a time, so that none begins after one that failed
	users  int
	dirty  bool
	gone   bool // dropped while in use: the last user closes it
	place  *list.Element
}

func newFiles(fs FS, maxOpen int) *files {
	return &files{fs: fs, max: maxOpen, open: make(map[*segment]*openFile), lru: list.New()}
}

// use returns the open file of a segment; the caller releases it.
func (c *files) use(s *segment, create bool) (*openFile, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.open[s]; f != nil {
		f.users++
		c.lru.MoveToFront(f.place)
		return f, nil
	}
	for len(c.open) >= c.max {
		if done, err := c.evict(); err != nil {
			return nil, err
		} else if !done {
			break // all in use: rather one more than a deadlock
		}
	}
	file, _, err := c.fs.OpenFile(s.path(), create)
	if err != nil {
		return nil, fmt.Errorf("open segment: %w", err)
	}
	f := &openFile{File: file, seg: s, users: 1}
	f.place = c.lru.PushFront(f)
	c.open[s] = f
	return f, nil
}

func (c *files) release(f *openFile) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.users--; f.users == 0 && f.gone {
		_ = f.Close() // the segment is gone, nobody misses its bytes
	}
}

// evict closes the file unused for longest, clean ones before dirty ones.
func (c *files) evict() (bool, error) {
	const lookBack = 64
	var victim *openFile
	looked := 0
	for e := c.lru.Back(); e != nil && looked < lookBack; e = e.Prev() {
		f, _ := e.Value.(*openFile)
		if f.users > 0 {
			continue
		}
		looked++
		if !f.dirty {
			victim = f
			break
		}
		if victim == nil {
			victim = f
		}
	}
	if victim == nil {
		return false, nil
	}
	if victim.dirty {
		if c.broken != nil {
			return false, c.broken
		}
		victim.dirty = false
		if err := victim.Sync(); err != nil { // nobody else uses it
			c.broken = fmt.Errorf("sync segment %q: %w: %w", victim.seg.path(), errSync, err)
			return false, c.broken
		}
	}
	c.forget(victim)
	return true, victim.Close()
}

func (c *files) forget(f *openFile) {
	delete(c.open, f.seg)
	c.lru.Remove(f.place)
}

// drop closes the file of a segment that was replaced or removed.
func (c *files) drop(s *segment) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.open[s]
	if f == nil {
		return
	}
	c.forget(f)
	if f.users > 0 {
		f.gone = true
		return
	}
	_ = f.Close()
}

// write writes at a position of a segment that exists and has space there.
func (c *files) write(s *segment, data []byte, pos int64) error {
	f, err := c.use(s, true)
	if err != nil {
		return err
	}
	defer c.release(f)
	c.mu.Lock()
	f.dirty = true
	c.mu.Unlock()
	if _, err := f.WriteAt(data, pos); err != nil {
		return fmt.Errorf("write segment %q: %w", s.path(), err)
	}
	return nil
}

// sync makes the bytes of a segment durable.
func (c *files) sync(s *segment) error {
	f, err := c.use(s, false)
	if err != nil {
		return err
	}
	defer c.release(f)
	f.syncMu.Lock()
	defer f.syncMu.Unlock()
	c.mu.Lock()
	f.dirty = false
	err = c.broken
	c.mu.Unlock()
	if err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		err = fmt.Errorf("sync segment %q: %w: %w", s.path(), errSync, err)
		c.mu.Lock()
		c.broken = err
		c.mu.Unlock()
		return err
	}
	return nil
}

// allocate reserves space for the first size bytes of a segment.
func (c *files) allocate(s *segment, size int64) error {
	f, err := c.use(s, true)
	if err != nil {
		return err
	}
	defer c.release(f)
	if err := f.Allocate(size); err != nil {
		return fmt.Errorf("reserve %d bytes of segment %q: %w", size, s.path(), err)
	}
	return nil
}

// truncate cuts the space a segment reserved and did not use.
func (c *files) truncate(s *segment, size int64) error {
	f, err := c.use(s, false)
	if err != nil {
		return err
	}
	defer c.release(f)
	if err := f.Truncate(size); err != nil {
		return fmt.Errorf("cut segment %q to %d bytes: %w", s.path(), size, err)
	}
	return nil
}

// close closes all files.
func (c *files) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for _, f := range c.open {
		errs = append(errs, f.Close())
	}
	clear(c.open)
	c.lru.Init()
	return errors.Join(errs...)
}

// errSync marks a failed sync: what was written before it may be lost although
// the kernel now calls it clean.
var errSync = errors.New("sync failed")
