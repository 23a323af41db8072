// Package disk is the log engine embedded in the worker: a data directory with
// one journal, and segments per partition that hold exactly Kafka's record batch
// bytes.
//
// Four nouns explain it. A unit is what a writer appends: batches for any number
// of partitions and offsets of consumer groups, all or nothing. The journal is
// one file, written in circles: a frame of it commits a unit, and one write and
// one fdatasync commit all units that wait. A segment holds the batches of a
// partition from a base offset on. The checkpoint says up to where the segments
// are durable, and where in the journal replay begins.
//
// A small batch is in the journal's frame; afterwards it stays in the
// partition's tail in memory, which is written to the segment in larger pieces.
// A batch of 64 KiB and more goes to its segment first, is synced there, and the
// frame only refers to it. Topics, writer epochs and group offsets are records of
// three internal topics, so the same frames commit them.
//
// Everything acknowledged was synced. When a sync fails the log stops for good:
// nothing is acknowledged any more, Err says why, and the process should end
// (Options.OnStorageError) and start over from what is on disk.
//
// FORMAT.md describes the files.
package disk

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace-io/millrace/logstore"
)

// Options are the settings of Open. The zero value is right for production.
type Options struct {
	Logger     *slog.Logger          // nil discards
	Registerer prometheus.Registerer // nil registers nothing
	FS         FS                    // nil is the real directory
	Clock      Clock                 // nil is the machine's clock

	JournalBytes  int64 // size of the journal's circle; 0 means 256 MiB
	SegmentBytes  int64 // roll a segment at this size unless its topic says otherwise; 0 means 256 MiB
	BypassBytes   int   // batches of this size and more skip the journal; 0 means 64 KiB
	TailBytes     int   // write a partition's tail to its segment at this size; 0 means 256 KiB
	TailsBytes    int64 // most bytes in all tails together; 0 means 64 MiB
	QueueBytes    int64 // most bytes accepted and not yet durable; 0 means 64 MiB
	ReserveBytes  int64 // space kept for internal topics and offsets on a full disk; 0 means 64 MiB, negative means none
	MaxBatchBytes int   // largest batch accepted; 0 means 80 MiB
	OpenFiles     int   // most segment files open at a time; 0 means 512, or a third of what the process may open

	MaintainEvery      time.Duration // between retention and compaction runs; 0 means 10 s, negative means only Maintain
	TombstoneRetention time.Duration // how long a compacted topic keeps a deletion; 0 means 24 h

	// OnStorageError is called once when the log has stopped after a storage
	// error. The process should end with the exit code for it.
	OnStorageError func(error)
}

// Limits of Options, each with its reason.
const (
	minJournalBytes = 64 << 10    // a frame may take a quarter of it
	maxJournalBytes = 64 << 30    // more makes recovery slow and gains nothing
	minSegmentBytes = 4 << 10     // smaller ones are all overhead
	maxSegmentBytes = 1 << 30     // positions in index files have 32 bits
	maxGroupBytes   = 4 << 20     // frames of one write: more would delay the first in it
	maxEntries      = 20_000      // runs of batches in one unit: two topics of the most partitions
	maxIdentity     = 1 << 10     // length of a writer's identity and a group's name: they are keys
	syncers         = 16          // concurrent syncs of large batches and checkpoints: the disk's queue
	allocateMin     = 64 << 10    // first step of reserving space for a segment
	allocateMax     = 64 << 20    // last step
	farFuture       = time.Minute // pause of maintenance when it runs only by hand
)

func (o *Options) defaults(dir string) error {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.FS == nil {
		if err := os.MkdirAll(dir, dirMode); err != nil {
			return err
		}
		o.FS = OS(dir)
	}
	if o.Clock == nil {
		o.Clock = SystemClock{}
	}
	setDefault(&o.JournalBytes, 256<<20)
	setDefault(&o.SegmentBytes, 256<<20)
	setDefault(&o.BypassBytes, 64<<10)
	setDefault(&o.TailBytes, 256<<10)
	setDefault(&o.TailsBytes, 64<<20)
	setDefault(&o.QueueBytes, 64<<20)
	setDefault(&o.ReserveBytes, 64<<20)
	setDefault(&o.MaxBatchBytes, 80<<20)
	setDefault(&o.OpenFiles, defaultOpenFiles())
	setDefault(&o.MaintainEvery, 10*time.Second)
	setDefault(&o.TombstoneRetention, 24*time.Hour)
	if o.JournalBytes < minJournalBytes || o.JournalBytes > maxJournalBytes {
		return fmt.Errorf("journal of %d bytes: %d to %d are allowed: %w", o.JournalBytes, minJournalBytes, int64(maxJournalBytes), logstore.ErrInvalid)
	}
	if o.SegmentBytes < minSegmentBytes || o.SegmentBytes > maxSegmentBytes {
		return fmt.Errorf("segments of %d bytes: %d to %d are allowed: %w", o.SegmentBytes, minSegmentBytes, maxSegmentBytes, logstore.ErrInvalid)
	}
	return nil
}

// defaultOpenFiles leaves room for the process's other files.
func defaultOpenFiles() int {
	const enough, least = 512, 16
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return enough
	}
	return int(max(least, min(enough, limit.Cur/3)))
}

func setDefault[T int | int64 | time.Duration](v *T, otherwise T) {
	if *v == 0 {
		*v = otherwise
	}
}

