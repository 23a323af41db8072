package sdktest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/millrace-io/millrace/logstore/recordbatch"
	"github.com/millrace-io/millrace/plugins/host"
	"github.com/millrace-io/millrace/plugins/sdk"
)

// SourceCase describes a source to Source.
type SourceCase struct {
	Class string
	// Setup makes an empty system outside, and returns the connector's config
	// and a function that makes the records from (included) to to (excluded)
	// appear there, in order. A source that makes records by itself needs no
	// produce.
	Setup func(t *testing.T) (config map[string]string, produce func(from, to int))
	// Text is part of the stored value of record i and of no other; with the
	// default, "record i;", it ends in a semicolon so that 1 is not in 10.
	Text func(i int) string
	// Big, when set, makes one record of about so many bytes appear.
	Big func(t *testing.T, config map[string]string, size int)
	// Converters are those of the worker when nil: plain JSON.
	Converters map[string]string
}

const (
	sourceRecords = 3000 // enough for several batches and restarts
	restarts      = 5
)

func (c SourceCase) text(i int) string {
	if c.Text != nil {
		return c.Text(i)
	}
	return fmt.Sprintf("record %d;", i)
}

// run is one system with a worker beside it, and what has come from the source.
type run struct {
	SourceCase
	t       *testing.T
	w       *Worker
	config  map[string]string
	produce func(from, to int)
	seen    int // records seen, in order
	offsets []sdk.Position
	at      []mark // where each unit ended
}

// mark is a position and how many records lie before it.
type mark struct {
	seen    int
	offsets []sdk.Position
}

func (c SourceCase) begin(t *testing.T) *run {
	t.Helper()
	config, produce := c.Setup(t)
	if produce == nil {
		produce = func(int, int) {}
	}
	return &run{SourceCase: c, t: t, w: NewWorker(t), config: config, produce: produce}
}

func (r *run) open() *host.SourceStream {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	s, err := r.w.Process().OpenSource(ctx, host.SourceSpec{
		TaskSpec: host.TaskSpec{Connector: "test", Class: r.Class, Config: r.config, Converters: r.Converters},
		Offsets:  r.offsets,
	}, r.w)
	if err != nil {
		r.t.Fatalf("open: %v", err)
	}
	return s
}

// take receives one unit as a log does: all of it with its position, or nothing.
func (r *run) take(s *host.SourceStream) error {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	u, err := s.Recv(ctx)
	if err != nil {
		return err
	}
	n := 0
	for _, b := range u.Batches {
		for _, rec := range Records(r.t, b.Data) {
			if want := r.text(r.seen); !strings.Contains(string(rec.Value), want) {
				r.t.Fatalf("record %d should hold %q: %.300s", r.seen, want, rec.Value)
			}
			r.seen++
			n++
		}
	}
	if n != u.Records {
		r.t.Fatalf("unit %d says %d records and has %d", u.Seq, u.Records, n)
	}
	r.merge(u.Positions)
	r.at = append(r.at, mark{seen: r.seen, offsets: append([]sdk.Position(nil), r.offsets...)})
	u.Release()
	return s.Ack(u.Seq)
}

func (r *run) merge(ps []sdk.Position) {
	for _, p := range ps {
		found := false
		for i := range r.offsets {
			if r.offsets[i].SamePartition(p) {
				r.offsets[i], found = p, true
			}
		}
		if !found {
			r.offsets = append(r.offsets, p)
		}
	}
}

func (r *run) until(s *host.SourceStream, n int) {
	r.t.Helper()
	for r.seen < n {
		if err := r.take(s); err != nil {
			r.t.Fatalf("after %d records: %v", r.seen, err)
		}
	}
}

// stop ends a task in order and takes what still comes.
func (r *run) stop(s *host.SourceStream) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	if err := s.Stop(ctx); err != nil {
		r.t.Fatal(err)
	}
	for {
		switch err := r.take(s); {
		case errors.Is(err, io.EOF):
			return
		case err != nil:
			r.t.Fatalf("stop: %v", err)
		}
	}
}

