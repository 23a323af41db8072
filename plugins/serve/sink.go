package serve

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/millrace-io/millrace/plugins/internal/pb"
	"github.com/millrace-io/millrace/plugins/internal/wire"
	"github.com/millrace-io/millrace/plugins/sdk"
)

const (
	// flushEvery is how long a sink's buffered records wait for Flush.
	flushEvery = 500 * time.Millisecond
	// tickEvery is how often Write is called while nothing comes.
	tickEvery = time.Second
	// stopGrace is how long a Write may still take once the task is to stop, when
	// the worker does not say how long it waits.
	stopGrace = 10 * time.Second
	// keptBuffer is the largest frame whose memory is kept for the next one.
	keptBuffer = 512 << 10
)

// inbox is what the worker has said and the task's goroutine has not handled.
type inbox struct {
	mu      sync.Mutex // guards the fields below
	items   []item
	assigns []assignment
	stop    bool
	wake    chan struct{}
}

// assignment is a new set of partitions, and how many frames came before it.
type assignment struct {
	id         uint64
	partitions []*pb.Assignment
	before     int
}

func (in *inbox) signal() {
	select {
	case in.wake <- struct{}{}:
	default:
	}
}

func (in *inbox) push(it item) {
	in.mu.Lock()
	in.items = append(in.items, it)
	in.mu.Unlock()
	in.signal()
}

func (in *inbox) next() (item, bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if len(in.items) == 0 || len(in.assigns) > 0 || in.stop {
		return item{}, false
	}
	it := in.items[0]
	in.items = slices.Delete(in.items, 0, 1)
	return it, true
}

// pendingAssign takes the next assignment.
func (in *inbox) pendingAssign() (assignment, bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if len(in.assigns) == 0 {
		return assignment{}, false
	}
	a := in.assigns[0]
	in.assigns = slices.Delete(in.assigns, 0, 1)
	return a, true
}

func (in *inbox) stopping() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.stop
}

// drop takes out the frames that came before an assignment and are not for the
// partitions that stay.
func (in *inbox) drop(before int, stay map[sdk.TopicPartition]bool) (bytes int) {
	in.mu.Lock()
	defer in.mu.Unlock()
	kept := in.items[:0]
	for i, it := range in.items {
		if i < before && !stay[sdk.TopicPartition{Topic: it.part.Topic, Partition: it.part.Partition}] {
			bytes += len(it.data)
			continue
		}
		kept = append(kept, it)
	}
	clear(in.items[len(kept):])
	removed := len(in.items) - len(kept)
	in.items = kept
	for i := range in.assigns {
		in.assigns[i].before = max(0, in.assigns[i].before-removed)
	}
	return bytes
}

// sinkTask runs one sink.
type sinkTask struct {
	log     *slog.Logger
	open    *pb.OpenTask
	sink    sdk.Sink
	flusher sdk.Flusher
	commits sdk.Committer
	door    *door
	board   *board
	dec     *decoder
	in      inbox
	buffers sync.Pool // of *[]byte

	parts     map[sdk.TopicPartition]bool
	unflushed time.Time // since when Flush has something to do; zero when nothing
	lastWrite time.Time
}

// Sink runs one sink task until the worker ends it or it fails.
func (s *server) Sink(stream pb.Plugin_SinkServer) (err error) {
	s.tasks.Add(1)
	defer s.tasks.Done()
	defer func() { err = wire.ToStatus(err) }()
	link := wire.NewLink(stream)
	first, err := firstFrame(link)
	if err != nil {
		return err
	}
	spec := first.GetOpenSink()
	c, err := s.connector(spec.GetClass())
	if err != nil {
		return err
	}
	if c.Sink == nil {
		return sdk.Errorf(sdk.Invalid, "plugin.class", "class %q is not a sink", spec.GetClass())
	}
	ctx, abort := context.WithCancel(stream.Context())
	defer abort()
	t := &sinkTask{
		log:  s.log.With(slog.String(wire.LogConnector, spec.GetConnector()), slog.Int(wire.LogTask, int(spec.GetTask()))),
		open: spec, parts: make(map[sdk.TopicPartition]bool), in: inbox{wake: make(chan struct{}, 1)},
	}
	t.door = newDoor(link, func(final bool) []*pb.Control { return t.board.collect(final) })
	t.board = newBoard(spec, t.door.out.Kick, t.door.count)
	defer t.board.close()
	defer t.door.close()
	writing, endWrite := context.WithCancel(ctx)
	defer endWrite()
	go t.listen(link, abort, endWrite)
	return t.run(ctx, writing, c)
}

