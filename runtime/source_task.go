package runtime

import (
	"context"
	"errors"

	"github.com/millrace-io/millrace/logstore"
	"github.com/millrace-io/millrace/logstore/recordbatch"
	"github.com/millrace-io/millrace/plugins/host"
	"github.com/millrace-io/millrace/plugins/sdk"
)

// sourceTask moves the units of one source task into the log. A unit's records
// and its source offset commit together, so they can never disagree.
type sourceTask struct {
	e       *taskEnv
	stream  *host.SourceStream
	writer  logstore.Writer
	allowed map[string]bool // topics that were found fit to write to
	failed  firstError
}

// runSource runs a source task until it fails or ctx ends; then it ends in order:
// what was read is appended and acknowledged first.
func runSource(ctx context.Context, e *taskEnv) (err error) {
	e.creations, _ = creations(e.config)
	// The writer comes first: offsets read after it are final.
	writer, err := e.w.log.OpenWriter(ctx, e.identity())
	if err != nil {
		return storeError(err)
	}
	defer func() { err = errors.Join(err, writer.Close()) }()
	positions, err := storedPositions(e.w.offsets, e.c.name)
	if err != nil {
		return err
	}
	stream, err := e.process.OpenSource(ctx, host.SourceSpec{TaskSpec: e.spec(), Offsets: positions}, e)
	if err != nil {
		return err
	}
	s := &sourceTask{e: e, stream: stream, writer: writer, allowed: make(map[string]bool)}
	e.up(stream)
	stopped := stopInOrder(ctx, stream, e.w.o.DrainTimeout)
	err = s.run(context.WithoutCancel(ctx))
	stream.Abort()
	return errors.Join(err, stopped())
}

// run appends unit after unit. It returns nil when the stream came to its end in
// order.
func (s *sourceTask) run(ctx context.Context) error {
	for {
		unit, err := s.stream.Recv(ctx)
		if err != nil {
			return s.failed.ending(err)
		}
		if err := s.append(ctx, unit); err != nil {
			unit.Release()
			return storeError(err)
		}
	}
}

// append hands a unit to the log and acknowledges it once it is durable.
func (s *sourceTask) append(ctx context.Context, unit *host.SourceUnit) error {
	changes, err := offsetEntries(s.e.c.name, unit.Positions)
	if err != nil {
		return err
	}
	u := &logstore.Unit{Batches: make([]logstore.Batch, 0, len(unit.Batches)+1)}
	for _, b := range unit.Batches {
		if err := s.check(b.Topic); err != nil {
			return err
		}
		u.Batches = append(u.Batches, logstore.Batch(b))
	}
	if len(changes) > 0 {
		b, err := s.e.w.offsets.batch(changes)
		if err != nil {
			return err
		}
		u.Batches = append(u.Batches, b)
	}
	if len(u.Batches) == 0 {
		unit.Release()
		return s.stream.Ack(unit.Seq)
	}
	return refusedBatch(s.writer.Append(ctx, u, func(_ logstore.Result, err error) {
		defer unit.Release()
		if err == nil {
			s.e.w.offsets.apply(changes)
			err = s.stream.Ack(unit.Seq)
		}
		if err != nil {
			s.fail(err)
			return
		}
		s.e.w.progressed(s.e.c, s.e.id)
	}))
}

// refusedBatch says of an error about a batch's bytes that the plugin sent them.
func refusedBatch(err error) error {
	for _, damage := range []error{recordbatch.ErrShort, recordbatch.ErrChecksum, recordbatch.ErrInvalid, recordbatch.ErrTooLarge} {
		if errors.Is(err, damage) {
			return sdk.Errorf(sdk.Corrupt, "plugin.bad_batch", "the plugin sent a batch that is refused: %w", err)
		}
	}
	return err
}

// check refuses topics that are not a connector's. The batches themselves are
// checked by the log.
func (s *sourceTask) check(topic string) error {
	if s.allowed[topic] {
		return nil
	}
	t, ok := s.e.w.log.Catalog().Lookup(topic)
	if !ok {
		return sdk.Errorf(sdk.Unavailable, "topic.missing", "topic %q is gone; the task starts again and creates it", topic)
	}
	if err := refuseInternal(t); err != nil {
		return err
	}
	s.allowed[topic] = true
	return nil
}

// fail notes an append that failed and ends the stream. Everything appended
// behind it fails too, so no offset passes a record that is not in the log.
func (s *sourceTask) fail(err error) {
	s.failed.note(err)
	s.stream.Abort()
}
