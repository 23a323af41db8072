package host_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/millrace-io/millrace/plugins/host"
	"github.com/millrace-io/millrace/plugins/sdk"
)

func TestSourceFailuresAreTheTasksOwn(t *testing.T) {
	p, logs := start(t, "plugin")
	for _, c := range []struct {
		mode   string
		code   sdk.Code
		reason string
		text   string
		before int // records that still come
	}{
		{"fail.open", sdk.Conflict, "test.open", "open was told to fail", 0},
		{"panic.open", sdk.Internal, "plugin.panic", "Open panicked: open", 0},
		{"fail.read", sdk.Invalid, "test.read", "read was told to fail at 500", 500},
		{"panic.read", sdk.Internal, "plugin.panic", "Read panicked: read at 500", 500},
	} {
		t.Run(c.mode, func(t *testing.T) {
			s, err := p.OpenSource(t.Context(), numberSource(map[string]string{"mode": c.mode}), &services{})
			if c.before > 0 {
				if err != nil {
					t.Fatal(err)
				}
				drain(t, s, c.before)
				_, err = s.Recv(t.Context())
			}
			e, ok := errors.AsType[*sdk.Error](err)
			if !ok || e.Code != c.code || e.Reason != c.reason || !strings.Contains(e.Msg, c.text) {
				t.Errorf("error is %#v (%v)", err, err)
			}
			if errors.Is(err, host.ErrProcessGone) {
				t.Error("the process is said to be gone")
			}
		})
	}
	if !strings.Contains(logs.String(), "plugins_test.go") {
		t.Error("no stack of the panic in the log")
	}
	if p.Err() != nil {
		t.Errorf("process ended: %v", p.Err())
	}
}

func TestUnboundConfigIsRefusedWithItsKeys(t *testing.T) {
	p, _ := start(t, "plugin")
	spec := numberSource(map[string]string{"limit": "many", "topic": ""})
	_, err := p.OpenSource(t.Context(), spec, &services{})
	fields, ok := errors.AsType[sdk.FieldErrors](err)
	if !ok || len(fields) != 2 || fields[0].Key != "topic" || fields[1].Key != "limit" {
		t.Errorf("error is %#v", err)
	}
}

func TestReadThatRetriesShowsACondition(t *testing.T) {
	p, _ := start(t, "plugin")
	sv := &services{}
	s, err := p.OpenSource(t.Context(), numberSource(map[string]string{"mode": "retry.read"}), sv)
	if err != nil {
		t.Fatal(err)
	}
	drain(t, s, 1000)
	end(t, s)
	conditions, c := sv.seen()
	if len(conditions) < 2 || conditions[0] != "source.retrying" || conditions[len(conditions)-1] != "" {
		t.Errorf("conditions are %q", conditions)
	}
	if c.Retries != 2 {
		t.Errorf("counters are %+v", c)
	}
}

func TestACrashTakesTheProcessAndSaysWhy(t *testing.T) {
	p, _ := start(t, "plugin")
	s, err := p.OpenSource(t.Context(), numberSource(map[string]string{"mode": "exit.read"}), &services{})
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = s.Recv(t.Context()) // what was on its way may be lost
	}
	if !errors.Is(err, host.ErrProcessGone) || !strings.Contains(err.Error(), "panic: on a goroutine of its own") {
		t.Errorf("error is %v", err)
	}
	<-p.Done()
	if err := p.Err(); err == nil || !strings.Contains(err.Error(), "exit status 2") {
		t.Errorf("process says %v", err)
	}
	if _, err := p.Validate(t.Context(), "test.NumberSourceConnector", nil); !errors.Is(err, host.ErrProcessGone) {
		t.Errorf("a later call says %v", err)
	}
}

