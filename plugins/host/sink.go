package host

import (
	"context"
	"sync"

	"github.com/millrace-io/millrace/plugins/internal/pb"
	"github.com/millrace-io/millrace/plugins/internal/wire"
	"github.com/millrace-io/millrace/plugins/sdk"
)

// eventsMax bounds the events that wait for Recv; beyond it the plugin waits.
const eventsMax = 64

// SinkStream is a sink task that runs. One goroutine calls Recv; the other
// methods may be called from any, Send for different partitions also side by
// side.
type SinkStream struct {
	stream
	events chan SinkEvent

	flow    sync.Mutex // guards the fields below
	flying  int        // bytes that were not given back
	changed chan struct{}
	honored map[sdk.TopicPartition]uint64 // the rewind that frames follow
	wanted  map[sdk.TopicPartition]uint64 // the rewind that was received
	current map[sdk.TopicPartition]bool
	asks    map[uint64]chan error // Assigns that wait
	lastAsk uint64
}

// OpenSink starts a sink task. It returns when the sink's Open has.
func (p *Process) OpenSink(ctx context.Context, spec SinkSpec, services Services) (*SinkStream, error) {
	open := p.openTask(&spec.TaskSpec)
	open.Partitions = wire.AssignmentsToPB(spec.Partitions)
	s := &SinkStream{
		events: make(chan SinkEvent, eventsMax), changed: make(chan struct{}),
		honored: make(map[sdk.TopicPartition]uint64), wanted: make(map[sdk.TopicPartition]uint64),
		current: make(map[sdk.TopicPartition]bool), asks: make(map[uint64]chan error),
	}
	s.services = services
	for _, a := range spec.Partitions {
		s.current[a.TopicPartition] = true
	}
	first := &pb.Control{Kind: &pb.Control_OpenSink{OpenSink: open}}
	if err := p.open(ctx, false, first, &s.stream, s.frame); err != nil {
		return nil, err
	}
	return s, nil
}

