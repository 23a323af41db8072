package host_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace-io/millrace/plugins/host"
	"github.com/millrace-io/millrace/plugins/sdk"
)

func values(from, n int) []string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprint("v", from+i))
	}
	return out
}

func openSink(t testing.TB, config map[string]string, change func(*host.SinkSpec)) (*host.SinkStream, *services, string) {
	t.Helper()
	p, _ := start(t, "plugin")
	spec, file := listSink(t, config)
	if change != nil {
		change(&spec)
	}
	sv := &services{}
	s, err := p.OpenSink(t.Context(), spec, sv)
	if err != nil {
		t.Fatal(err)
	}
	return s, sv, file
}

func TestWriteThatRetriesGetsTheSameRecordsAgain(t *testing.T) {
	s, sv, file := openSink(t, map[string]string{"mode": "retry"}, nil)
	for i := range 10 {
		if err := s.Send(t.Context(), tp0, int64(i*10), batchOf(t, int64(i*10), values(i*10, 10)...)); err != nil {
			t.Fatal(err)
		}
	}
	until(t, s, func(e host.SinkEvent) bool { return e.Commit[tp0] == 100 })
	endSink(t, s)
	got := lines(t, file)
	if len(got) != 102 || got[1] != "t 0 0 v0" || got[100] != "t 0 99 v99" {
		t.Errorf("wrote %q", got)
	}
	if c, n := sv.seen(); len(c) < 2 || c[0] != "sink.retrying" || c[len(c)-1] != "" || n.Retries == 0 || n.Written != 100 {
		t.Errorf("conditions %q, counters %+v", c, n)
	}
}

func TestRewindSendsAgainFromThere(t *testing.T) {
	s, _, file := openSink(t, map[string]string{"mode": "rewind"}, nil)
	send := func(from int) {
		for i := from; i < 30; i += 10 {
			if err := s.Send(t.Context(), tp0, int64(i), batchOf(t, int64(i), values(i, 10)...)); err != nil {
				t.Fatal(err)
			}
		}
	}
	send(0)
	rewinds := 0
	until(t, s, func(e host.SinkEvent) bool {
		if at, ok := e.Rewind[tp0]; ok {
			rewinds++
			s.Restarted(tp0, at)
			send(int(at))
		}
		return e.Commit[tp0] == 30
	})
	if rewinds == 0 {
		t.Error("no rewind came")
	}
	endSink(t, s)
	// Whatever was repeated, the last run is complete and in order.
	got := lines(t, file)
	got = got[:len(got)-1]
	for i, line := range got[len(got)-30:] {
		if line != fmt.Sprintf("t 0 %d v%d", i, i) {
			t.Fatalf("line %d is %q", i, line)
		}
	}
}

func TestReportedRecordsBecomeLettersBelowTheCommit(t *testing.T) {
	s, sv, _ := openSink(t, map[string]string{"mode": "report"}, func(spec *host.SinkSpec) { spec.Tolerate = true })
	if err := s.Send(t.Context(), tp0, 0, batchOf(t, 0, values(0, 100)...)); err != nil {
		t.Fatal(err)
	}
	var letters []int64
	until(t, s, func(e host.SinkEvent) bool {
		if (e.LetterID != 0) != (len(e.Letters) > 0) {
			t.Errorf("letter id %d with %d letters", e.LetterID, len(e.Letters))
		}
		for _, l := range e.Letters {
			if l.Stage != "TASK_PUT" || l.TopicPartition != tp0 || l.Message != fmt.Sprintf("offset %d is not wanted", l.Offset) {
				t.Errorf("letter %+v", l)
			}
			letters = append(letters, l.Offset)
		}
		s.SettleLetters(e.LetterID, nil) // somebody waits for every other one
		return e.Commit[tp0] == 100
	})
	slices.Sort(letters)
	if len(letters) != 20 || letters[0] != 2 || letters[19] != 97 {
		t.Errorf("letters for %v", letters)
	}
	endSink(t, s)
	if _, c := sv.seen(); c.Failed != 20 || c.Skipped != 20 || c.Read != 100 {
		t.Errorf("counters %+v", c)
	}
}

func TestReportWithoutToleranceFailsTheTask(t *testing.T) {
	s, _, _ := openSink(t, map[string]string{"mode": "report"}, nil)
	if err := s.Send(t.Context(), tp0, 0, batchOf(t, 0, values(0, 10)...)); err != nil {
		t.Fatal(err)
	}
	_, err := s.Recv(t.Context())
	if sdk.ReasonOf(err) != "record.rejected" || !strings.Contains(err.Error(), `topic "t" partition 0 offset 2`) {
		t.Errorf("got %v", err)
	}
}

