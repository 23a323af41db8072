package serve

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/millrace-io/millrace/plugins/internal/pb"
	"github.com/millrace-io/millrace/plugins/internal/wire"
	"github.com/millrace-io/millrace/plugins/sdk"
)

const (
	// closeTimeout bounds an author's Close when the worker has left already.
	closeTimeout = 10 * time.Second
	// emptyPause is how long the loop waits after a Read that returned at once
	// with nothing, so that a source that does not block cannot burn a core.
	emptyPause = 10 * time.Millisecond
)

// sourceTask runs one source.
type sourceTask struct {
	log    *slog.Logger
	open   *pb.OpenTask
	source sdk.Source
	door   *door
	units  *units
	acker  *acker
	enc    *encoder
	limit  int

	topics map[string]*topicPlaces // used by the goroutine that reads
	last   *topicPlaces
	counts counters // since they were passed on
	failed error    // of an Append that the source may have ignored

	mu      sync.Mutex // guards the fields below
	paused  bool
	resumed chan struct{} // closed when paused ends
}

// Source runs one source task until the worker ends it or it fails.
func (s *server) Source(stream pb.Plugin_SourceServer) (err error) {
	s.tasks.Add(1)
	defer s.tasks.Done()
	defer func() { err = wire.ToStatus(err) }()
	link := wire.NewLink(stream)
	open, err := firstFrame(link)
	if err != nil {
		return err
	}
	spec := open.GetOpenSource()
	c, err := s.connector(spec.GetClass())
	if err != nil {
		return err
	}
	if c.Source == nil {
		return sdk.Errorf(sdk.Invalid, "plugin.class", "class %q is not a source", spec.GetClass())
	}
	ctx, abort := context.WithCancelCause(stream.Context())
	defer abort(nil)
	t := &sourceTask{
		log:  s.log.With(slog.String(wire.LogConnector, spec.GetConnector()), slog.Int(wire.LogTask, int(spec.GetTask()))),
		open: spec, topics: make(map[string]*topicPlaces), limit: int(spec.GetRecordMaxBytes()),
	}
	t.door = newDoor(link, nil)
	defer t.door.close()
	t.acker = newAcker()
	t.units = newUnits(link, int(spec.GetCreditBytes()), t.acker.add)
	reading, stop := context.WithCancel(ctx)
	defer stop()
	go t.listen(link, stop, abort)
	if err := t.run(ctx, reading, c, abort); err != nil {
		if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
			return cause
		}
		return err
	}
	return nil
}

// firstFrame receives the message that opens a task.
func firstFrame(link *wire.Link) (*pb.Control, error) {
	var f wire.Frame
	if err := link.Recv(&f); err != nil {
		return nil, err
	}
	f.Free()
	if f.Control.GetOpenSource() == nil && f.Control.GetOpenSink() == nil {
		return nil, sdk.Errorf(sdk.Internal, "protocol", "the first frame of a task's stream does not open it")
	}
	return f.Control, nil
}

// listen takes what the worker says until the stream ends.
func (t *sourceTask) listen(link *wire.Link, stop func(), abort context.CancelCauseFunc) {
	var f wire.Frame
	for {
		if err := link.Recv(&f); err != nil {
			t.resume()
			abort(nil)
			return
		}
		f.Free()
		switch k := f.Control.GetKind().(type) {
		case *pb.Control_Credit:
			if n := k.Credit.GetBytes(); n > 0 {
				t.units.returned(int(n))
			}
			if seq := k.Credit.GetDurable(); seq > 0 {
				t.units.durable(seq)
			}
		case *pb.Control_Stop:
			stop()
		case *pb.Control_Flow:
			if k.Flow.GetPaused() {
				t.pause()
			} else {
				t.resume()
			}
		case *pb.Control_Reply:
			t.door.answered(k.Reply)
		}
	}
}

func (t *sourceTask) pause() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.paused {
		t.paused, t.resumed = true, make(chan struct{})
	}
}

func (t *sourceTask) resume() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.paused {
		t.paused = false
		close(t.resumed)
	}
}

// waitWhilePaused returns when reading may go on or ctx has ended.
func (t *sourceTask) waitWhilePaused(ctx context.Context) {
	t.mu.Lock()
	paused, resumed := t.paused, t.resumed
	t.mu.Unlock()
	if paused {
		select {
		case <-resumed:
		case <-ctx.Done():
		}
	}
}

// run opens the source and reads until reading ends; ctx is that of the stream.
func (t *sourceTask) run(ctx, reading context.Context, c sdk.Connector, abort context.CancelCauseFunc) (err error) {
	t.source = c.Source()
	if err := bind(t.log, t.source, t.open.GetConfig()); err != nil {
		return err
	}
	conv, err := newConverters(t.open)
	if err != nil {
		return err
	}
	t.enc = newEncoder(conv, t.door, t.open)
	offsets, err := wire.PositionsFromPB(t.open.GetOffsets())
	if err != nil {
		return sdk.Errorf(sdk.Corrupt, "offsets.invalid", "%w", err)
	}
	defer func() { err = closeTask(ctx, t.log, err, t.source.Close) }()
	task := &sdk.SourceTask{Task: newTask(t.open, t.log, t.door), Offsets: offsets}
	if err := guard(t.log, "Open", func() error { return t.source.Open(reading, task) }); err != nil {
		return stopped(reading, ctx, err)
	}
	if err := t.door.link.Control(&pb.Control{Kind: &pb.Control_Opened{Opened: &pb.Opened{}}}); err != nil {
		return err
	}
	acknowledging, endAcks := context.WithCancel(ctx)
	defer endAcks()
	t.acker.start(acknowledging, t.log, t.source, offsets, abort)
	err = stopped(reading, ctx, t.read(reading))
	t.pass()
	if flushErr := t.units.finish(ctx); err == nil {
		err = flushErr
	}
	if err != nil {
		return err
	}
	if err := t.units.settled(ctx); err != nil {
		return err
	}
	return t.acker.finish(ctx)
}

