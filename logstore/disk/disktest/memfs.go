// Package disktest is a file system in memory for tests of the disk engine and
// of what is built on it: it loses what was not synced when it crashes, fails
// the n-th call, and runs out of space.
package disktest

import (
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/millrace-io/millrace/logstore/disk"
)

// ErrCrashed is what every call gets after a crash.
var ErrCrashed = errors.New("the file system has crashed")

// sectorSize is what a disk writes whole or not at all.
const sectorSize = 512

// FS is a disk.FS in memory. What a crash keeps is modelled after a harsh disk:
// of the writes since a file's last sync any sectors may survive, in any order,
// and of the changes to a folder since its last sync any that still make sense.
type FS struct {
	mu      sync.Mutex
	files   map[string]*inode // by path; directories are inodes too
	durable map[string]*inode
	changes []change // to folders, not yet durable
	crashed bool
	calls   int
	used    int64

	// CrashAfter makes the call of that number, counted from 1, and all later
	// ones fail with ErrCrashed; 0 means never.
	CrashAfter int
	// Fault is asked before every call that changes or syncs something, with its
	// number counted from 1, and may return an error to fail it. A write that
	// fails with io.ErrShortWrite is done by half.
	Fault func(call int, op, name string) error
	// Capacity is how many bytes fit; 0 means any number.
	Capacity int64
}

type inode struct {
	dir     bool
	data    []byte
	durable []byte
	ops     []fileOp
}

// fileOp is a write, or a change of the size when data is nil.
type fileOp struct {
	at   int64
	data []byte
	size int64
}

// change is one change of a folder.
type change struct {
	dir  string
	name string // the entry that appears, or goes when node is nil
	node *inode
	old  string // an entry that goes with it: a rename
}

var _ disk.FS = (*FS)(nil)

// New returns an empty file system.
func New() *FS {
	root := &inode{dir: true}
	return &FS{files: map[string]*inode{".": root}, durable: map[string]*inode{".": root}}
}

// Calls returns how many calls changed or synced something so far.
func (fs *FS) Calls() int {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return fs.calls
}

// SetFault changes Fault while the file system is in use.
func (fs *FS) SetFault(fault func(call int, op, name string) error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.Fault = fault
}

// SetCapacity changes the space there is.
func (fs *FS) SetCapacity(bytes int64) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.Capacity = bytes
}

// Used returns how many bytes the files take.
func (fs *FS) Used() int64 {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return fs.used
}

// Bytes returns the content of a file, nil when there is none. Changing it
// changes the file, durably.
func (fs *FS) Bytes(name string) []byte {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	n := fs.files[path.Clean(name)]
	if n == nil {
		return nil
	}
	n.sync()
	return n.durable
}

// SetBytes puts a file in place, durably; nil removes it.
func (fs *FS) SetBytes(name string, data []byte) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if data == nil {
		delete(fs.files, name)
		delete(fs.durable, name)
		return
	}
	n := &inode{data: slices.Clone(data), durable: data}
	fs.files[name], fs.durable[name] = n, n
}

