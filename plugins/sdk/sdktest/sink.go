package sdktest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/millrace-io/millrace/plugins/host"
	"github.com/millrace-io/millrace/plugins/sdk"
)

// SinkCase describes a sink to Sink.
type SinkCase struct {
	Class string
	// Setup makes an empty target, and returns the connector's config and a
	// function that reads what the target holds: texts of records, in the order
	// they were written, or sorted when the target has no order.
	Setup func(t *testing.T) (config map[string]string, read func() []string)
	// Value is the stored value of record i, and Text what read returns for it;
	// the defaults are "record i", as JSON when the converter wants that.
	Value func(i int) []byte
	Text  func(i int) string
	// Converters are the worker's default when nil: plain JSON.
	Converters map[string]string
	// ExactlyOnce says that nothing repeats even after a kill.
	ExactlyOnce bool
	// Big says that the sink takes records up to the limit.
	Big bool
}

const sinkRecords = 3000

func (c SinkCase) value(i int) []byte {
	if c.Value != nil {
		return c.Value(i)
	}
	return fmt.Appendf(nil, "%q", fmt.Sprint("record ", i))
}

func (c SinkCase) text(i int) string {
	if c.Text != nil {
		return c.Text(i)
	}
	return string(c.value(i))
}

// sinking is one target with a worker beside it.
type sinking struct {
	SinkCase
	t        *testing.T
	w        *Worker
	config   map[string]string
	read     func() []string
	tolerate bool
	tp       sdk.TopicPartition

	mu        sync.Mutex // guards the fields below
	committed int64
	letters   []host.DeadLetter
}

func (c SinkCase) begin(t *testing.T) *sinking {
	t.Helper()
	config, read := c.Setup(t)
	return &sinking{SinkCase: c, t: t, w: NewWorker(t), config: config, read: read, tp: sdk.TopicPartition{Topic: "topic", Partition: 0}}
}

func (r *sinking) open() *host.SinkStream {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	s, err := r.w.Process().OpenSink(ctx, host.SinkSpec{
		TaskSpec:   host.TaskSpec{Connector: "test", Class: r.Class, Config: r.config, Converters: r.Converters, Tolerate: r.tolerate},
		Partitions: []sdk.AssignedPartition{{TopicPartition: r.tp, TopicID: "id", Offset: r.committed}},
	}, r.w)
	if err != nil {
		r.t.Fatalf("open: %v", err)
	}
	return s
}

// feed sends records as the log would, until ctx ends; a rewind starts over.
func (r *sinking) feed(ctx context.Context, s *host.SinkStream, to int, rewinds <-chan int64) error {
	const perBatch = 50
	next := int(r.committed)
	for {
		select {
		case at := <-rewinds:
			next = int(at)
			s.Restarted(r.tp, at)
		default:
		}
		if next >= to {
			select {
			case at := <-rewinds:
				next = int(at)
				s.Restarted(r.tp, at)
				continue
			case <-ctx.Done():
				return nil
			}
		}
		// A log yields whole batches; reading may begin inside one.
		base := next / perBatch * perBatch
		var values [][]byte
		for i := base; i < min(base+perBatch, to); i++ {
			values = append(values, r.value(i))
		}
		if err := s.Send(ctx, r.tp, int64(next), Batch(r.t, int64(base), values...)); err != nil {
			return err
		}
		next = base + len(values)
	}
}

// watch handles events until commits reach an offset or the stream ends. What is
// committed must be in the target.
func (r *sinking) watch(ctx context.Context, s *host.SinkStream, to int64, rewinds chan<- int64) error {
	for r.committed < to {
		e, err := s.Recv(ctx)
		if err != nil {
			return err
		}
		r.handle(s, e, rewinds)
	}
	return nil
}

func (r *sinking) handle(s *host.SinkStream, e host.SinkEvent, rewinds chan<- int64) {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.letters = append(r.letters, e.Letters...)
	if e.LetterID != 0 {
		s.SettleLetters(e.LetterID, nil)
	}
	if at, ok := e.Rewind[r.tp]; ok {
		rewinds <- at
	}
	offset, ok := e.Commit[r.tp]
	if !ok {
		return
	}
	if offset < r.committed {
		r.t.Errorf("commit went back from %d to %d", r.committed, offset)
	}
	r.committed = offset
	given := make(map[int64]bool)
	for _, l := range r.letters {
		given[l.Offset] = true
	}
	held := make(map[string]bool)
	for _, text := range r.read() {
		held[text] = true
	}
	for i := range offset {
		if !held[r.text(int(i))] && !given[i] {
			r.t.Fatalf("offset %d is committed and record %d is not in the target", offset, i)
		}
	}
}