// listen takes what the worker says until the stream ends.
func (t *sinkTask) listen(link *wire.Link, abort, endWrite func()) {
	var f wire.Frame
	for {
		if err := link.Recv(&f); err != nil {
			abort()
			return
		}
		if len(f.Parts) > 0 {
			t.receive(&f)
		}
		f.Free()
		switch k := f.Control.GetKind().(type) {
		case *pb.Control_Stop:
			grace := time.Duration(k.Stop.GetWithinNs()) / 2
			if grace <= 0 {
				grace = stopGrace
			}
			time.AfterFunc(grace, endWrite)
			t.in.mu.Lock()
			t.in.stop = true
			t.in.mu.Unlock()
			t.in.signal()
		case *pb.Control_Assign:
			t.in.mu.Lock()
			t.in.assigns = append(t.in.assigns, assignment{k.Assign.GetId(), k.Assign.GetPartitions(), len(t.in.items)})
			t.in.mu.Unlock()
			t.in.signal()
		case *pb.Control_Settle:
			t.board.settle(k.Settle.GetLetterId(), wire.ErrorFromPB(k.Settle.GetError()))
		case *pb.Control_Reply:
			t.door.answered(k.Reply)
		}
	}
}

// receive queues the records of a frame.
func (t *sinkTask) receive(f *wire.Frame) {
	kept, ok := t.buffers.Get().(*[]byte)
	if !ok {
		kept = new([]byte)
	}
	data := f.Take(*kept)
	*kept = data
	if len(f.Parts) > 1 {
		kept = nil // shared by several items
	}
	for _, p := range f.Parts {
		t.in.push(item{part: p, data: data[:p.Length:p.Length], buffer: kept})
		data = data[p.Length:]
	}
}

// release gives back memory and credit of frames that were written or dropped.
func (t *sinkTask) release(items []item) {
	n := 0
	for _, it := range items {
		n += len(it.data)
		if it.buffer != nil && cap(*it.buffer) <= keptBuffer {
			t.buffers.Put(it.buffer)
		}
	}
	t.door.giveCredit(n)
}

// run opens the sink and writes until it is to stop; ctx is that of the stream,
// writing ends some time after a stop.
func (t *sinkTask) run(ctx, writing context.Context, c sdk.Connector) (err error) {
	t.sink = c.Sink()
	if err := bind(t.log, t.sink, t.open.GetConfig()); err != nil {
		return err
	}
	conv, err := newConverters(t.open)
	if err != nil {
		return err
	}
	t.dec = &decoder{converters: conv, door: t.door, board: t.board, retry: newBackoff(t.open)}
	t.flusher, _ = t.sink.(sdk.Flusher)
	t.commits, _ = t.sink.(sdk.Committer)
	assigned := wire.AssignmentsFromPB(t.open.GetPartitions())
	for _, a := range assigned {
		t.board.assign(a.TopicPartition, a.Offset, 0)
		t.parts[a.TopicPartition] = true
	}
	defer func() { err = closeTask(ctx, t.log, err, t.sink.Close) }()
	task := &sdk.SinkTask{Task: newTask(t.open, t.log, t.door), Sink: t.board}
	if err := guard(t.log, "Open", func() error { return t.sink.Open(writing, task) }); err != nil {
		return t.orStopped(ctx, writing, err)
	}
	if r, ok := t.sink.(sdk.RawSink); ok {
		if err := guard(t.log, "RawValues", func() error { t.dec.raw = r.RawValues(); return nil }); err != nil {
			return err
		}
	}
	if err := t.openPartitions(writing, assigned); err != nil {
		return t.orStopped(ctx, writing, err)
	}
	if err := t.door.link.Control(&pb.Control{Kind: &pb.Control_Opened{Opened: &pb.Opened{}}}); err != nil {
		return err
	}
	t.door.out.Kick()
	if err := t.loop(writing); err != nil {
		return t.orStopped(ctx, writing, err)
	}
	return t.finish(ctx)
}