func TestPoisonBecomesALetterOrFailsTheTask(t *testing.T) {
	for _, tolerate := range []bool{true, false} {
		s, _, file := openSink(t, nil, func(spec *host.SinkSpec) {
			spec.Tolerate = tolerate
			spec.Converters = map[string]string{"value.converter": "org.apache.kafka.connect.json.JsonConverter", "value.converter.schemas.enable": "false"}
		})
		if err := s.Send(t.Context(), tp0, 0, batchOf(t, 0, `"a"`, `{"broken`, `"c"`, `[broken`)); err != nil {
			t.Fatal(err)
		}
		if !tolerate {
			_, err := s.Recv(t.Context())
			for _, part := range []string{`topic "t" partition 0 offset 1`, "VALUE_CONVERTER", `{\"broken`} {
				if err == nil || !strings.Contains(err.Error(), part) {
					t.Errorf("%q is not in %v", part, err)
				}
			}
			continue
		}
		var letters []host.DeadLetter
		until(t, s, func(e host.SinkEvent) bool {
			letters = append(letters, e.Letters...)
			return e.Commit[tp0] == 4
		})
		if len(letters) != 2 || letters[0].Offset != 1 || letters[1].Offset != 3 || letters[0].Stage != "VALUE_CONVERTER" ||
			letters[0].Class != "org.apache.kafka.connect.json.JsonConverter" {
			t.Errorf("letters %+v", letters)
		}
		endSink(t, s)
		if got := lines(t, file); !slices.Equal(got, []string{"open t 0", "t 0 0 a", "t 0 2 c", "closed"}) {
			t.Errorf("wrote %q", got)
		}
	}
}

func TestADamagedBatchIsNeverABadRecord(t *testing.T) {
	s, _, _ := openSink(t, nil, func(spec *host.SinkSpec) { spec.Tolerate = true })
	data := batchOf(t, 5, "a", "b")
	data[len(data)-2] ^= 1 // inside the last value: only the checksum can tell
	if err := s.Send(t.Context(), tp0, 5, data); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(t.Context()); sdk.CodeOf(err) != sdk.Corrupt || !strings.Contains(err.Error(), `topic "t" partition 0`) {
		t.Errorf("got %v", err)
	}
}

func TestAssignClosesAndOpensPartitions(t *testing.T) {
	tp1 := sdk.TopicPartition{Topic: "t", Partition: 1}
	s, _, file := openSink(t, nil, nil)
	if err := s.Send(t.Context(), tp0, 0, batchOf(t, 0, "a", "b")); err != nil {
		t.Fatal(err)
	}
	// Commits of a partition that leaves come before Assign returns.
	until(t, s, func(e host.SinkEvent) bool { return e.Commit[tp0] == 2 })
	if err := s.Assign(t.Context(), []sdk.AssignedPartition{{TopicPartition: tp1, Offset: 7}}); err != nil {
		t.Fatal(err)
	}
	if err := s.Send(t.Context(), tp0, 2, batchOf(t, 2, "stray")); err != nil {
		t.Fatal(err)
	}
	if err := s.Send(t.Context(), tp1, 7, batchOf(t, 7, "c")); err != nil {
		t.Fatal(err)
	}
	until(t, s, func(e host.SinkEvent) bool { return e.Commit[tp1] == 8 })
	if err := s.Assign(t.Context(), []sdk.AssignedPartition{{TopicPartition: tp0, Offset: 2}, {TopicPartition: tp1, Offset: 8}}); err != nil {
		t.Fatal(err)
	}
	if err := s.Send(t.Context(), tp0, 2, batchOf(t, 2, "d")); err != nil {
		t.Fatal(err)
	}
	until(t, s, func(e host.SinkEvent) bool { return e.Commit[tp0] == 3 })
	endSink(t, s)
	want := []string{"open t 0", "t 0 0 a", "t 0 1 b", "close t 0", "open t 1", "t 1 7 c", "open t 0", "t 0 2 d", "closed"}
	if got := lines(t, file); !slices.Equal(got, want) {
		t.Errorf("wrote %q, want %q", got, want)
	}
}