// Names lists all files, sorted.
func (fs *FS) Names() []string {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	var names []string
	for name, n := range fs.files {
		if !n.dir {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Clone returns a durable copy of the file system as it is.
func (fs *FS) Clone() *FS {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	c := New()
	for name, n := range fs.files {
		m := &inode{dir: n.dir, data: slices.Clone(n.data), durable: slices.Clone(n.data)}
		c.files[name], c.durable[name] = m, m
		c.used += int64(len(m.data))
	}
	return c
}

// Crash returns the file system as the next start finds it. The old one fails
// every call from now on.
func (fs *FS) Crash(rng *rand.Rand) *FS {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.crashed = true
	keep := [...]float64{0, 1, 0.5, rng.Float64()}[rng.IntN(4)]
	for _, ch := range fs.changes {
		if rng.Float64() < keep {
			ch.apply(fs.durable)
		}
	}
	after := New()
	after.Capacity = fs.Capacity
	contents := make(map[*inode]*inode)
	for name, n := range fs.durable {
		if !reachable(fs.durable, name) {
			continue
		}
		m := contents[n]
		if m == nil {
			content := n.survive(rng, keep)
			m = &inode{dir: n.dir, data: content, durable: slices.Clone(content)}
			contents[n] = m
			after.used += int64(len(content))
		}
		after.files[name], after.durable[name] = m, m
	}
	return after
}

func reachable(files map[string]*inode, name string) bool {
	for name != "." {
		name = path.Dir(name)
		if files[name] == nil {
			return false
		}
	}
	return true
}

// survive applies some of the unsynced operations to the durable content.
func (n *inode) survive(rng *rand.Rand, keep float64) []byte {
	content := slices.Clone(n.durable)
	for _, op := range n.ops {
		if op.data == nil {
			if rng.Float64() < keep {
				content = resize(content, op.size)
			}
			continue
		}
		for from := 0; from < len(op.data); {
			to := min(len(op.data), from+sectorSize-int(op.at+int64(from))%sectorSize)
			if rng.Float64() < keep {
				content = put(content, op.data[from:to], op.at+int64(from))
			}
			from = to
		}
	}
	return content
}

func resize(b []byte, size int64) []byte {
	if size <= int64(len(b)) {
		return b[:size:size]
	}
	return append(b, make([]byte, size-int64(len(b)))...)
}

func put(b, data []byte, at int64) []byte {
	if end := at + int64(len(data)); end > int64(len(b)) {
		b = resize(b, end)
	}
	copy(b[at:], data)
	return b
}

// sync makes the content durable.
func (n *inode) sync() {
	for _, op := range n.ops {
		if op.data == nil {
			n.durable = resize(n.durable, op.size)
		} else {
			n.durable = put(n.durable, op.data, op.at)
		}
	}
	n.ops = nil
}

func (ch *change) apply(files map[string]*inode) {
	if ch.old != "" {
		moved := make(map[string]*inode)
		for name, n := range files {
			if within(name, ch.old) {
				moved[ch.name+strings.TrimPrefix(name, ch.old)] = n
				delete(files, name)
			}
		}
		removeTree(files, ch.name)
		for name, n := range moved {
			files[name] = n
		}
		if len(moved) == 0 && ch.node != nil {
			files[ch.name] = ch.node
		}
		return
	}
	if ch.node == nil {
		removeTree(files, ch.name)
		return
	}
	files[ch.name] = ch.node
}

func within(name, tree string) bool { return name == tree || strings.HasPrefix(name, tree+"/") }

func removeTree(files map[string]*inode, tree string) {
	for name := range files {
		if within(name, tree) {
			delete(files, name)
		}
	}
}

// begin counts a call and says whether it fails. The mutex is held.
func (fs *FS) begin(op, name string) error {
	if fs.crashed {
		return ErrCrashed
	}
	fs.calls++
	if fs.CrashAfter > 0 && fs.calls >= fs.CrashAfter {
		fs.crashed = true
		return ErrCrashed
	}
	if fs.Fault != nil {
		if err := fs.Fault(fs.calls, op, name); err != nil {
			return &os.PathError{Op: op, Path: name, Err: err}
		}
	}
	return nil
}

func (fs *FS) change(ch change) {
	ch.apply(fs.files)
	fs.changes = append(fs.changes, ch)
}

// OpenFile opens or makes a file.
func (fs *FS) OpenFile(name string, create bool) (disk.File, int64, error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.crashed {
		return nil, 0, ErrCrashed
	}
	name = path.Clean(name)
	n := fs.files[name]
	if n == nil {
		if !create {
			return nil, 0, &os.PathError{Op: "open", Path: name, Err: os.ErrNotExist}
		}
		if fs.files[path.Dir(name)] == nil {
			return nil, 0, &os.PathError{Op: "open", Path: name, Err: os.ErrNotExist}
		}
		if err := fs.begin("create", name); err != nil {
			return nil, 0, err
		}
		n = &inode{}
		fs.change(change{dir: path.Dir(name), name: name, node: n})
	}
	return &file{fs: fs, name: name, node: n}, int64(len(n.data)), nil
}

// MkdirAll makes a directory and its parents.
func (fs *FS) MkdirAll(name string) error {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	name = path.Clean(name)
	if fs.files[name] != nil {
		return nil
	}
	if err := fs.begin("mkdir", name); err != nil {
		return err
	}
	var missing []string
	for at := name; fs.files[at] == nil; at = path.Dir(at) {
		missing = append(missing, at)
	}
	for _, at := range slices.Backward(missing) {
		fs.change(change{dir: path.Dir(at), name: at, node: &inode{dir: true}})
	}
	return nil
}

// Rename moves a file or a tree.
func (fs *FS) Rename(from, to string) error {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	from, to = path.Clean(from), path.Clean(to)
	n := fs.files[from]
	if n == nil {
		return &os.PathError{Op: "rename", Path: from, Err: os.ErrNotExist}
	}
	if err := fs.begin("rename", to); err != nil {
		return err
	}
	if old := fs.files[to]; old != nil {
		fs.used -= int64(len(old.data))
	}
	fs.change(change{dir: path.Dir(to), name: to, node: n, old: from})
	return nil
}

// RemoveAll removes a file or a tree.
func (fs *FS) RemoveAll(name string) error {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	name = path.Clean(name)
	if fs.files[name] == nil {
		return nil
	}
	if err := fs.begin("remove", name); err != nil {
		return err
	}
	for at, n := range fs.files {
		if within(at, name) {
			fs.used -= int64(len(n.data))
		}
	}
	fs.change(change{dir: path.Dir(name), name: name})
	return nil
}

// ReadDir lists a directory.
func (fs *FS) ReadDir(name string) ([]disk.FileInfo, error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.crashed {
		return nil, ErrCrashed
	}
	name = path.Clean(name)
	if n := fs.files[name]; n == nil || !n.dir {
		return nil, &os.PathError{Op: "readdir", Path: name, Err: os.ErrNotExist}
	}
	var infos []disk.FileInfo
	for at, n := range fs.files {
		if at != "." && path.Dir(at) == name {
			infos = append(infos, disk.FileInfo{Name: path.Base(at), Dir: n.dir, Size: int64(len(n.data))})
		}
	}
	slices.SortFunc(infos, func(a, b disk.FileInfo) int { return strings.Compare(a.Name, b.Name) })
	return infos, nil
}

// SyncDir makes the changes of one directory durable.
func (fs *FS) SyncDir(name string) error {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	name = path.Clean(name)
	if fs.files[name] == nil {
		return &os.PathError{Op: "syncdir", Path: name, Err: os.ErrNotExist}
	}
	if err := fs.begin("syncdir", name); err != nil {
		return err
	}
	rest := fs.changes[:0]
	for _, ch := range fs.changes {
		if ch.dir == name {
			ch.apply(fs.durable)
		} else {
			rest = append(rest, ch)
		}
	}
	fs.changes = rest
	return nil
}

type file struct {
	fs   *FS
	name string
	node *inode
}

func (f *file) ReadAt(p []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.fs.crashed {
		return 0, ErrCrashed
	}
	if off >= int64(len(f.node.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.node.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// grow takes the space for a file of that size. The mutex is held.
func (f *file) grow(size int64) error {
	more := size - int64(len(f.node.data))
	if more > 0 && f.fs.Capacity > 0 && f.fs.used+more > f.fs.Capacity {
		return &os.PathError{Op: "grow", Path: f.name, Err: syscall.ENOSPC}
	}
	f.fs.used += max(0, more)
	return nil
}

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	fault := f.fs.begin("write", f.name)
	if errors.Is(fault, io.ErrShortWrite) {
		p = p[:len(p)/2]
	} else if fault != nil && !errors.Is(fault, ErrCrashed) {
		return 0, fault
	} else if fault != nil && f.fs.calls != f.fs.CrashAfter {
		return 0, fault
	} // the write in which the power goes may reach the disk
	if err := f.grow(off + int64(len(p))); err != nil {
		return 0, err
	}
	f.node.data = put(f.node.data, p, off)
	f.node.ops = append(f.node.ops, fileOp{at: off, data: append([]byte{}, p...)})
	if fault != nil {
		return len(p), fault
	}
	return len(p), nil
}

func (f *file) Truncate(size int64) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.fs.begin("truncate", f.name); err != nil {
		return err
	}
	if err := f.grow(size); err != nil {
		return err
	}
	f.fs.used -= max(0, int64(len(f.node.data))-size)
	f.node.data = resize(f.node.data, size)
	f.node.ops = append(f.node.ops, fileOp{size: size})
	return nil
}

func (f *file) Allocate(size int64) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.fs.begin("allocate", f.name); err != nil {
		return err
	}
	if size <= int64(len(f.node.data)) {
		return nil
	}
	if err := f.grow(size); err != nil {
		return err
	}
	f.node.data = resize(f.node.data, size)
	f.node.ops = append(f.node.ops, fileOp{size: size})
	return nil
}

func (f *file) Sync() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.fs.begin("sync", f.name); err != nil {
		return err
	}
	f.node.sync()
	return nil
}

func (f *file) Close() error { return nil }
