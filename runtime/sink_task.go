package runtime

import (
	"context"
	"errors"
	"hash/crc32"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/millrace-io/millrace/logstore"
	"github.com/millrace-io/millrace/plugins/host"
	"github.com/millrace-io/millrace/plugins/sdk"
)

// fetchBytes is how much of a partition is sent at a time: performance is flat
// from 64 KiB to 1 MiB, and a smaller piece shares the stream more fairly.
const fetchBytes = 256 << 10

// sinkTask moves records of the task's partitions from the log to the sink, and
// the offsets that the sink has confirmed back into the log.
type sinkTask struct {
	e      *taskEnv
	stream *host.SinkStream
	writer logstore.Writer
	group  string
	dead   *deadLetters // nil when letters go nowhere

	mu       sync.Mutex
	ctx      context.Context //nolint:containedctx // the pumps' own, ended as a whole when the task stops
	stopping bool
	parts    map[sdk.TopicPartition]*part

	held  atomic.Bool    // the connector is paused
	holds sync.WaitGroup // goroutines that apply held

	failed firstError
}

// part is one assigned partition.
type part struct {
	topicID logstore.TopicID
	next    int64 // the offset to send next, while no pump runs
	paused  bool
	pump    *pump // nil while nothing is sent
}

// pump sends one partition until it is stopped.
type pump struct {
	cancel context.CancelFunc
	done   chan struct{}
	next   int64 // valid after done
}

// runSink runs a sink task until it fails or ctx ends; then it ends in order:
// the sink flushes, and what it has confirmed is committed.
func runSink(ctx context.Context, e *taskEnv) (err error) {
	writer, err := e.w.log.OpenWriter(ctx, e.identity())
	if err != nil {
		return storeError(err)
	}
	defer func() { err = errors.Join(err, writer.Close()) }()
	s := &sinkTask{e: e, writer: writer, group: groupOf(e.c.name, e.config), parts: make(map[sdk.TopicPartition]*part)}
	if s.dead, err = openDeadLetters(ctx, e); err != nil {
		return err
	}
	catalog := e.w.log.Catalog()
	assigned, err := s.assignment(catalog)
	if err != nil {
		return err
	}
	if s.stream, err = e.process.OpenSink(ctx, host.SinkSpec{TaskSpec: e.spec(), Partitions: assigned}, e); err != nil {
		return err
	}
	base := context.WithoutCancel(ctx)
	pumps, stopPumps := context.WithCancel(ctx)
	s.ctx = pumps
	s.take(assigned)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		s.watch(pumps, catalog)
	}()
	e.up(s)
	stopped := stopInOrder(ctx, s, e.w.o.DrainTimeout)
	err = s.run(base)
	stopPumps()
	s.stream.Abort()
	<-watched
	s.stopPumps()
	s.holds.Wait()
	return errors.Join(err, stopped())
}

// Pause stops sending; what the sink already has, it still writes. It does not
// wait.
func (s *sinkTask) Pause() { s.hold(true) }

// Resume goes on sending. It does not wait.
func (s *sinkTask) Resume() { s.hold(false) }

func (s *sinkTask) hold(held bool) {
	s.held.Store(held)
	s.holds.Go(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for tp, p := range s.parts {
			if s.held.Load() {
				p.halt()
			} else {
				s.start(tp, p)
			}
		}
	})
}

// Stop ends the pumps, then the stream in order.
func (s *sinkTask) Stop(ctx context.Context) error {
	s.stopPumps()
	return s.stream.Stop(ctx)
}

// run handles what the sink says. It returns nil when the stream came to its end
// in order.
func (s *sinkTask) run(ctx context.Context) error {
	for {
		event, err := s.stream.Recv(ctx)
		if err != nil {
			return s.failed.ending(err)
		}
		if len(event.Commit) > 0 || len(event.Letters) > 0 {
			if err := s.commit(ctx, event); err != nil {
				return storeError(err)
			}
		}
		s.steer(event)
	}
}

