package host

import (
	"context"

	"github.com/millrace-io/millrace/plugins/internal/pb"
	"github.com/millrace-io/millrace/plugins/internal/wire"
	"github.com/millrace-io/millrace/plugins/sdk"
)

const (
	// unitBytesMax is what one unit may have; the plugin's side has the same
	// limit, and a larger single record.
	unitBytesMax = 64 << 20
	// unitsMax bounds the units that wait for Recv, which may have no bytes.
	unitsMax = 1024
	// keptBuffer is the largest frame whose memory is kept for the next one.
	keptBuffer = 2 << 20
)

// SourceStream is a source task that runs. One goroutine calls Recv; the other
// methods may be called from any.
type SourceStream struct {
	stream

	// Guarded by stream.mu.
	units   []*SourceUnit
	held    int // bytes that were not given back
	heldMax int
	room    chan struct{} // Recv took a unit

	// Used by the goroutine that receives.
	unit    *SourceUnit
	buffers []*[]byte
}

// OpenSource starts a source task. It returns when the source's Open has.
func (p *Process) OpenSource(ctx context.Context, spec SourceSpec, services Services) (*SourceStream, error) {
	open := p.openTask(&spec.TaskSpec)
	var err error
	if open.Offsets, err = wire.PositionsToPB(spec.Offsets); err != nil {
		return nil, sdk.Errorf(sdk.Corrupt, "offsets.invalid", "stored offsets: %w", err)
	}
	s := &SourceStream{room: make(chan struct{}, 1)}
	s.services = services
	s.heldMax = wire.CreditBytes + max(unitBytesMax, p.recordMax) + wire.MessageOverhead
	first := &pb.Control{Kind: &pb.Control_OpenSource{OpenSource: open}}
	if err := p.open(ctx, true, first, &s.stream, s.frame); err != nil {
		return nil, err
	}
	return s, nil
}

// frame takes the next piece of a unit.
func (s *SourceStream) frame(ctx context.Context, f *wire.Frame) error {
	if f.Seq == 0 {
		return nil // a message of a newer protocol
	}
	if s.unit == nil {
		s.unit = &SourceUnit{Seq: f.Seq}
	}
	u := s.unit
	if u.Seq != f.Seq {
		return sdk.Errorf(sdk.Internal, "plugin.protocol", "a frame of unit %d inside unit %d", f.Seq, u.Seq)
	}
	s.mu.Lock()
	s.held += f.Size()
	held := s.held
	s.mu.Unlock()
	if held > s.heldMax {
		return sdk.Errorf(sdk.Internal, "plugin.protocol", "the plugin has sent %d bytes ahead, at most %d are allowed", held, s.heldMax)
	}
	u.Bytes += f.Size()
	if n := f.Size(); n > 0 {
		kept, ok := s.p.buffers.Get().(*[]byte)
		if !ok {
			kept = new([]byte)
		}
		data := f.Take(*kept)
		*kept = data
		s.buffers = append(s.buffers, kept)
		for i := range f.Parts {
			part := &f.Parts[i]
			u.Batches = append(u.Batches, SourceBatch{Topic: part.Topic, Partition: part.Partition, Data: data[:part.Length:part.Length]})
			u.Records += part.Records
			data = data[part.Length:]
		}
	}
	if !f.Last {
		return nil
	}
	var err error
	if u.Positions, err = wire.PositionsFromPB(f.Positions); err != nil {
		return sdk.Errorf(sdk.Internal, "source.position", "%w", err)
	}
	buffers := s.buffers
	u.release = func() { s.release(u.Bytes, buffers) }
	s.unit, s.buffers = nil, nil
	return s.push(ctx, u)
}

// push queues a complete unit.
func (s *SourceStream) push(ctx context.Context, u *SourceUnit) error {
	for {
		s.mu.Lock()
		if len(s.units) < unitsMax {
			s.units = append(s.units, u)
			s.mu.Unlock()
			s.signal()
			return nil
		}
		s.mu.Unlock()
		select {
		case <-s.room:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// release gives memory back, and credit to the plugin.
func (s *SourceStream) release(bytes int, buffers []*[]byte) {
	for _, b := range buffers {
		if cap(*b) <= keptBuffer {
			s.p.buffers.Put(b)
		}
	}
	if bytes == 0 {
		return
	}
	s.mu.Lock()
	s.held -= bytes
	s.credit += uint64(bytes)
	s.mu.Unlock()
	s.out.Kick()
}

// Recv returns the next unit. After the last one it returns io.EOF when the task
// was stopped in order, a *sdk.Error when it failed, an error that wraps
// ErrProcessGone when the process has ended, and ErrAborted after Abort.
func (s *SourceStream) Recv(ctx context.Context) (*SourceUnit, error) {
	for {
		s.mu.Lock()
		if len(s.units) > 0 {
			u := s.units[0]
			s.units[0] = nil
			s.units = s.units[1:]
			s.mu.Unlock()
			select {
			case s.room <- struct{}{}:
			default:
			}
			return u, nil
		}
		err := s.err
		s.mu.Unlock()
		if err != nil {
			return nil, err
		}
		select {
		case <-s.wake:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Ack says that all units up to seq are durable. It never blocks. A stream that
// has ended does not need to know any more; Recv says why it has.
func (s *SourceStream) Ack(seq uint64) error {
	s.mu.Lock()
	s.durable = max(s.durable, seq)
	s.mu.Unlock()
	s.out.Kick()
	return nil
}

// Pause stops reading once the running Read has returned.
func (s *SourceStream) Pause() { s.flow(true) }

// Resume lets reading go on.
func (s *SourceStream) Resume() { s.flow(false) }

func (s *SourceStream) flow(paused bool) {
	s.send(&pb.Control{Kind: &pb.Control_Flow{Flow: &pb.Flow{Paused: paused}}})
}

// Stop asks the task to stop reading and returns at once. The units that it has
// read still come; when all of them were acknowledged the source is closed and
// Recv returns io.EOF. When ctx has a deadline, the stream is aborted then.
func (s *SourceStream) Stop(ctx context.Context) error { return s.stop(ctx) }