// pass sends records up to to and waits until they are committed.
func (r *sinking) pass(s *host.SinkStream, to int) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	feeding, done := context.WithCancel(ctx)
	rewinds := make(chan int64, 16)
	fed := make(chan error, 1)
	go func() { fed <- r.feed(feeding, s, to, rewinds) }()
	err := r.watch(ctx, s, int64(to), rewinds)
	done()
	if fedErr := <-fed; err == nil && fedErr != nil && !errors.Is(fedErr, context.Canceled) {
		err = fedErr
	}
	if err != nil {
		r.t.Fatalf("after offset %d: %v", r.committed, err)
	}
}

func (r *sinking) stop(s *host.SinkStream) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	if err := s.Stop(ctx); err != nil {
		r.t.Fatal(err)
	}
	rewinds := make(chan int64, 16)
	for {
		e, err := s.Recv(ctx)
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			r.t.Fatalf("stop: %v", err)
		}
		r.handle(s, e, rewinds)
	}
}

// complete wants records 0 to n in the target, in order when nothing repeated.
func (r *sinking) complete(n int, skipped ...int) {
	r.t.Helper()
	var want []string
	for i := range n {
		if !slices.Contains(skipped, i) {
			want = append(want, r.text(i))
		}
	}
	got := r.read()
	if slices.Equal(got, want) {
		return
	}
	missing := make(map[string]bool)
	for _, text := range want {
		missing[text] = true
	}
	for _, text := range got {
		delete(missing, text)
	}
	if len(missing) > 0 {
		r.t.Fatalf("%d of %d records are missing in the target, which has %d", len(missing), len(want), len(got))
	}
	if r.ExactlyOnce || len(got) == len(want) {
		r.t.Fatalf("the target holds %d records instead of %d, or in another order", len(got), len(want))
	}
}

// Sink checks a sink: that only what the target holds is committed, restarts at
// any moment without loss, a last flush at the end, aborts, poison and big
// records, partitions that come and go, and a config that is wrong.
func Sink(t *testing.T, c SinkCase) {
	t.Run("what is committed is in the target", func(t *testing.T) {
		r := c.begin(t)
		s := r.open()
		r.pass(s, sinkRecords)
		r.stop(s)
		r.complete(sinkRecords)
	})
	t.Run("a kill loses nothing", c.kill)
	t.Run("a stop flushes", c.stopFlushes)
	t.Run("an idle sink stays well", func(t *testing.T) {
		r := c.begin(t)
		s := r.open()
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()
		if e, err := s.Recv(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %+v, %v", e, err)
		}
		r.pass(s, 10)
		r.stop(s)
		r.complete(10)
	})
	t.Run("abort in the middle", func(t *testing.T) {
		r := c.begin(t)
		s := r.open()
		r.pass(s, 100)
		if err := s.Send(t.Context(), r.tp, 100, Batch(t, 100, r.value(100))); err != nil {
			t.Fatal(err)
		}
		s.Abort()
		again := r.open() // the process has survived, and the task was closed
		r.pass(again, 200)
		r.stop(again)
		r.complete(200)
	})
	t.Run("a poison record becomes a dead letter", c.poison)
	t.Run("partitions come and go", c.partitions)
	t.Run("big records", c.big)
	t.Run("a wrong config is refused", func(t *testing.T) {
		w := NewWorker(t)
		refused(t, w, c.Class, func(ctx context.Context) error {
			_, err := w.Process().OpenSink(ctx, host.SinkSpec{TaskSpec: host.TaskSpec{Connector: "test", Class: c.Class}}, w)
			return err
		})
	})
}

