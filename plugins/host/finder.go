package host

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/millrace-io/millrace/plugins/internal/wire"
)

const (
	// namePrefix is what the name of a plugin's binary begins with.
	namePrefix = "millrace-"
	// cacheFormat is part of the names of cached answers; it changes when Class
	// or the protocol does.
	cacheFormat = 1
)

// simpleSuffixes are what Connect's rule cuts from the simple name of a class.
var simpleSuffixes = []string{"Connector", "Converter", "Predicate"} //nolint:gochecknoglobals // a constant list

// Finder knows the plugins in some directories. Its methods may be called from
// any goroutine.
type Finder struct {
	dirs     []string
	cacheDir string
	o        Options
	log      *slog.Logger
	ready    chan struct{}
	first    sync.Once

	mu      sync.Mutex // guards the fields below
	classes []Class
	names   map[string]int // into classes; -1 is ambiguous
	broken  []error
}

// NewFinder makes a Finder that knows nothing until Scan. In cacheDir, when it is
// set, it keeps what binaries have answered.
func NewFinder(dirs []string, cacheDir string, o Options) *Finder {
	log := o.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Finder{dirs: dirs, cacheDir: cacheDir, o: o, log: log, ready: make(chan struct{})}
}

// Scan looks for executables named millrace-* in the directories and asks them,
// several at a time, who they are. A plugin that does not answer is reported by
// Broken and skipped; the error is about the directories or ctx only.
func (f *Finder) Scan(ctx context.Context) error {
	defer f.first.Do(func() { close(f.ready) })
	paths, err := f.binaries()
	if err != nil {
		return err
	}
	answers := make([][]Class, len(paths))
	failures := make([]error, len(paths))
	var wg sync.WaitGroup
	slots := make(chan struct{}, max(2, 2*runtime.NumCPU()))
	for i, path := range paths {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			answers[i], failures[i] = f.ask(ctx, path)
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	f.keep(paths, answers, failures)
	return nil
}

// binaries returns the paths of the executables, those of earlier directories
// first.
func (f *Finder) binaries() ([]string, error) {
	self, err := os.Executable()
	if err != nil {
		self = "" // then nothing is excluded
	}
	var paths []string
	for _, dir := range f.dirs {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, os.ErrNotExist) {
			f.log.Debug("plugin directory is not there", slog.String("dir", dir))
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read plugin directory: %w", err)
		}
		for _, e := range entries {
			if !strings.HasPrefix(e.Name(), namePrefix) || e.Name() == "millrace" {
				continue
			}
			path, err := filepath.Abs(filepath.Join(dir, e.Name()))
			if err != nil {
				return nil, err
			}
			info, err := os.Stat(path)
			if err != nil || !info.Mode().IsRegular() || info.Mode()&0o111 == 0 || path == self || slices.Contains(paths, path) {
				continue
			}
			paths = append(paths, path)
		}
	}
	return paths, nil
}

// ask returns the classes of a binary, from the cache when it has answered
// before.
func (f *Finder) ask(ctx context.Context, path string) ([]Class, error) {
	bin, err := openBinary(path)
	if err != nil {
		return nil, err
	}
	checksum := bin.checksum
	if err := bin.Close(); err != nil {
		return nil, err
	}
	cached := filepath.Join(f.cacheDir, fmt.Sprintf("%s.v%d.%d.json", checksum, wire.ProtocolVersion, cacheFormat))
	if f.cacheDir != "" {
		var classes []Class
		if b, err := os.ReadFile(cached); err == nil && json.Unmarshal(b, &classes) == nil {
			return at(classes, path, checksum), nil
		}
	}
	p, err := Start(ctx, Class{Name: filepath.Base(path), Path: path, Checksum: checksum}, "", f.o)
	if err != nil {
		return nil, err
	}
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	classes, err := p.describe(call)
	end, cancelEnd := context.WithTimeout(ctx, poolEndTimeout)
	defer cancelEnd()
	if closeErr := p.Close(end); err == nil && closeErr != nil {
		f.log.DebugContext(ctx, "plugin does not leave", slog.String(wire.LogPlugin, filepath.Base(path)), slog.Any(wire.LogErr, closeErr))
	}
	if err != nil {
		return nil, err
	}
	f.remember(cached, classes)
	return at(classes, path, checksum), nil
}

