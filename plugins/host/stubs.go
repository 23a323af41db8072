package host

import (
	"context"
	"errors"
	"time"

	"github.com/millrace-io/millrace/plugins/sdk"
)

var errNotYet = errors.New("host: not written yet")

// DefaultRecordMaxBytes bounds one record.
const DefaultRecordMaxBytes = 64 << 20

// Finder knows the plugins of some directories.
type Finder struct{}

// NewFinder makes a Finder; Scan fills it.
func NewFinder(dirs []string, cacheDir string, o Options) *Finder { return &Finder{} }

// Scan looks for executables named millrace-*.
func (f *Finder) Scan(ctx context.Context) error { return errNotYet }

// Ready is closed after the first Scan.
func (f *Finder) Ready() <-chan struct{} { return nil }

// Classes returns everything found.
func (f *Finder) Classes() []Class { return nil }

// Lookup finds a class by name or alias.
func (f *Finder) Lookup(name string) (Class, bool) { return Class{}, false }

// Broken returns what is wrong with plugins that were skipped.
func (f *Finder) Broken() []error { return nil }

// Process is a running plugin.
type Process struct{}

// Start starts the plugin of a class for a connector.
func Start(ctx context.Context, c Class, connector string, o Options) (*Process, error) {
	return nil, errNotYet
}

// Validate checks a config.
func (p *Process) Validate(ctx context.Context, class string, config map[string]string) (Validation, error) {
	return Validation{}, errNotYet
}

// PlanTasks splits the work.
func (p *Process) PlanTasks(ctx context.Context, class string, config map[string]string, max int) ([]map[string]string, error) {
	return nil, errNotYet
}

// AlterOffsets asks whether offsets may be set.
func (p *Process) AlterOffsets(ctx context.Context, class string, config map[string]string, offsets []sdk.Position) (external bool, err error) {
	return false, errNotYet
}

// OpenSource starts a source task.
func (p *Process) OpenSource(ctx context.Context, spec SourceSpec, s Services) (*SourceStream, error) {
	return nil, errNotYet
}

// OpenSink starts a sink task.
func (p *Process) OpenSink(ctx context.Context, spec SinkSpec, s Services) (*SinkStream, error) {
	return nil, errNotYet
}

// PID returns the process id.
func (p *Process) PID() int { return 0 }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return nil }

// Err says why the process ended.
func (p *Process) Err() error { return errNotYet }

// Usage returns what the process uses.
func (p *Process) Usage() (rssBytes int64, cpu time.Duration) { return 0, 0 }

// Close ends the process.
func (p *Process) Close(ctx context.Context) error { return errNotYet }

// Pool keeps processes for questions about classes.
type Pool struct{}

// NewPool makes a Pool.
func NewPool(o Options) *Pool { return &Pool{} }

// Do calls f with a process of the class.
func (p *Pool) Do(ctx context.Context, c Class, f func(*Process) error) error { return errNotYet }

// Close ends all processes.
func (p *Pool) Close() {}

// SourceStream is a running source task.
type SourceStream struct{}

// Recv returns the next unit.
func (s *SourceStream) Recv(ctx context.Context) (*SourceUnit, error) { return nil, errNotYet }

// Ack says that all units up to seq are durable.
func (s *SourceStream) Ack(seq uint64) error { return errNotYet }

// Pause stops reading.
func (s *SourceStream) Pause() {}

// Resume goes on reading.
func (s *SourceStream) Resume() {}

// Stop ends the task in order.
func (s *SourceStream) Stop(ctx context.Context) error { return errNotYet }

// Abort ends the task at once.
func (s *SourceStream) Abort() {}

// SinkStream is a running sink task.
type SinkStream struct{}

// Send hands whole record batches to the sink.
func (s *SinkStream) Send(ctx context.Context, tp sdk.TopicPartition, from int64, data []byte) error {
	return errNotYet
}

// SendOwned is Send without a copy: release is called, on any goroutine, when
// data may be used again.
func (s *SinkStream) SendOwned(ctx context.Context, tp sdk.TopicPartition, from int64, data []byte, release func()) error {
	return errNotYet
}

// Restarted says that the partition is sent from offset again.
func (s *SinkStream) Restarted(tp sdk.TopicPartition, offset int64) {}

// Assign gives the sink its full new set of partitions.
func (s *SinkStream) Assign(ctx context.Context, partitions []sdk.AssignedPartition) error {
	return errNotYet
}

// Recv returns the next event.
func (s *SinkStream) Recv(ctx context.Context) (SinkEvent, error) { return SinkEvent{}, errNotYet }

// SettleLetters says that the letters are durable, or why not.
func (s *SinkStream) SettleLetters(id uint64, err error) {}

// Stop ends the task in order.
func (s *SinkStream) Stop(ctx context.Context) error { return errNotYet }

// Abort ends the task at once.
func (s *SinkStream) Abort() {}