// commit moves the group's offsets and writes dead letters, in one unit.
func (s *sinkTask) commit(ctx context.Context, event host.SinkEvent) error {
	u := &logstore.Unit{}
	for tp, offset := range event.Commit {
		u.Offsets = append(u.Offsets, logstore.GroupOffset{Group: s.group, TopicPartition: logstore.TopicPartition(tp), Offset: offset})
	}
	if len(event.Letters) > 0 {
		batch, err := s.dead.batch(ctx, event.Letters)
		if err != nil {
			return err
		}
		if batch.Data != nil {
			u.Batches = append(u.Batches, batch)
		}
	}
	if len(u.Offsets)+len(u.Batches) == 0 {
		s.settle(event, nil)
		return nil
	}
	return s.writer.Append(ctx, u, func(_ logstore.Result, err error) {
		s.settle(event, err)
		if err != nil {
			s.fail(err)
			return
		}
		s.e.w.progressed(s.e.c, s.e.id)
	})
}

func (s *sinkTask) settle(event host.SinkEvent, err error) {
	if event.LetterID != 0 {
		s.stream.SettleLetters(event.LetterID, err)
	}
}

// steer rewinds, holds and lets go partitions as the sink wants.
func (s *sinkTask) steer(event host.SinkEvent) {
	if len(event.Rewind)+len(event.Pause)+len(event.Resume) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for tp, offset := range event.Rewind {
		if p := s.parts[tp]; p != nil {
			p.halt()
			p.next = offset
			s.stream.Restarted(tp, offset)
		}
	}
	for _, tp := range event.Pause {
		if p := s.parts[tp]; p != nil {
			p.halt()
			p.paused = true
		}
	}
	for _, tp := range event.Resume {
		if p := s.parts[tp]; p != nil {
			p.paused = false
		}
	}
	for tp, p := range s.parts {
		s.start(tp, p)
	}
}

// start begins to send a partition that is not held. The caller holds s.mu.
func (s *sinkTask) start(tp sdk.TopicPartition, p *part) {
	if p.paused || p.pump != nil || s.stopping || s.held.Load() {
		return
	}
	ctx, cancel := context.WithCancel(s.ctx)
	p.pump = &pump{cancel: cancel, done: make(chan struct{}), next: p.next}
	go func(m *pump) {
		defer close(m.done)
		defer cancel()
		if err := s.send(ctx, tp, m); err != nil && ctx.Err() == nil {
			s.fail(err)
		}
	}(p.pump)
}

// halt stops sending a partition and notes where to go on.
func (p *part) halt() {
	if p.pump != nil {
		p.pump.cancel()
		<-p.pump.done
		p.next, p.pump = p.pump.next, nil
	}
}

// send reads one partition and sends it until ctx ends.
func (s *sinkTask) send(ctx context.Context, tp sdk.TopicPartition, m *pump) error {
	r, err := s.openReader(tp, m.next)
	if err != nil {
		return s.lost(tp, err)
	}
	defer func() {
		if err := r.Close(); err != nil {
			s.e.logger.Warn("reader does not close", "topic", tp.Topic, "partition", tp.Partition, "err", err)
		}
	}()
	tracked := false
	for {
		got, err := r.Next(ctx, fetchBytes)
		if err != nil {
			return s.lost(tp, err)
		}
		if !tracked {
			tracked = true
			s.e.w.trackTopic(ctx, s.e.c.name, tp.Topic, s.e.id)
		}
		if err := s.stream.Send(ctx, tp, got.From, got.Data); err != nil {
			return err
		}
		m.next = got.Next
	}
}