func at(classes []Class, path, checksum string) []Class {
	for i := range classes {
		classes[i].Path, classes[i].Checksum = path, checksum
	}
	return classes
}

// remember writes an answer to the cache, whole or not at all. A cache that
// cannot be written only costs time.
func (f *Finder) remember(file string, classes []Class) {
	if f.cacheDir == "" {
		return
	}
	b, err := json.Marshal(classes)
	if err == nil {
		err = os.MkdirAll(f.cacheDir, 0o700)
	}
	if err == nil {
		err = writeWhole(f.cacheDir, file, b)
	}
	if err != nil {
		f.log.Warn("plugin cache cannot be written", slog.Any(wire.LogErr, err))
	}
}

func writeWhole(dir, file string, b []byte) error {
	tmp, err := os.CreateTemp(dir, "answer-*")
	if err != nil {
		return err
	}
	_, err = tmp.Write(b)
	err = errors.Join(err, tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), file)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	return nil
}

// keep makes the answers what the Finder knows.
func (f *Finder) keep(paths []string, answers [][]Class, failures []error) {
	var classes []Class
	var broken []error
	type id struct{ name, typ string }
	from := make(map[id]string)
	for i, path := range paths {
		if failures[i] != nil {
			broken = append(broken, failures[i])
			f.log.Error("plugin is skipped", slog.String(wire.LogPlugin, path), slog.Any(wire.LogErr, failures[i]))
			continue
		}
		for _, c := range answers[i] {
			first, twice := from[id{c.Name, c.Type}]
			if !twice {
				from[id{c.Name, c.Type}] = path
				classes = append(classes, c)
				continue
			}
			if c.Type == wire.TypeSource || c.Type == wire.TypeSink { // every plugin brings the converters
				broken = append(broken, fmt.Errorf("class %q is in %s and in %s; the first one is used", c.Name, first, path))
			}
		}
	}
	slices.SortStableFunc(classes, func(a, b Class) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Type, b.Type))
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	f.classes, f.broken, f.names = classes, broken, nameIndex(classes)
}

// nameIndex maps every name to its class: full names first, then aliases, and
// simple names by Connect's rule where they are unambiguous.
func nameIndex(classes []Class) map[string]int {
	names := make(map[string]int)
	for i, c := range classes {
		if _, taken := names[c.Name]; !taken { // a converter is listed once per type
			names[c.Name] = i
		}
	}
	full := len(names)
	aliases := make(map[string]int, full)
	for i, c := range classes {
		if names[c.Name] != i {
			continue
		}
		for _, alias := range append(simpleNames(c.Name), c.Aliases...) {
			if j, taken := aliases[alias]; taken && j != i {
				aliases[alias] = -1
				continue
			}
			aliases[alias] = i
		}
	}
	for alias, i := range aliases {
		if _, taken := names[alias]; !taken {
			names[alias] = i
		}
	}
	return names
}

// simpleNames returns the simple class name, and it without its type.
func simpleNames(class string) []string {
	simple := class[strings.LastIndexAny(class, ".$")+1:]
	names := []string{simple}
	for _, suffix := range simpleSuffixes {
		if short, ok := strings.CutSuffix(simple, suffix); ok && short != "" {
			names = append(names, short)
		}
	}
	return names
}

// Ready is closed when the first Scan is over.
func (f *Finder) Ready() <-chan struct{} { return f.ready }

// Classes returns everything found, by name. The caller must not change it.
func (f *Finder) Classes() []Class {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.classes
}

// Lookup finds a class by its full name, a listed alias, or by Connect's rule:
// the simple class name, with or without its type. An ambiguous name finds
// nothing.
func (f *Finder) Lookup(name string) (Class, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i, ok := f.names[name]
	if !ok || i < 0 {
		return Class{}, false
	}
	return f.classes[i], true
}

// Broken returns what was wrong with plugins at the last Scan.
func (f *Finder) Broken() []error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.broken
}