// Log is an open data directory. It fulfils logstore.Log.
type Log struct {
	o       Options
	fs      FS
	log     *slog.Logger
	clock   Clock
	metrics *metrics
	lock    io.Closer
	files   *files
	tables  [tableCount]*topic

	tailBuffers buffers
	tailBytes   atomic.Int64

	journal   *journal
	committer committer
	bypasses  bypassPool
	reserve   reserve
	keeper    keeper
	running   sync.WaitGroup

	closing chan struct{} // closed by Close: nobody waits any longer
	stopped chan struct{} // closed when the log has failed

	mu       sync.Mutex
	work     sync.Cond // the committer waits for the fields below to change
	queue    []*request
	queued   queueBudget
	ioDone   bool  // a bypass job has ended
	ckptWant bool  // somebody asked for a checkpoint
	ckptRuns bool  // the keeper is writing one
	ckptFull error // why the last one had no space
	closed   bool
	failed   error
	topics   map[string]*topic
	names    map[string]bool // names that are being created or whose folder is being removed
	writers  map[string]*identity
	catalog  *logstore.Catalog
	outdated chan struct{} // the catalog's

	groupsMu sync.Mutex
	groups   map[string]map[logstore.TopicPartition]int64
}

var _ logstore.Log = (*Log)(nil)

// Open opens the log in dir and makes it when there is none. It replays what the
// last process left in the journal. Only one process can have it open.
func Open(dir string, o Options) (*Log, error) {
	l, err := open(dir, o)
	if err != nil {
		return nil, fmt.Errorf("open log %q: %w", dir, err)
	}
	return l, nil
}

func open(dir string, o Options) (*Log, error) {
	if err := o.defaults(dir); err != nil {
		return nil, err
	}
	l := &Log{
		o: o, fs: o.FS, log: o.Logger, clock: o.Clock,
		files:   newFiles(o.FS, o.OpenFiles),
		closing: make(chan struct{}), stopped: make(chan struct{}),
		topics: make(map[string]*topic), names: make(map[string]bool), writers: make(map[string]*identity),
		groups: make(map[string]map[logstore.TopicPartition]int64),
	}
	l.work.L = &l.mu
	l.tailBuffers.keep = int(o.TailsBytes / int64(o.TailBytes) / 4)
	l.queued.limit = o.QueueBytes
	l.reserve = reserve{fs: o.FS, want: o.ReserveBytes}
	l.committer.log = l
	l.keeper.init(l)
	lock, epoch, err := takeLock(l.fs)
	if err != nil {
		return nil, err
	}
	l.lock = lock
	if err := l.start(); err != nil {
		return nil, errors.Join(err, l.files.close(), l.reserve.close(), l.closeJournal(), lock.Close())
	}
	l.log.Debug("log is open", "opening", epoch)
	return l, nil
}

// start brings the directory into a state from which appends can go on, and
// starts the log's goroutines.
func (l *Log) start() error {
	var err error
	if l.metrics, err = newMetrics(l.o.Registerer); err != nil {
		return err
	}
	if err := l.recover(); err != nil {
		return err
	}
	if err := l.reserve.open(); err != nil {
		l.log.Warn("space reserve for offsets could not be made", "bytes", l.o.ReserveBytes, "err", err)
	}
	l.outdated = make(chan struct{})
	l.catalog = l.newCatalog()
	l.bypasses.start(l)
	l.running.Go(l.committer.run)
	l.running.Go(l.keeper.run)
	return nil
}

func (l *Log) closeJournal() error {
	if l.journal == nil {
		return nil
	}
	return l.journal.file.Close()
}

// Err returns why the log has stopped, nil while it works. The error matches
// logstore.ErrStorage.
func (l *Log) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failed
}

// Failed is closed when the log has stopped after a storage error.
func (l *Log) Failed() <-chan struct{} { return l.stopped }

// fail stops the log for good. The first cause counts.
func (l *Log) fail(cause error) {
	l.mu.Lock()
	if l.failed != nil {
		l.mu.Unlock()
		return
	}
	l.failed = fmt.Errorf("%w: %w", logstore.ErrStorage, cause)
	err := l.failed
	l.queued.end(err)
	close(l.stopped)
	l.work.Broadcast()
	l.mu.Unlock()
	l.metrics.failed.Set(1)
	l.log.Error("log has stopped after a storage error", "err", cause)
	if l.o.OnStorageError != nil {
		l.o.OnStorageError(err)
	}
}

// Close commits what was accepted, writes every record to its segment, and
// releases the directory.
func (l *Log) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	close(l.closing)
	l.queued.end(logstore.ErrClosed)
	l.work.Broadcast()
	l.mu.Unlock()
	l.running.Wait() // the committer ends after the queue, then the keeper after the last checkpoint
	l.bypasses.stop()
	l.metrics.unregister(l.o.Registerer)
	err := errors.Join(l.files.close(), l.reserve.close(), l.closeJournal(), l.lock.Close())
	if failed := l.Err(); failed != nil {
		return failed
	}
	return err
}

// Bounds returns the offset of the first record kept and the durable end.
func (l *Log) Bounds(topic string, partition int32) (start, end int64, err error) {
	p, err := l.partition(topic, partition)
	if err != nil {
		return 0, 0, err
	}
	start, end = p.bounds()
	return start, end, nil
}

// partition finds a partition of the topics there are.
func (l *Log) partition(name string, id int32) (*partition, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, logstore.ErrClosed
	}
	return l.partitionLocked(name, id)
}

func (l *Log) partitionLocked(name string, id int32) (*partition, error) {
	t := l.topics[name]
	if t == nil || t.deleting {
		return nil, fmt.Errorf("topic %q: %w", name, logstore.ErrNotFound)
	}
	if id < 0 || int(id) >= len(t.parts) {
		return nil, fmt.Errorf("partition %d of topic %q: %w", id, name, logstore.ErrNotFound)
	}
	return t.parts[id], nil
}
