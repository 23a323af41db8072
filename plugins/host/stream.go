package host

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/millrace-io/millrace/plugins/internal/pb"
	"github.com/millrace-io/millrace/plugins/internal/wire"
	"github.com/millrace-io/millrace/plugins/sdk"
)

// callsAtOnce bounds the questions of one task that are being answered.
const callsAtOnce = 16

// stream is what source and sink streams have in common.
type stream struct {
	p        *Process
	link     *wire.Link
	out      *wire.Outbox
	services Services
	abort    context.CancelCauseFunc
	ended    chan struct{} // closed when nothing more is received
	calls    chan struct{} // one token per call being answered

	mu      sync.Mutex // guards the fields below
	err     error      // why it ended: io.EOF in order
	opened  bool
	credit  uint64 // given back, to be told
	durable uint64 // to be told
	queue   []*pb.Control
	wake    chan struct{} // something was received
	timer   *time.Timer   // ends the stream when a stop takes too long
}

// open starts a stream, sends its first message and waits until the task is open.
// handle is called for every frame, with the stream's context.
func (p *Process) open(ctx context.Context, source bool, first *pb.Control, s *stream, handle func(context.Context, *wire.Frame) error) error {
	desc, method := &pb.Plugin_ServiceDesc.Streams[1], pb.Plugin_Sink_FullMethodName
	if source {
		desc, method = &pb.Plugin_ServiceDesc.Streams[0], pb.Plugin_Source_FullMethodName
	}
	// The stream outlives the call that opens it.
	running, abort := context.WithCancelCause(context.WithoutCancel(ctx))
	raw, err := p.conn.NewStream(running, desc, method, grpc.StaticMethod())
	if err != nil {
		abort(nil)
		return p.failure(ctx, "open task", err)
	}
	s.p, s.abort, s.link = p, abort, wire.NewLink(raw)
	s.ended, s.wake, s.calls = make(chan struct{}), make(chan struct{}, 1), make(chan struct{}, callsAtOnce)
	s.out = wire.NewOutbox(s.link, s.collect)
	p.mu.Lock()
	closing := p.closing
	p.streams[s] = struct{}{}
	p.mu.Unlock()
	if closing {
		abort(ErrAborted)
	}
	sendErr := s.link.Control(first)
	go s.listen(running, handle)
	if sendErr != nil && !errors.Is(sendErr, io.EOF) { // EOF: the stream's own error says more
		abort(sendErr)
	}
	for {
		s.mu.Lock()
		opened, err := s.opened, s.err
		s.mu.Unlock()
		switch {
		case opened:
			return nil
		case errors.Is(err, io.EOF):
			return sdk.Errorf(sdk.Internal, "plugin.protocol", "the task ended before it was open")
		case err != nil:
			return err
		}
		select {
		case <-s.wake:
		case <-ctx.Done():
			abort(context.Cause(ctx))
			<-s.ended
			return ctx.Err()
		}
	}
}

// listen receives until the stream ends.
func (s *stream) listen(ctx context.Context, handle func(context.Context, *wire.Frame) error) {
	var f wire.Frame
	var calls sync.WaitGroup
	err := s.receive(ctx, &f, &calls, handle)
	if errors.Is(err, io.EOF) {
		err = io.EOF
	} else {
		err = s.p.failure(ctx, "task stream", err)
	}
	s.abort(nil)
	calls.Wait()
	s.out.Wait()
	s.mu.Lock()
	s.err = err
	if s.timer != nil {
		s.timer.Stop()
	}
	s.mu.Unlock()
	s.p.mu.Lock()
	delete(s.p.streams, s)
	s.p.mu.Unlock()
	close(s.ended)
	s.signal()
}