// frame takes what the sink says.
func (s *SinkStream) frame(ctx context.Context, f *wire.Frame) error {
	switch k := f.Control.GetKind().(type) {
	case *pb.Control_Credit:
		s.flow.Lock()
		s.flying = max(0, s.flying-int(k.Credit.GetBytes()))
		close(s.changed)
		s.changed = make(chan struct{})
		s.flow.Unlock()
	case *pb.Control_Assigned:
		s.flow.Lock()
		ask := s.asks[k.Assigned.GetId()]
		delete(s.asks, k.Assigned.GetId())
		s.flow.Unlock()
		if ask != nil {
			ask <- wire.ErrorFromPB(k.Assigned.GetError())
		}
	case *pb.Control_Report:
		select {
		case s.events <- s.event(k.Report):
			s.signal()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// event translates a report.
func (s *SinkStream) event(r *pb.SinkReport) SinkEvent {
	var e SinkEvent
	for _, m := range r.GetCommits() {
		if e.Commit == nil {
			e.Commit = make(map[sdk.TopicPartition]int64)
		}
		e.Commit[wire.MarkPartition(m)] = m.GetOffset()
	}
	for _, l := range r.GetLetters() {
		e.Letters = append(e.Letters, DeadLetter{
			TopicPartition: sdk.TopicPartition{Topic: l.GetTopic(), Partition: l.GetPartition()}, Offset: l.GetOffset(),
			Stage: l.GetStage(), Class: l.GetClass(), ErrorClass: l.GetErrorClass(), Message: l.GetMessage(),
		})
	}
	e.LetterID = r.GetLetterId()
	s.flow.Lock()
	for _, m := range r.GetRewinds() {
		if e.Rewind == nil {
			e.Rewind = make(map[sdk.TopicPartition]int64)
		}
		tp := wire.MarkPartition(m)
		e.Rewind[tp] = m.GetOffset()
		s.wanted[tp] = max(s.wanted[tp], m.GetGeneration())
	}
	s.flow.Unlock()
	for _, m := range r.GetPauses() {
		e.Pause = append(e.Pause, wire.MarkPartition(m))
	}
	for _, m := range r.GetResumes() {
		e.Resume = append(e.Resume, wire.MarkPartition(m))
	}
	return e
}

// Recv returns the next event. After the last one it returns io.EOF when the
// task was stopped in order, a *sdk.Error when it failed, an error that wraps
// ErrProcessGone when the process has ended, and ErrAborted after Abort.
func (s *SinkStream) Recv(ctx context.Context) (SinkEvent, error) {
	select {
	case e := <-s.events:
		return e, nil
	default:
	}
	select {
	case e := <-s.events:
		return e, nil
	case <-ctx.Done():
		return SinkEvent{}, ctx.Err()
	case <-s.ended:
	}
	select {
	case e := <-s.events:
		return e, nil
	default:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return SinkEvent{}, s.err
}

// Send hands whole record batches of a partition to the sink; it skips records
// below from. It blocks while too much is on its way. data may be used again
// when it returns. After an error nothing of data was sent.
func (s *SinkStream) Send(ctx context.Context, tp sdk.TopicPartition, from int64, data []byte) error {
	if len(data) == 0 {
		return nil
	}
	part, err := s.admit(ctx, tp, from, len(data))
	if err != nil {
		return err
	}
	kept, ok := s.p.buffers.Get().(*[]byte)
	if !ok {
		kept = new([]byte)
	}
	*kept = append((*kept)[:0], data...)
	return s.transmit(part, *kept, func() {
		if cap(*kept) <= keptBuffer {
			s.p.buffers.Put(kept)
		}
	})
}

// SendOwned is Send without a copy: data belongs to the stream until release is
// called, on any goroutine. When the stream ends before, release is not called
// and data must not be used again.
func (s *SinkStream) SendOwned(ctx context.Context, tp sdk.TopicPartition, from int64, data []byte, release func()) error {
	if len(data) == 0 {
		release()
		return nil
	}
	part, err := s.admit(ctx, tp, from, len(data))
	if err != nil {
		return err
	}
	return s.transmit(part, data, release)
}

// admit waits until n bytes may go.
func (s *SinkStream) admit(ctx context.Context, tp sdk.TopicPartition, from int64, n int) (wire.Part, error) {
	if limit := s.p.recordMax + wire.MessageOverhead - headRoom; n > limit {
		return wire.Part{}, sdk.Errorf(sdk.Invalid, "record.too_large",
			"topic %q partition %d offset %d: batches of %d bytes, at most %d can be sent to a plugin; raise record.max.bytes", tp.Topic, tp.Partition, from, n, limit)
	}
	for {
		s.flow.Lock()
		if s.flying == 0 || s.flying+n <= wire.CreditBytes {
			s.flying += n
			part := wire.Part{Topic: tp.Topic, Partition: tp.Partition, Length: n, From: from, Generation: s.honored[tp]}
			s.flow.Unlock()
			return part, nil
		}
		changed := s.changed
		s.flow.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return wire.Part{}, ctx.Err()
		case <-s.ended:
			return wire.Part{}, s.end()
		}
	}
}

// headRoom is more than the head of a frame with one part has.
const headRoom = 1 << 10

func (s *SinkStream) transmit(part wire.Part, data []byte, sent func()) error {
	f := &wire.Frame{Parts: []wire.Part{part}, Payload: [][]byte{data}, Sent: sent}
	if err := s.link.Send(f); err != nil {
		<-s.ended // the stream's own error says why
		return s.end()
	}
	return nil
}

// end returns why the stream has ended.
func (s *SinkStream) end() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Restarted says that the partition is sent from offset again, as a Rewind has
// asked for: what is still on its way is dropped, and the next Send counts.
func (s *SinkStream) Restarted(tp sdk.TopicPartition, _ int64) {
	s.flow.Lock()
	defer s.flow.Unlock()
	s.honored[tp] = max(s.honored[tp], s.wanted[tp])
}

// Assign gives the sink its full new set of partitions. It returns when the sink
// has closed those that are gone, after an event with what they may commit, and
// opened the new ones. Send nothing of a new partition before.
func (s *SinkStream) Assign(ctx context.Context, partitions []sdk.AssignedPartition) error {
	answer := make(chan error, 1)
	assign := &pb.Assign{Partitions: wire.AssignmentsToPB(partitions)}
	next := make(map[sdk.TopicPartition]bool)
	s.flow.Lock()
	s.lastAsk++
	assign.Id = s.lastAsk
	s.asks[assign.GetId()] = answer
	for i, p := range partitions {
		next[p.TopicPartition] = true
		if !s.current[p.TopicPartition] {
			s.honored[p.TopicPartition] = max(s.honored[p.TopicPartition], s.wanted[p.TopicPartition])
		}
		assign.Partitions[i].Generation = s.honored[p.TopicPartition]
	}
	s.current = next
	s.flow.Unlock()
	if err := s.link.Control(&pb.Control{Kind: &pb.Control_Assign{Assign: assign}}); err != nil {
		<-s.ended
		return s.end()
	}
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-s.ended:
		return s.end()
	}
}

// SettleLetters says that the letters of an event are durable, or why not.
func (s *SinkStream) SettleLetters(id uint64, err error) {
	s.send(&pb.Control{Kind: &pb.Control_Settle{Settle: &pb.Settle{LetterId: id, Error: wire.ErrorToPB(err)}}})
}

// Stop asks the task to end and returns at once. The sink finishes the Write it
// is in, flushes, a last event says what is stored, and Recv returns io.EOF.
// When ctx has a deadline, the stream is aborted then.
func (s *SinkStream) Stop(ctx context.Context) error { return s.stop(ctx) }
