package serve

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"github.com/millrace-io/millrace/plugins/internal/pb"
	"github.com/millrace-io/millrace/plugins/internal/wire"
	"github.com/millrace-io/millrace/plugins/sdk"
)

// How often a task says how it is doing: often enough to look alive, seldom
// enough to cost nothing beside the data.
const (
	progressEvery = 250 * time.Millisecond
	countersEvery = time.Second
)

// counters are a task's totals.
type counters struct{ read, written, failed, skipped, retries, filtered int64 }

// add adds more to the totals.
func (c *counters) add(more counters) {
	c.read += more.read
	c.written += more.written
	c.failed += more.failed
	c.skipped += more.skipped
	c.retries += more.retries
	c.filtered += more.filtered
}

// throttled is something that is sent now and then.
type throttled struct {
	every time.Duration
	dirty bool
	last  time.Time
	timer *time.Timer
}

// due reports whether to send now; when it is too early it makes the outbox ask
// again later.
func (t *throttled) due(now time.Time, final bool, kick func()) bool {
	if !t.dirty {
		return false
	}
	if wait := t.every - now.Sub(t.last); wait > 0 && !final {
		if t.timer == nil {
			t.timer = time.AfterFunc(wait, kick)
		} else {
			t.timer.Reset(wait)
		}
		return false
	}
	t.dirty, t.last = false, now
	return true
}

func (t *throttled) stop() {
	if t.timer != nil {
		t.timer.Stop()
	}
}

// door is a task's way to the worker: it implements sdk.TaskHost, asks
// questions, and sends what there is to say in one place.
type door struct {
	link *wire.Link
	out  *wire.Outbox

	mu        sync.Mutex // guards the fields below
	final     bool       // send everything now
	progress  sdk.Progress
	progressT throttled
	total     counters
	countersT throttled
	condition *pb.Condition // to be sent
	shown     pb.Condition  // sent last
	credit    uint64
	calls     map[uint64]chan *pb.Reply
	lastCall  uint64
	extra     func(final bool) []*pb.Control // collects what the kind of task has to say
}

func newDoor(link *wire.Link, extra func(final bool) []*pb.Control) *door {
	d := &door{
		link: link, calls: make(map[uint64]chan *pb.Reply), extra: extra,
		progressT: throttled{every: progressEvery}, countersT: throttled{every: countersEvery},
	}
	d.out = wire.NewOutbox(link, d.collect)
	return d
}

// collect is called by the outbox.
func (d *door) collect() []*pb.Control {
	d.mu.Lock()
	final := d.final
	d.mu.Unlock()
	var out []*pb.Control
	if d.extra != nil {
		out = d.extra(final)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.credit > 0 {
		out = append(out, &pb.Control{Kind: &pb.Control_Credit{Credit: &pb.Credit{Bytes: d.credit}}})
		d.credit = 0
	}
	if d.condition != nil {
		out = append(out, &pb.Control{Kind: &pb.Control_Condition{Condition: d.condition}})
		d.condition = nil
	}
	now := time.Now()
	if d.progressT.due(now, final, d.out.Kick) {
		if b, err := json.Marshal(d.progress); err == nil {
			out = append(out, &pb.Control{Kind: &pb.Control_Progress{Progress: &pb.Progress{Json: b}}})
		}
	}
	if d.countersT.due(now, final, d.out.Kick) {
		t := d.total
		out = append(out, &pb.Control{Kind: &pb.Control_Counters{Counters: &pb.Counters{
			Read: t.read, Written: t.written, Failed: t.failed, Skipped: t.skipped, Retries: t.retries, Filtered: t.filtered,
		}}})
	}
	return out
}

// close sends what is left and ends the timers.
func (d *door) close() {
	d.mu.Lock()
	d.final = true
	d.mu.Unlock()
	d.out.Kick()
	d.out.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.progressT.stop()
	d.countersT.stop()
}

// Progress replaces the task's progress.
func (d *door) Progress(p sdk.Progress) {
	d.mu.Lock()
	p.Phase, p.Item = wire.Text(p.Phase), wire.Text(p.Item)
	d.progress, d.progressT.dirty = p, true
	d.mu.Unlock()
	d.out.Kick()
}

// Condition replaces the task's condition.
func (d *door) Condition(code, message string) {
	code, message = wire.Text(code), wire.Text(message)
	d.mu.Lock()
	same := d.shown.GetCode() == code && d.shown.GetMessage() == message
	if !same {
		d.shown.Code, d.shown.Message = code, message
		d.condition = &pb.Condition{Code: code, Message: message}
	}
	d.mu.Unlock()
	if !same {
		d.out.Kick()
	}
}

// count adds to the task's totals.
func (d *door) count(c counters) {
	if c == (counters{}) {
		return
	}
	d.mu.Lock()
	d.total.add(c)
	kick := !d.countersT.dirty
	d.countersT.dirty = true
	d.mu.Unlock()
	if kick {
		d.out.Kick()
	}
}

// giveCredit gives back the right to send so many bytes.
func (d *door) giveCredit(n int) {
	if n == 0 {
		return
	}
	d.mu.Lock()
	d.credit += uint64(n)
	d.mu.Unlock()
	d.out.Kick()
}

// call asks the worker and waits for the answer.
func (d *door) call(ctx context.Context, c *pb.Call) (*pb.Reply, error) {
	answer := make(chan *pb.Reply, 1)
	d.mu.Lock()
	d.lastCall++
	c.Id = d.lastCall
	d.calls[c.Id] = answer
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		delete(d.calls, c.Id)
		d.mu.Unlock()
	}()
	if err := d.link.Control(&pb.Control{Kind: &pb.Control_Call{Call: c}}); err != nil {
		return nil, err
	}
	select {
	case r := <-answer:
		return r, wire.ErrorFromPB(r.GetError())
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// answered hands a reply to who asked.
func (d *door) answered(r *pb.Reply) {
	d.mu.Lock()
	answer := d.calls[r.GetId()]
	delete(d.calls, r.GetId())
	d.mu.Unlock()
	if answer != nil {
		answer <- r
	}
}

// topic asks how many partitions a topic has.
func (d *door) topic(ctx context.Context, name string) (int32, error) {
	r, err := d.call(ctx, &pb.Call{Ask: &pb.Call_Topic{Topic: wire.Text(name)}})
	if err != nil {
		return 0, err
	}
	if r.GetPartitions() < 1 {
		return 0, sdk.Errorf(sdk.Internal, "topic.partitions", "topic %q has %d partitions", name, r.GetPartitions())
	}
	return r.GetPartitions(), nil
}

// registerSchema asks for the id of a schema.
func (d *door) registerSchema(ctx context.Context, definition []byte) (uint32, error) {
	r, err := d.call(ctx, &pb.Call{Ask: &pb.Call_RegisterSchema{RegisterSchema: definition}})
	return r.GetSchemaId(), err
}

// schema asks for the definition of an id.
func (d *door) schema(ctx context.Context, id uint32) ([]byte, error) {
	r, err := d.call(ctx, &pb.Call{Ask: &pb.Call_Schema{Schema: id}})
	return r.GetDefinition(), err
}