// TestKillLosesAndRepeatsNothing kills the plugin again and again while it reads
// and opens it with the position of the last unit that was taken.
func TestKillLosesAndRepeatsNothing(t *testing.T) {
	var values []string
	var offsets []sdk.Position
	const limit = 200_000
	for round := 0; len(values) < limit; round++ {
		p, _ := start(t, "plugin")
		spec := numberSource(map[string]string{"limit": strconv.Itoa(limit), "batch": "37"})
		spec.Offsets = offsets
		s, err := p.OpenSource(t.Context(), spec, &services{})
		if err != nil {
			t.Fatal(err)
		}
		stop, killed := len(values)+20_000+7*round, false
		for {
			u, err := s.Recv(t.Context())
			if err != nil {
				if !errors.Is(err, host.ErrProcessGone) || !strings.Contains(err.Error(), "signal 9") {
					t.Fatal(err)
				}
				break
			}
			for _, b := range u.Batches {
				for _, r := range records(t, b.Data) {
					first, _, _ := strings.Cut(string(r.Value), " ")
					values = append(values, first)
				}
			}
			offsets = u.Positions
			u.Release()
			_ = s.Ack(u.Seq)
			if !killed && (len(values) >= stop || len(values) >= limit) {
				killed = true
				if err := syscall.Kill(p.PID(), syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for i, v := range values {
		if v != strconv.Itoa(i) {
			t.Fatalf("record %d is %s", i, v)
		}
	}
}

func TestToleratedRecordsAreSkippedAndCounted(t *testing.T) {
	p, _ := start(t, "plugin")
	for _, tolerate := range []bool{false, true} {
		sv := &services{}
		spec := numberSource(map[string]string{"mode": "poison", "limit": "100"})
		spec.Tolerate = tolerate
		s, err := p.OpenSource(t.Context(), spec, sv)
		if err != nil {
			t.Fatal(err)
		}
		if !tolerate {
			_, err := s.Recv(t.Context())
			if e, ok := errors.AsType[*sdk.Error](err); !ok || e.Reason != "record.conversion" || !strings.Contains(e.Msg, `topic "t"`) {
				t.Errorf("error is %v", err)
			}
			continue
		}
		values, last := drain(t, s, 90)
		if slices.Contains(values, "13") || last[0].Offset["n"] != int64(100) {
			t.Errorf("got %v up to %v", values, last)
		}
		end(t, s)
		if _, c := sv.seen(); c.Skipped != 10 || c.Failed != 10 || c.Written != 90 || c.Read != 100 {
			t.Errorf("counters are %+v", c)
		}
	}
}

func TestRecordsUpToTheLimitPassAndLargerOnesFail(t *testing.T) {
	p, _ := start(t, "plugin")
	for _, c := range []struct {
		size int
		ok   bool
	}{{1 << 20, true}, {10 << 20, true}, {63 << 20, true}, {64 << 20, false}} {
		t.Run(fmt.Sprint(c.size>>20, " MiB"), func(t *testing.T) {
			s, err := p.OpenSource(t.Context(), numberSource(map[string]string{"size": strconv.Itoa(c.size), "limit": "3", "batch": "1", "keyed": "true"}), &services{})
			if err != nil {
				t.Fatal(err)
			}
			if !c.ok {
				_, err := s.Recv(t.Context())
				e, ok := errors.AsType[*sdk.Error](err)
				if !ok || e.Reason != "record.too_large" || !strings.Contains(e.Msg, `"t"`) || !strings.Contains(e.Msg, `"k0"`) || !strings.Contains(e.Msg, strconv.Itoa(64<<20)) {
					t.Errorf("error is %v", err)
				}
				return
			}
			if values, _ := drain(t, s, 3); !slices.Equal(values, []string{"0", "1", "2"}) {
				t.Errorf("got %v", values)
			}
			end(t, s)
		})
	}
}

func TestAUnitOfManyFramesStaysOne(t *testing.T) {
	p, _ := start(t, "plugin")
	s, err := p.OpenSource(t.Context(), numberSource(map[string]string{"size": "100000", "limit": "400", "batch": "200"}), &services{})
	if err != nil {
		t.Fatal(err)
	}
	u, err := s.Recv(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if u.Records != 200 || u.Bytes < 200*100000 || len(u.Batches) < 4 {
		t.Errorf("unit has %d records in %d bytes and %d batches", u.Records, u.Bytes, len(u.Batches))
	}
	u.Release()
	s.Abort()
	s, err = p.OpenSource(t.Context(), numberSource(map[string]string{"size": "100000", "limit": "4000", "batch": "2000"}), &services{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err = s.Recv(t.Context()); sdk.ReasonOf(err) != "source.unit_too_large" {
		t.Errorf("a unit without end gives %v", err)
	}
}

// TestASlowWorkerSlowsTheSource takes nothing back and wants the source to stand
// still within its credit.
func TestASlowWorkerSlowsTheSource(t *testing.T) {
	p, _ := start(t, "plugin")
	s, err := p.OpenSource(t.Context(), numberSource(map[string]string{"size": "10000", "limit": "10000", "batch": "10"}), &services{})
	if err != nil {
		t.Fatal(err)
	}
	var held []*host.SourceUnit
	bytes := 0
	for {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		u, err := s.Recv(ctx)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, u)
		bytes += u.Bytes
		_ = s.Ack(u.Seq)
	}
	if bytes < 3<<20 || bytes > 4<<20 {
		t.Errorf("%d bytes came without credit", bytes)
	}
	n := 0
	for _, u := range held {
		n += u.Records
		u.Release()
	}
	drain(t, s, 10000-n)
	end(t, s)
}

func TestPauseHoldsAndResumeGoesOn(t *testing.T) {
	p, _ := start(t, "plugin")
	s, err := p.OpenSource(t.Context(), numberSource(map[string]string{"limit": "100000000", "batch": "10"}), &services{})
	if err != nil {
		t.Fatal(err)
	}
	drain(t, s, 100)
	s.Pause()
	quiet := func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		u, err := s.Recv(ctx)
		if err != nil {
			return true
		}
		u.Release()
		_ = s.Ack(u.Seq)
		return false
	}
	for i := 0; !quiet(); i++ {
		if i > 100_000 {
			t.Fatal("does not pause")
		}
	}
	s.Resume()
	drain(t, s, 100)
	s.Pause()
	end(t, s)
}

func TestAcknowledgedComesAfterTheWorkersWord(t *testing.T) {
	p, _ := start(t, "plugin")
	file := filepath.Join(t.TempDir(), "acked")
	spec := numberSource(map[string]string{"ack.to": file, "limit": "1000"})
	spec.Offsets = []sdk.Position{{Partition: map[string]any{"s": "numbers"}, Offset: map[string]any{"n": int64(300)}}}
	s, err := p.OpenSource(t.Context(), spec, &services{})
	if err != nil {
		t.Fatal(err)
	}
	acked := func(want string) {
		t.Helper()
		for range 1000 {
			if b, _ := os.ReadFile(file); string(b) == want {
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
		b, _ := os.ReadFile(file)
		t.Fatalf("acknowledged %s, want %s", b, want)
	}
	acked("300") // the stored one, once
	u, err := s.Recv(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(file); string(b) != "300" {
		t.Errorf("acknowledged %s before the worker said so", b)
	}
	first := u.Positions[0].Offset["n"].(int64)
	u.Release()
	_ = s.Ack(u.Seq)
	acked(fmt.Sprint(first))
	drain(t, s, 1000-int(first))
	end(t, s)
	acked("1000")
}

func TestStopWaitsForWhatIsNotAcknowledged(t *testing.T) {
	p, _ := start(t, "plugin")
	s, err := p.OpenSource(t.Context(), numberSource(map[string]string{"limit": "10"}), &services{})
	if err != nil {
		t.Fatal(err)
	}
	u, err := s.Recv(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := s.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("ended without acknowledgement: %v", err)
	}
	u.Release()
	_ = s.Ack(u.Seq)
	if _, err := s.Recv(t.Context()); !errors.Is(err, io.EOF) {
		t.Errorf("got %v", err)
	}
}

func TestAStopThatIsNeverAcknowledgedIsAborted(t *testing.T) {
	p, _ := start(t, "plugin")
	s, err := p.OpenSource(t.Context(), numberSource(map[string]string{"limit": "10"}), &services{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_ = s.Stop(ctx)
	if _, err := s.Recv(t.Context()); !errors.Is(err, host.ErrAborted) {
		t.Errorf("got %v", err)
	}
}

func TestOpenThatHangsEndsWithItsContext(t *testing.T) {
	p, _ := start(t, "plugin")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := p.OpenSource(ctx, numberSource(map[string]string{"mode": "hang.open"}), &services{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestKeysChooseThePartitionAndKeylessRecordsTakeTurns(t *testing.T) {
	p, _ := start(t, "plugin")
	for _, keyed := range []string{"true", "false"} {
		s, err := p.OpenSource(t.Context(), numberSource(map[string]string{"keyed": keyed, "limit": "20000", "batch": "500"}), &services{partitions: 3})
		if err != nil {
			t.Fatal(err)
		}
		where := make(map[string]int32)
		used := make(map[int32]int)
		for n := 0; n < 20000; {
			u, err := s.Recv(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, b := range u.Batches {
				for _, r := range records(t, b.Data) {
					used[b.Partition]++
					if before, seen := where[string(r.Key)]; keyed == "true" && seen && before != b.Partition {
						t.Fatalf("key %s is in %d and %d", r.Key, before, b.Partition)
					}
					where[string(r.Key)] = b.Partition
				}
			}
			n += u.Records
			u.Release()
			_ = s.Ack(u.Seq)
		}
		if len(used) != 3 {
			t.Errorf("keyed %s: partitions used: %v", keyed, used)
		}
		end(t, s)
	}
}

func TestPlainJSONCarriesItsSchema(t *testing.T) {
	p, _ := start(t, "plugin")
	sv := &services{}
	s, err := p.OpenSource(t.Context(), numberSource(map[string]string{"schema": "true", "limit": "50"}), sv)
	if err != nil {
		t.Fatal(err)
	}
	u, err := s.Recv(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records(t, u.Batches[0].Data) {
		if len(r.Headers) != 1 || r.Headers[0].Key != "__millrace.value.schema" || binary.BigEndian.Uint32(r.Headers[0].Value) != 1 {
			t.Fatalf("headers are %v", r.Headers)
		}
	}
	if len(sv.schemas) != 1 {
		t.Errorf("schemas: %q", sv.schemas)
	}
	// A sink gets the typed value back.
	spec, file := listSink(t, nil)
	spec.Converters = nil
	k, err := p.OpenSink(t.Context(), spec, sv)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Send(t.Context(), tp0, 0, u.Batches[0].Data); err != nil {
		t.Fatal(err)
	}
	until(t, k, func(e host.SinkEvent) bool { return e.Commit[tp0] == int64(u.Records) })
	if got := lines(t, file)[1]; got != "t 0 0 number 0" {
		t.Errorf("sink saw %q", got)
	}
	endSink(t, k)
	s.Abort()
}

func TestAMissingTopicFailsTheTaskWithItsName(t *testing.T) {
	p, _ := start(t, "plugin")
	sv := &services{noTopic: sdk.Errorf(sdk.Invalid, "topic.missing", "there is no such topic")}
	s, err := p.OpenSource(t.Context(), numberSource(nil), sv)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(t.Context()); sdk.ReasonOf(err) != "topic.missing" || !strings.Contains(err.Error(), `"t"`) {
		t.Errorf("got %v", err)
	}
}