// TestFramesOfAnEarlierAssignmentAreDropped makes a partition go and come while
// frames of it wait: the topic may be another one of the same name by then.
func TestFramesOfAnEarlierAssignmentAreDropped(t *testing.T) {
	s, _, file := openSink(t, map[string]string{"mode": "busy"}, nil)
	for i, v := range []string{"a", "stale"} {
		if err := s.Send(t.Context(), tp0, int64(i), batchOf(t, int64(i), v)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Millisecond) // the first one is to be written again
	}
	for _, set := range [][]sdk.AssignedPartition{{}, {{TopicPartition: tp0, Offset: 1}}} {
		if err := s.Assign(t.Context(), set); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Send(t.Context(), tp0, 1, batchOf(t, 1, "fresh")); err != nil {
		t.Fatal(err)
	}
	until(t, s, func(e host.SinkEvent) bool { return e.Commit[tp0] == 2 })
	endSink(t, s)
	want := []string{"open t 0", "close t 0", "open t 0", "t 0 1 fresh", "closed"}
	if got := lines(t, file); !slices.Equal(got, want) {
		t.Errorf("wrote %q, want %q", got, want)
	}
}

func TestWhatIsNotFlushedIsNotCommitted(t *testing.T) {
	s, _, file := openSink(t, nil, func(spec *host.SinkSpec) { spec.Class = "test.FlushSinkConnector" })
	began := time.Now()
	if err := s.Send(t.Context(), tp0, 0, batchOf(t, 0, "a", "b", "c")); err != nil {
		t.Fatal(err)
	}
	until(t, s, func(e host.SinkEvent) bool { return e.Commit[tp0] == 3 })
	if waited := time.Since(began); waited < 400*time.Millisecond {
		t.Errorf("committed after %s, before a flush", waited)
	}
	if err := s.Send(t.Context(), tp0, 3, batchOf(t, 3, "d")); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	if c := endSink(t, s); c[tp0] != 4 {
		t.Errorf("the last flush committed %v", c)
	}
	if got := lines(t, file); !slices.Equal(got, []string{"open t 0", "t 0 0", "t 0 1", "t 0 2", "t 0 3", "closed"}) {
		t.Errorf("wrote %q", got)
	}
}

func TestAWriteThatBlocksIsCutOffByStop(t *testing.T) {
	s, _, _ := openSink(t, map[string]string{"mode": "block"}, nil)
	if err := s.Send(t.Context(), tp0, 0, batchOf(t, 0, "a")); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond) // Write has begun
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_ = s.Stop(ctx)
	e, err := s.Recv(ctx)
	if !errors.Is(err, io.EOF) || len(e.Commit) > 0 {
		t.Errorf("got %+v, %v", e, err)
	}
}

func TestAPanicInWriteFailsTheTaskOnly(t *testing.T) {
	p, _ := start(t, "plugin")
	bad, _ := listSink(t, map[string]string{"mode": "panic"})
	good, _ := listSink(t, nil)
	b, err := p.OpenSink(t.Context(), bad, &services{})
	if err != nil {
		t.Fatal(err)
	}
	g, err := p.OpenSink(t.Context(), good, &services{})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*host.SinkStream{b, g} {
		if err := s.Send(t.Context(), tp0, 0, batchOf(t, 0, "a")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.Recv(t.Context()); sdk.ReasonOf(err) != "plugin.panic" {
		t.Errorf("got %v", err)
	}
	until(t, g, func(e host.SinkEvent) bool { return e.Commit[tp0] == 1 })
	endSink(t, g)
}

func TestASlowSinkSlowsTheWorker(t *testing.T) {
	s, _, _ := openSink(t, map[string]string{"mode": "block"}, nil)
	big := strings.Repeat("x", 200_000)
	sent := 0
	for i := range 100 {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		err := s.Send(ctx, tp0, int64(i), batchOf(t, int64(i), big))
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		sent += len(big)
	}
	if sent < 3<<20 || sent > 4<<20 {
		t.Errorf("sent %d bytes without credit", sent)
	}
	s.Abort()
	if err := s.Send(t.Context(), tp0, 0, batchOf(t, 0, big)); !errors.Is(err, host.ErrAborted) {
		t.Errorf("send after abort: %v", err)
	}
}

func TestABigBatchGoesWhenNothingIsInFlight(t *testing.T) {
	s, _, file := openSink(t, nil, nil)
	for i, size := range []int{1 << 20, 10 << 20, 63 << 20} {
		if err := s.Send(t.Context(), tp0, int64(i), batchOf(t, int64(i), fmt.Sprint("n", i, "\x00", strings.Repeat("x", size)))); err != nil {
			t.Fatal(err)
		}
	}
	until(t, s, func(e host.SinkEvent) bool { return e.Commit[tp0] == 3 })
	endSink(t, s)
	if got := lines(t, file); !slices.Equal(got, []string{"open t 0", "t 0 0 n0", "t 0 1 n1", "t 0 2 n2", "closed"}) {
		t.Errorf("wrote %q", got)
	}
	if err := s.Send(t.Context(), tp0, 3, make([]byte, 66<<20)); sdk.ReasonOf(err) != "record.too_large" {
		t.Errorf("a batch over the limit gives %v", err)
	}
}