// openReader opens a partition where the task left off. Records that retention
// has removed meanwhile are named, never passed over in silence.
func (s *sinkTask) openReader(tp sdk.TopicPartition, offset int64) (logstore.Reader, error) {
	r, err := s.e.w.log.OpenReader(tp.Topic, tp.Partition, offset)
	if !errors.Is(err, logstore.ErrOutOfRange) {
		return r, err
	}
	start, end, boundsErr := s.e.w.log.Bounds(tp.Topic, tp.Partition)
	if boundsErr != nil || offset >= start {
		return nil, sdk.Errorf(sdk.Conflict, "sink.offset_beyond_end",
			"the group %q stands at offset %d of topic %q partition %d, which ends at %d; the topic was made anew or lost data: reset the connector's offsets once that is understood",
			s.group, offset, tp.Topic, tp.Partition, end)
	}
	s.e.Condition("sink.data_loss", "retention removed offsets before they were read; see the log")
	s.e.logger.Error("retention removed records before the sink had read them",
		"topic", tp.Topic, "partition", tp.Partition, "first_offset", offset, "last_offset", start-1, "records", start-offset)
	return s.e.w.log.OpenReader(tp.Topic, tp.Partition, start)
}

// lost decides what the end of a reader means: damage stops its partition only,
// a deleted topic leaves with the next assignment.
func (s *sinkTask) lost(tp sdk.TopicPartition, err error) error {
	switch {
	case errors.Is(err, logstore.ErrCorrupt):
		s.e.Condition("log.corrupt", err.Error())
		s.e.logger.Error("partition is stopped, others go on", "topic", tp.Topic, "partition", tp.Partition, "err", err)
		return nil
	case errors.Is(err, logstore.ErrNotFound):
		return nil
	}
	return storeError(err)
}

// fail notes what went wrong beside the stream, and ends it.
func (s *sinkTask) fail(err error) {
	s.failed.note(err)
	s.stream.Abort()
}

func (s *sinkTask) stopPumps() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopping = true
	for _, p := range s.parts {
		if p.pump != nil {
			p.pump.cancel()
		}
	}
	for _, p := range s.parts {
		p.halt()
	}
}

// take makes the assigned partitions the task's and starts those that are new.
func (s *sinkTask) take(assigned []sdk.AssignedPartition) {
	s.mu.Lock()
	defer s.mu.Unlock()
	catalog := s.e.w.log.Catalog()
	for _, a := range assigned {
		if s.parts[a.TopicPartition] == nil {
			t, _ := catalog.Lookup(a.Topic)
			s.parts[a.TopicPartition] = &part{topicID: t.ID, next: a.Offset}
		}
		s.start(a.TopicPartition, s.parts[a.TopicPartition])
	}
}

// watch follows the topics: new ones that match, new partitions, deletions.
func (s *sinkTask) watch(ctx context.Context, catalog *logstore.Catalog) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-catalog.Changed():
		}
		catalog = s.e.w.log.Catalog()
		assigned, err := s.assignment(catalog)
		if err == nil {
			err = s.reassign(ctx, catalog, assigned)
		}
		if err != nil {
			if ctx.Err() == nil {
				s.fail(err)
			}
			return
		}
	}
}

// reassign gives the sink its new set of partitions.
func (s *sinkTask) reassign(ctx context.Context, catalog *logstore.Catalog, assigned []sdk.AssignedPartition) error {
	s.mu.Lock()
	wanted := make(map[sdk.TopicPartition]bool, len(assigned))
	for _, a := range assigned {
		t, _ := catalog.Lookup(a.Topic)
		wanted[a.TopicPartition] = s.parts[a.TopicPartition] == nil || s.parts[a.TopicPartition].topicID == t.ID
	}
	changed := len(wanted) != len(s.parts)
	for tp, p := range s.parts {
		if !wanted[tp] {
			p.halt()
			delete(s.parts, tp)
			changed = true
		}
	}
	kept := slices.DeleteFunc(slices.Clone(assigned), func(a sdk.AssignedPartition) bool { return !wanted[a.TopicPartition] })
	s.mu.Unlock()
	if !changed {
		return nil
	}
	if len(kept) < len(assigned) { // a topic made anew: first without it, then with it
		if err := s.stream.Assign(ctx, kept); err != nil {
			return err
		}
	}
	if err := s.stream.Assign(ctx, assigned); err != nil {
		return err
	}
	s.take(assigned)
	return nil
}