// orStopped makes an error nil when it only says that Write was ended because
// the worker has asked the task to stop.
func (t *sinkTask) orStopped(ctx, writing context.Context, err error) error {
	if writing.Err() != nil && ctx.Err() == nil && t.in.stopping() {
		t.log.WarnContext(ctx, "write was cut off, its records come again after the next start", slog.Any(wire.LogErr, err))
		return nil
	}
	return err
}

func (t *sinkTask) openPartitions(ctx context.Context, ps []sdk.AssignedPartition) error {
	o, ok := t.sink.(sdk.PartitionOpener)
	if !ok || len(ps) == 0 {
		return nil
	}
	return guard(t.log, "OpenPartitions", func() error { return o.OpenPartitions(ctx, ps) })
}

// loop decodes and writes until the task is to stop.
func (t *sinkTask) loop(ctx context.Context) error {
	t.lastWrite = time.Now()
	timer := time.NewTimer(tickEvery)
	defer timer.Stop()
	for {
		if err := t.reassign(ctx, true); err != nil {
			return err
		}
		if t.in.stopping() {
			return nil
		}
		moved, err := t.dec.gather(ctx, t.in.next)
		t.pass()
		if err != nil {
			return err
		}
		if moved {
			if len(t.dec.marks) > 0 {
				if err := t.write(ctx); err != nil {
					return err
				}
			}
			t.release(t.dec.spent)
			t.dec.spent = nil
		}
		if err := t.confirm(ctx); err != nil {
			return err
		}
		if moved {
			continue
		}
		timer.Reset(t.nextTick())
		select {
		case <-t.in.wake:
		case <-timer.C:
			if err := t.tick(ctx); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// pass hands the decoder's counts to the door.
func (t *sinkTask) pass() {
	t.door.count(t.dec.counts)
	t.dec.counts = counters{}
}

// nextTick is when something is to be done although nothing comes.
func (t *sinkTask) nextTick() time.Duration {
	next := tickEvery - time.Since(t.lastWrite)
	if !t.unflushed.IsZero() {
		next = min(next, flushEvery-time.Since(t.unflushed))
	}
	return max(next, time.Millisecond)
}

// tick calls Write without records when it was not called for a while.
func (t *sinkTask) tick(ctx context.Context) error {
	if time.Since(t.lastWrite) < tickEvery-time.Millisecond {
		return nil
	}
	t.dec.reset()
	return t.write(ctx)
}

// write gives the gathered records to the sink, over and over while it asks for
// it. Records of partitions that were rewound or taken away fall out.
func (t *sinkTask) write(ctx context.Context) error {
	records := without(t.dec.records, t.board.take(t.dec.marks))
	tick := len(t.dec.marks) == 0
	attempt := 0
	for ; len(records) > 0 || tick; attempt++ {
		t.lastWrite = time.Now()
		err := guard(t.log, "Write", func() error { return t.sink.Write(ctx, records) })
		if err == nil {
			break
		}
		if !retriable(err) || ctx.Err() != nil {
			return err
		}
		wait := t.board.pause(err, attempt)
		t.door.count(counters{retries: 1})
		t.door.Condition("sink.retrying", fmt.Sprintf("writing is tried again in %s: %s", wait.Round(time.Millisecond), err))
		if stop, err := t.hold(ctx, wait); stop || err != nil {
			t.dec.marks = nil // nothing of it counts as written
			return err
		}
		records = without(records, t.board.stale(t.dec.marks))
	}
	if attempt > 0 {
		t.door.Condition("", "")
	}
	if len(records) > 0 {
		t.door.count(counters{written: int64(len(records))})
		if t.flusher != nil && t.unflushed.IsZero() {
			t.unflushed = time.Now()
		}
	}
	if len(t.dec.marks) > 0 {
		t.board.wrote(t.dec.marks, t.flusher == nil && t.commits == nil)
	}
	return nil
}

// without returns the records that are not of those partitions.
func without(records []sdk.Record, stale map[sdk.TopicPartition]bool) []sdk.Record {
	if len(stale) == 0 {
		return records
	}
	return slices.DeleteFunc(records, func(r sdk.Record) bool {
		return stale[sdk.TopicPartition{Topic: r.Topic, Partition: r.Partition}]
	})
}

// hold waits before another attempt. It handles assignments meanwhile and
// reports whether the task is to stop.
func (t *sinkTask) hold(ctx context.Context, wait time.Duration) (stop bool, err error) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		if t.in.stopping() {
			return true, nil
		}
		if err := t.reassign(ctx, false); err != nil {
			return false, err
		}
		select {
		case <-timer.C:
			return false, nil
		case <-t.in.wake:
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}

// confirm learns what the target holds.
func (t *sinkTask) confirm(ctx context.Context) error {
	if !t.unflushed.IsZero() && time.Since(t.unflushed) >= flushEvery {
		if err := t.flush(ctx); err != nil {
			return err
		}
	}
	return t.committable(ctx)
}

func (t *sinkTask) committable(ctx context.Context) error {
	if t.commits == nil {
		return nil
	}
	var offsets map[sdk.TopicPartition]int64
	err := guard(t.log, "Committable", func() (err error) {
		offsets, err = t.commits.Committable(ctx)
		return err
	})
	if err != nil {
		return err
	}
	return t.board.committable(offsets)
}

// flush makes the sink store what it holds, over and over while it asks for it.
func (t *sinkTask) flush(ctx context.Context) error {
	for attempt := 0; ; attempt++ {
		err := guard(t.log, "Flush", func() error { return t.flusher.Flush(ctx) })
		if err == nil {
			if attempt > 0 {
				t.door.Condition("", "")
			}
			break
		}
		if !retriable(err) || ctx.Err() != nil {
			return err
		}
		wait := t.board.pause(err, attempt)
		t.door.count(counters{retries: 1})
		t.door.Condition("sink.retrying", fmt.Sprintf("flushing is tried again in %s: %s", wait.Round(time.Millisecond), err))
		if stop, err := t.hold(ctx, wait); stop || err != nil {
			return err
		}
	}
	t.unflushed = time.Time{}
	if t.commits == nil {
		t.board.flushed()
	}
	return nil
}

// reassign takes the new sets of partitions. With settle what the sink has is
// flushed before a partition is closed.
func (t *sinkTask) reassign(ctx context.Context, settle bool) error {
	for {
		a, ok := t.in.pendingAssign()
		if !ok {
			return nil
		}
		err := t.assign(ctx, a, settle)
		t.board.answer(a.id, err)
		if err != nil {
			return err
		}
	}
}

func (t *sinkTask) assign(ctx context.Context, a assignment, settle bool) error {
	stay := make(map[sdk.TopicPartition]bool)
	var added []sdk.AssignedPartition
	generations := make(map[sdk.TopicPartition]uint64)
	for i, p := range wire.AssignmentsFromPB(a.partitions) {
		if t.parts[p.TopicPartition] {
			stay[p.TopicPartition] = true
		} else {
			added = append(added, p)
			generations[p.TopicPartition] = a.partitions[i].GetGeneration()
		}
	}
	t.door.giveCredit(t.in.drop(a.before, stay))
	var closed []sdk.TopicPartition
	for tp := range t.parts {
		if !stay[tp] {
			closed = append(closed, tp)
		}
	}
	if len(closed) > 0 {
		if err := t.closePartitions(ctx, closed, settle); err != nil {
			return err
		}
	}
	for _, p := range added {
		t.board.assign(p.TopicPartition, p.Offset, generations[p.TopicPartition])
		t.parts[p.TopicPartition] = true
	}
	return t.openPartitions(ctx, added)
}

func (t *sinkTask) closePartitions(ctx context.Context, closed []sdk.TopicPartition, settle bool) error {
	if settle && !t.unflushed.IsZero() {
		if err := t.flush(ctx); err != nil {
			return err
		}
	}
	if err := t.committable(ctx); err != nil {
		return err
	}
	t.tellCommits()
	if o, ok := t.sink.(sdk.PartitionOpener); ok {
		if err := guard(t.log, "ClosePartitions", func() error { return o.ClosePartitions(ctx, closed) }); err != nil {
			return err
		}
	}
	for _, tp := range closed {
		t.board.revoke(tp)
		delete(t.parts, tp)
	}
	return nil
}

// tellCommits sends what may be committed before anything else is done.
func (t *sinkTask) tellCommits() {
	t.board.mu.Lock()
	t.board.hurry = true
	t.board.mu.Unlock()
	t.door.out.Kick()
	t.door.out.Wait()
}

// finish flushes and tells what is stored.
func (t *sinkTask) finish(ctx context.Context) error {
	if !t.unflushed.IsZero() {
		if err := t.flush(ctx); err != nil {
			return err
		}
	}
	return t.committable(ctx)
}