// stopped makes an error nil when it only says that the worker has asked the
// task to stop.
func stopped(reading, ctx context.Context, err error) error {
	if err != nil && reading.Err() != nil && ctx.Err() == nil {
		return nil
	}
	return err
}

// bind fills the fields of a source or sink from its config.
func bind(log *slog.Logger, d definer, config map[string]string) error {
	return guard(log, "Define", func() error {
		var def sdk.Def
		d.Define(&def)
		return def.Parse(config).Errors().OrNil()
	})
}

func newTask(open *pb.OpenTask, log *slog.Logger, host sdk.TaskHost) sdk.Task {
	return sdk.Task{Connector: open.GetConnector(), ID: int(open.GetTask()), Config: open.GetConfig(), Log: log, Host: host}
}

// closeTask calls an author's Close, with time to end in order even when the
// stream is gone, and keeps the first error.
func closeTask(ctx context.Context, log *slog.Logger, err error, closeIt func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	closeErr := guard(log, "Close", func() error { return closeIt(ctx) })
	if closeErr != nil && err != nil {
		log.WarnContext(ctx, "close after a failure", slog.Any(wire.LogErr, closeErr))
		return err
	}
	if closeErr != nil {
		return fmt.Errorf("close: %w", closeErr)
	}
	return err
}

// read is the loop around Read. It returns the error that fails the task, or
// ctx's when reading was to stop.
func (t *sourceTask) read(ctx context.Context) error {
	batch := sdk.NewBatch(
		func(r *sdk.Record) error { return t.append(ctx, r) },
		func(p sdk.Position) error {
			t.pass()
			return t.units.position(ctx, p)
		})
	attempt := 0
	for {
		t.waitWhilePaused(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		batch.Reset()
		began := time.Now()
		err := guard(t.log, "Read", func() error { return t.source.Read(ctx, batch) })
		t.pass()
		switch failed := firstError(t.failed, t.units.failed()); {
		case failed != nil:
			return failed
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && !retriable(err):
			return err
		case err != nil:
			wait := pauseAfter(err, attempt)
			attempt++
			t.door.count(counters{retries: 1})
			t.door.Condition("source.retrying", fmt.Sprintf("reading is tried again in %s: %s", wait.Round(time.Millisecond), err))
			if err := sleep(ctx, wait); err != nil {
				return err
			}
			continue
		}
		if attempt > 0 {
			attempt = 0
			t.door.Condition("", "")
		}
		if batch.Len() == 0 && time.Since(began) < emptyPause/10 {
			if err := sleep(ctx, emptyPause); err != nil {
				return err
			}
		}
	}
}

// pass hands the counts of this goroutine to the door.
func (t *sourceTask) pass() {
	t.door.count(t.counts)
	t.counts = counters{}
}

// append takes one record from the source. This is where a record is transformed
// (once there are transforms), converted and placed.
func (t *sourceTask) append(ctx context.Context, r *sdk.Record) error {
	t.counts.read++
	err := t.place(ctx, r)
	if err == nil {
		t.counts.written++
		return nil
	}
	if _, bad := errors.AsType[*conversionError](err); bad {
		err = unconvertible(r.Topic, err)
	} else if sdk.ReasonOf(err) != "record.too_large" {
		t.fail(ctx, err)
		return err
	}
	t.counts.failed++
	if t.open.GetTolerate() && ctx.Err() == nil {
		t.counts.skipped++
		t.log.WarnContext(ctx, "record skipped", slog.String(wire.LogTopic, r.Topic), slog.Any(wire.LogErr, err))
		return nil
	}
	t.fail(ctx, err)
	return err
}

// fail keeps an error so that the task fails also when the source ignores it.
func (t *sourceTask) fail(ctx context.Context, err error) {
	if t.failed == nil && ctx.Err() == nil {
		t.failed = err
	}
}

// place converts a record and adds it to the batch of its partition.
func (t *sourceTask) place(ctx context.Context, r *sdk.Record) error {
	topic, err := t.topic(ctx, r.Topic)
	if err != nil {
		return err
	}
	out, err := t.enc.encode(ctx, r)
	if err != nil {
		return err
	}
	if size(out) > t.limit {
		return tooLarge(r.Topic, out, t.limit)
	}
	partition := int32(keyless)
	switch n := int32(len(topic.partitions)); {
	case r.Partition >= n || r.Partition < sdk.PartitionByKey:
		return sdk.Errorf(sdk.Invalid, "record.partition", "record for partition %d of topic %q, which has %d", r.Partition, r.Topic, n)
	case r.Partition >= 0:
		partition = r.Partition
	case out.Key != nil:
		partition = partitionOf(out.Key, n)
	}
	return t.units.add(ctx, topic, partition, out)
}

// topic returns what is known of a topic; it asks the worker once.
func (t *sourceTask) topic(ctx context.Context, name string) (*topicPlaces, error) {
	if t.last != nil && t.last.name == name {
		return t.last, nil
	}
	tp := t.topics[name]
	if tp == nil {
		if name == "" {
			return nil, sdk.Errorf(sdk.Internal, "record.topic", "the source made a record without a topic")
		}
		n, err := t.door.topic(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("topic %q: %w", name, err)
		}
		tp = &topicPlaces{name: name, partitions: make([]place, n)}
		for i := range tp.partitions {
			tp.partitions[i] = place{topic: name, partition: int32(i)}
		}
		t.topics[name] = tp
	}
	t.last = tp
	return tp, nil
}