// assignment returns the partitions of this task: those of the connector's
// topics, dealt out over its tasks so that a partition stays where it is when
// topics come and go.
func (s *sinkTask) assignment(catalog *logstore.Catalog) ([]sdk.AssignedPartition, error) {
	match, err := topicMatcher(s.e.config)
	if err != nil {
		return nil, err
	}
	s.e.w.mu.Lock()
	tasks := 0
	for _, p := range s.e.c.plan.Tasks {
		if p.Wanted {
			tasks++
		}
	}
	s.e.w.mu.Unlock()
	committed := s.e.w.log.GroupOffsets(s.group)
	assigned := []sdk.AssignedPartition{}
	for _, t := range catalog.All() {
		if !match(t) {
			continue
		}
		shift := crc32.ChecksumIEEE([]byte(t.Name))
		for n := range t.Config.Partitions {
			if int((shift+uint32(n))%uint32(max(tasks, 1))) != s.e.id {
				continue
			}
			offset, err := s.startOffset(t.Name, n, committed)
			if err != nil {
				return nil, err
			}
			assigned = append(assigned, sdk.AssignedPartition{
				TopicPartition: sdk.TopicPartition{Topic: t.Name, Partition: n}, TopicID: t.ID.String(), Offset: offset,
			})
		}
	}
	return assigned, nil
}

// startOffset is where a partition is read from: the group's offset, or for a
// new group what consumer.override.auto.offset.reset says.
func (s *sinkTask) startOffset(topic string, partition int32, committed map[logstore.TopicPartition]int64) (int64, error) {
	if offset, ok := committed[logstore.TopicPartition{Topic: topic, Partition: partition}]; ok {
		return offset, nil
	}
	start, end, err := s.e.w.log.Bounds(topic, partition)
	if err != nil {
		return 0, storeError(err)
	}
	if s.e.config["consumer.override.auto.offset.reset"] == "latest" {
		return end, nil
	}
	return start, nil
}

// groupOf is the consumer group of a sink.
func groupOf(connector string, config map[string]string) string {
	if g := config["consumer.override.group.id"]; g != "" {
		return g
	}
	return "connect-" + connector
}

// topicMatcher tells which topics a sink reads.
func topicMatcher(config map[string]string) (func(logstore.Topic) bool, error) {
	if expr := config["topics.regex"]; expr != "" {
		r, err := regexp.Compile("^(?:" + expr + ")$")
		if err != nil {
			return nil, sdk.FieldError("topics.regex", "config.invalid", "topics.regex is not a regular expression this worker can use: %w", err)
		}
		return func(t logstore.Topic) bool { return !t.Config.Internal && r.MatchString(t.Name) }, nil
	}
	names := make(map[string]bool)
	for _, n := range sdk.SplitList(config["topics"]) {
		names[n] = true
	}
	return func(t logstore.Topic) bool { return names[t.Name] }, nil
}

// lag is how many records of each partition a sink has not committed yet.
func (w *Worker) lag(group string, config map[string]string) map[logstore.TopicPartition]int64 {
	match, err := topicMatcher(config)
	if err != nil {
		return nil
	}
	committed := w.log.GroupOffsets(group)
	lag := make(map[logstore.TopicPartition]int64, len(committed))
	for _, t := range w.log.Catalog().All() {
		if !match(t) {
			continue
		}
		for n := range t.Config.Partitions {
			tp := logstore.TopicPartition{Topic: t.Name, Partition: n}
			start, end, err := w.log.Bounds(t.Name, n)
			if err == nil {
				lag[tp] = end - max(start, committed[tp])
			}
		}
	}
	return lag
}