// Source checks a source: order, restarts at any moment without loss or
// repetition, replay from a position, stops and aborts while it waits, big
// records, and a config that is wrong.
func Source(t *testing.T, c SourceCase) {
	t.Run("records arrive in order", func(t *testing.T) {
		r := c.begin(t)
		s := r.open()
		r.produce(0, 10)
		r.until(s, 10)
		r.produce(10, sourceRecords)
		r.until(s, sourceRecords)
		r.stop(s)
	})
	t.Run("a kill loses and repeats nothing", c.kill)
	t.Run("a restart in order loses and repeats nothing", func(t *testing.T) {
		r := c.begin(t)
		for i := range restarts {
			s := r.open()
			r.produce(i*100, (i+1)*100)
			r.until(s, (i+1)*100)
			r.stop(s)
		}
	})
	t.Run("a position is where it goes on", c.replay)
	t.Run("stop while it waits", func(t *testing.T) {
		r := c.begin(t)
		s := r.open()
		r.produce(0, 1)
		r.until(s, 1)
		began := time.Now()
		r.stop(s)
		if took := time.Since(began); took > patience/4 {
			t.Errorf("took %s", took)
		}
	})
	t.Run("abort while the worker takes nothing", c.abort)
	t.Run("big records", c.big)
	t.Run("a wrong config is refused", c.wrongConfig)
}

func (c SourceCase) kill(t *testing.T) {
	r := c.begin(t)
	r.produce(0, sourceRecords)
	for i := range restarts {
		s := r.open()
		r.until(s, (i+1)*sourceRecords/(restarts+2))
		if err := syscall.Kill(r.w.Process().PID(), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for {
			err := r.take(s) // a unit that came whole counts
			if errors.Is(err, host.ErrProcessGone) {
				break
			}
			if err != nil {
				t.Fatalf("after a kill: %v", err)
			}
		}
	}
	s := r.open()
	r.until(s, sourceRecords)
	r.stop(s)
}

func (c SourceCase) replay(t *testing.T) {
	r := c.begin(t)
	s := r.open()
	for i := range 10 {
		r.produce(i*20, (i+1)*20)
		r.until(s, (i+1)*20)
	}
	r.stop(s)
	for _, m := range []mark{{}, r.at[0], r.at[len(r.at)/2], r.at[len(r.at)-1]} {
		r.seen, r.offsets = m.seen, append([]sdk.Position(nil), m.offsets...)
		s := r.open()
		r.produce(200, 200)
		r.until(s, 200)
		s.Abort()
	}
}

func (c SourceCase) abort(t *testing.T) {
	r := c.begin(t)
	s := r.open()
	r.produce(0, sourceRecords)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := s.Recv(ctx); err != nil {
		t.Fatal(err)
	}
	s.Abort()
	for {
		_, err := s.Recv(ctx)
		if errors.Is(err, host.ErrAborted) {
			break
		}
		if err != nil {
			t.Fatalf("abort: %v", err)
		}
	}
	again := r.open() // the process has survived, and the task was closed
	r.until(again, 10)
	r.stop(again)
}

func (c SourceCase) big(t *testing.T) {
	if c.Big == nil {
		t.Skip("the source has no big records")
	}
	for _, size := range []int{1 << 20, 10 << 20, 63 << 20, host.DefaultRecordMaxBytes + 1} {
		t.Run(fmt.Sprint(size, " bytes"), func(t *testing.T) {
			r := c.begin(t)
			s := r.open()
			c.Big(t, r.config, size)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			u, err := s.Recv(ctx)
			if size > host.DefaultRecordMaxBytes {
				if sdk.CodeOf(err) != sdk.Invalid {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if u.Bytes < size {
				t.Errorf("unit has %d bytes", u.Bytes)
			}
			var all []recordbatch.Record
			for _, b := range u.Batches {
				all = append(all, Records(t, b.Data)...)
			}
			if len(all) != 1 {
				t.Errorf("unit has %d records", len(all))
			}
			s.Abort()
		})
	}
}

func (c SourceCase) wrongConfig(t *testing.T) {
	w := NewWorker(t)
	refused(t, w, c.Class, func(ctx context.Context) error {
		_, err := w.Process().OpenSource(ctx, host.SourceSpec{TaskSpec: host.TaskSpec{Connector: "test", Class: c.Class}}, w)
		return err
	})
}

// refused wants an empty config to be refused by Validate and at Open, without
// harm to the process.
func refused(t *testing.T, w *Worker, class string, open func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	v, err := w.Process().Validate(ctx, class, nil)
	if err != nil {
		t.Fatalf("validate: %v", err)
	}
	if len(v.Report.Errors())+len(v.Problems) == 0 {
		t.Skip("an empty config is right for this connector")
	}
	if err := open(ctx); sdk.CodeOf(err) != sdk.Invalid && !isFields(err) {
		t.Errorf("open says %v", err)
	}
	if err := w.Process().Err(); err != nil {
		t.Errorf("the process ended: %v", err)
	}
}

func isFields(err error) bool {
	_, ok := errors.AsType[sdk.FieldErrors](err)
	return ok
}