func (s *stream) receive(ctx context.Context, f *wire.Frame, calls *sync.WaitGroup, handle func(context.Context, *wire.Frame) error) error {
	for {
		if err := s.link.Recv(f); err != nil {
			return err
		}
		switch k := f.Control.GetKind().(type) {
		case *pb.Control_Opened:
			s.mu.Lock()
			s.opened = true
			s.mu.Unlock()
			s.signal()
		case *pb.Control_Progress:
			var p sdk.Progress
			if json.Unmarshal(k.Progress.GetJson(), &p) == nil {
				s.services.Progress(p)
			}
		case *pb.Control_Condition:
			s.services.Condition(wire.Text(k.Condition.GetCode()), wire.Text(k.Condition.GetMessage()))
		case *pb.Control_Counters:
			c := k.Counters
			s.services.Counted(Counters{
				Read: c.GetRead(), Written: c.GetWritten(), Failed: c.GetFailed(),
				Skipped: c.GetSkipped(), Retries: c.GetRetries(), Filtered: c.GetFiltered(),
			})
		case *pb.Control_Call:
			s.calls <- struct{}{}
			calls.Go(func() {
				defer func() { <-s.calls }()
				s.send(&pb.Control{Kind: &pb.Control_Reply{Reply: s.answer(ctx, k.Call)}})
			})
		default:
			if err := handle(ctx, f); err != nil {
				f.Free()
				return err
			}
		}
		f.Free()
	}
}

// answer asks the worker on behalf of the task.
func (s *stream) answer(ctx context.Context, c *pb.Call) *pb.Reply {
	r := &pb.Reply{Id: c.GetId()}
	var err error
	switch k := c.GetAsk().(type) {
	case *pb.Call_Topic:
		r.Partitions, err = s.services.Topic(ctx, k.Topic)
	case *pb.Call_RegisterSchema:
		r.SchemaId, err = s.services.RegisterSchema(ctx, k.RegisterSchema)
	case *pb.Call_Schema:
		r.Definition, err = s.services.Schema(ctx, k.Schema)
	default:
		err = sdk.Errorf(sdk.Internal, "plugin.protocol", "unknown question")
	}
	r.Error = wire.ErrorToPB(err)
	return r
}

// collect is called by the outbox.
func (s *stream) collect() []*pb.Control {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.queue
	s.queue = nil
	if s.credit > 0 || s.durable > 0 {
		out = append(out, &pb.Control{Kind: &pb.Control_Credit{Credit: &pb.Credit{Bytes: s.credit, Durable: s.durable}}})
		s.credit, s.durable = 0, 0
	}
	return out
}

// send queues a message; it never blocks.
func (s *stream) send(c *pb.Control) {
	s.mu.Lock()
	s.queue = append(s.queue, c)
	s.mu.Unlock()
	s.out.Kick()
}

func (s *stream) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// stop asks the task to end in order. When ctx has a deadline and the stream has
// not ended by then, it is aborted.
func (s *stream) stop(ctx context.Context) error {
	within := int64(0)
	if deadline, ok := ctx.Deadline(); ok {
		left := time.Until(deadline)
		within = int64(max(left, time.Millisecond))
		s.mu.Lock()
		if s.timer == nil && s.err == nil {
			s.timer = time.AfterFunc(left, func() { s.abort(errSlowStop) })
		}
		s.mu.Unlock()
	}
	s.send(&pb.Control{Kind: &pb.Control_Stop{Stop: &pb.Stop{WithinNs: within}}})
	return nil
}

var errSlowStop = errors.Join(ErrAborted, context.DeadlineExceeded)

// Abort ends the task at once, without another word to it; the plugin still
// closes it. It is harmless after the stream's end.
func (s *stream) Abort() { s.abort(ErrAborted) }

// openTask is the first message of a stream.
func (p *Process) openTask(t *TaskSpec) *pb.OpenTask {
	limit := t.RecordMaxBytes
	if limit <= 0 || limit > p.recordMax {
		limit = p.recordMax
	}
	return &pb.OpenTask{
		Connector: t.Connector, Task: int32(t.Task), Class: t.Class, Config: t.Config, Converters: t.Converters,
		Tolerate: t.Tolerate, RecordMaxBytes: int64(limit), CreditBytes: wire.CreditBytes,
		RetryTimeoutNs: int64(t.RetryTimeout), RetryDelayMaxNs: int64(t.RetryDelayMax),
	}
}