func (c SinkCase) kill(t *testing.T) {
	r := c.begin(t)
	for i := range restarts {
		s := r.open()
		r.pass(s, (i+1)*sinkRecords/(restarts+2))
		// More is on its way when the process dies.
		feeding, cancel := context.WithTimeout(t.Context(), time.Duration(i*7)*time.Millisecond)
		err := r.feed(feeding, s, sinkRecords, nil)
		cancel()
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		if err := syscall.Kill(r.w.Process().PID(), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for err == nil || errors.Is(err, context.DeadlineExceeded) {
			var e host.SinkEvent
			if e, err = s.Recv(t.Context()); err == nil {
				r.handle(s, e, make(chan int64, 1))
			}
		}
		if !errors.Is(err, host.ErrProcessGone) {
			t.Fatalf("after a kill: %v", err)
		}
	}
	s := r.open()
	r.pass(s, sinkRecords)
	r.stop(s)
	r.complete(sinkRecords)
}

func (c SinkCase) stopFlushes(t *testing.T) {
	r := c.begin(t)
	s := r.open()
	if err := s.Send(t.Context(), r.tp, 0, Batch(t, 0, r.value(0), r.value(1))); err != nil {
		t.Fatal(err)
	}
	// Wait until the records were given to Write: only those are flushed.
	deadline := time.Now().Add(patience)
	for r.taken() < 2 && time.Now().Before(deadline) {
		<-time.After(10 * time.Millisecond)
	}
	r.stop(s)
	if r.committed != 2 {
		t.Errorf("the stop committed %d, want 2", r.committed)
	}
	r.complete(2)
}

func (r *sinking) taken() int64 {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	return r.w.counters.Written
}

func (c SinkCase) poison(t *testing.T) {
	r := c.begin(t)
	if r.Converters == nil {
		r.Converters = map[string]string{"key.converter": "org.apache.kafka.connect.storage.StringConverter"}
	}
	// A key that its converter cannot read is poison for every sink.
	r.Converters = map[string]string{
		"key.converter":   "org.apache.kafka.connect.converters.IntegerConverter",
		"value.converter": r.Converters["value.converter"], "value.converter.schemas.enable": r.Converters["value.converter.schemas.enable"],
	}
	if r.Converters["value.converter"] == "" {
		delete(r.Converters, "value.converter")
	}
	r.tolerate = true
	s := r.open()
	if err := s.Send(t.Context(), r.tp, 0, Batch(t, 0, r.value(0), r.value(1))); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := r.watch(ctx, s, 2, make(chan int64, 1)); err != nil {
		t.Fatal(err)
	}
	r.stop(s)
	if len(r.letters) != 2 || r.letters[0].Stage != "KEY_CONVERTER" || !strings.Contains(r.letters[0].Class, "IntegerConverter") {
		t.Errorf("letters are %+v", r.letters)
	}
	r.complete(2, 0, 1)
}

func (c SinkCase) partitions(t *testing.T) {
	r := c.begin(t)
	s := r.open()
	r.pass(s, 10)
	other := sdk.TopicPartition{Topic: r.tp.Topic, Partition: 1}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	events := make(chan error, 1)
	watching, stopWatching := context.WithCancel(ctx)
	go func() { // commits come while Assign waits
		for {
			e, err := s.Recv(watching)
			if err != nil {
				events <- err
				return
			}
			r.handle(s, e, make(chan int64, 1))
		}
	}()
	for _, set := range [][]sdk.AssignedPartition{
		{{TopicPartition: other, TopicID: "id"}},
		{{TopicPartition: other, TopicID: "id"}, {TopicPartition: r.tp, TopicID: "id", Offset: 10}},
		{{TopicPartition: r.tp, TopicID: "id", Offset: 10}},
	} {
		if err := s.Assign(ctx, set); err != nil {
			t.Fatal(err)
		}
	}
	stopWatching()
	if err := <-events; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	r.pass(s, 20)
	r.stop(s)
	r.complete(20)
}

func (c SinkCase) big(t *testing.T) {
	if !c.Big {
		t.Skip("the sink does not take big records")
	}
	r := c.begin(t)
	values := [][]byte{bigValue(0, 1<<20), bigValue(1, 10<<20), bigValue(2, 63<<20)}
	r.Value = func(i int) []byte { return values[i] }
	r.Text = func(i int) string { return string(values[i]) }
	s := r.open()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for i, v := range values {
		if err := s.Send(ctx, r.tp, int64(i), Batch(t, int64(i), v)); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.watch(ctx, s, 3, make(chan int64, 1)); err != nil {
		t.Fatal(err)
	}
	r.stop(s)
	r.complete(3)
	over := Batch(t, 3, bigValue(3, host.DefaultRecordMaxBytes+1<<20))
	if err := s.Send(ctx, r.tp, 3, over); sdk.ReasonOf(err) != "record.too_large" {
		t.Errorf("a record over the limit: %v", err)
	}
}

// bigValue is a JSON text of so many bytes.
func bigValue(i, size int) []byte {
	b := make([]byte, 0, size)
	b = fmt.Appendf(b, `"%d `, i)
	b = append(b, strings.Repeat("x", size-len(b)-1)...)
	return append(b, '"')
}
