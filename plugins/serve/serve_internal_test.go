package serve

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace-io/millrace/plugins/internal/pb"
	"github.com/millrace-io/millrace/plugins/internal/wire"
	"github.com/millrace-io/millrace/plugins/sdk"
)

// The hashes are those of Kafka's own test of its murmur2.
func TestKeysAreHashedAsKafkaDoes(t *testing.T) {
	for key, want := range map[string]int32{
		"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536, "a-little-bit-longer-string": -1486304829,
		"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971, "abc": 479470107,
	} {
		if got := int32(murmur2([]byte(key))); got != want {
			t.Errorf("%s: %d, want %d", key, got, want)
		}
		if got, want := partitionOf([]byte(key), 7), (want&0x7fffffff)%7; got != want {
			t.Errorf("%s: partition %d, want %d", key, got, want)
		}
	}
}

func TestPositionsKeepTheNewestOfEachPartition(t *testing.T) {
	var p positions
	for round := range 3 {
		for i := range 50 {
			n := (i * 7) % 50
			if err := p.put(sdk.Position{Partition: map[string]any{"file": fmt.Sprint(n)}, Offset: map[string]any{"at": int64(round*100 + n)}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	got := p.take()
	if len(got) != 50 || p.len() != 0 {
		t.Fatalf("%d positions", len(got))
	}
	for _, q := range got {
		if fmt.Sprint(q.Offset["at"].(int64)-200) != q.Partition["file"] {
			t.Errorf("%v", q)
		}
	}
}

func TestPausesGrowAndEnd(t *testing.T) {
	if d := pauseAfter(sdk.Retry(io.EOF, time.Minute*5), 9); d != 5*time.Minute {
		t.Errorf("a Retry that says when waits %s", d)
	}
	var got []time.Duration
	for n := range 12 {
		got = append(got, pauseAfter(sdk.Retry(io.EOF, 0), n))
	}
	if got[0] != 300*time.Millisecond || got[1] != 600*time.Millisecond || got[11] != longestAway || !slices.IsSorted(got) {
		t.Errorf("pauses are %v", got)
	}
	b := backoff{delayMax: 500 * time.Millisecond}
	if b.pause(0) != 300*time.Millisecond || b.pause(1) >= 500*time.Millisecond {
		t.Errorf("pauses with a maximum are %s, %s", b.pause(0), b.pause(1))
	}
}

func TestGuardKeepsThePanickingFrames(t *testing.T) {
	var log strings.Builder
	err := guard(slog.New(slog.NewTextHandler(&log, nil)), "Read", func() error { panic("boom") })
	if sdk.CodeOf(err) != sdk.Internal || !strings.Contains(err.Error(), "Read panicked: boom") {
		t.Errorf("got %v", err)
	}
	if !strings.Contains(log.String(), "serve_internal_test.go") || strings.Contains(log.String(), "debug.Stack") {
		t.Errorf("log has %s", log.String())
	}
}

func TestALoggerWritesTheLinesTheWorkerReads(t *testing.T) {
	var log strings.Builder
	newLogger(&log, "WARN").Info("not this")
	newLogger(&log, "nonsense").Info("this", slog.Int("n", 1))
	if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, `"level":"INFO","msg":"this","n":1}`) {
		t.Errorf("log has %q", got)
	}
}

var tp = sdk.TopicPartition{Topic: "t", Partition: 0}

// testBoard is a board with one partition at offset 100.
func testBoard() *board {
	b := newBoard(&pb.OpenTask{Tolerate: true, Class: "c"}, func() {}, func(counters) {})
	b.assign(tp, 100, 0)
	return b
}

// give decodes offsets up to next, of which the last record is at given-1.
func give(b *board, next, given int64) []mark {
	m := b.open(tp, ^uint64(0))
	m.next, m.given = next, given
	marks := []mark{*m}
	b.take(marks)
	return marks
}

// commits returns what is told now.
func commits(b *board) (commit int64, letters []int64) {
	for _, c := range b.collect(true) {
		for _, m := range c.GetReport().GetCommits() {
			commit = m.GetOffset()
		}
		for _, l := range c.GetReport().GetLetters() {
			letters = append(letters, l.GetOffset())
		}
	}
	return commit, letters
}

func TestOnlyConfirmedOffsetsAreCommitted(t *testing.T) {
	b := testBoard()
	marks := give(b, 110, 110)
	if at, _ := commits(b); at != 0 {
		t.Errorf("committed %d before a Write", at)
	}
	b.wrote(marks, false)
	if at, _ := commits(b); at != 0 {
		t.Errorf("committed %d before it is stored", at)
	}
	for _, offset := range []int64{104, 107} {
		if _, err := b.Report(&sdk.Record{Topic: "t", Offset: offset}, io.EOF); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.committable(map[sdk.TopicPartition]int64{tp: 105}); err != nil {
		t.Fatal(err)
	}
	if at, letters := commits(b); at != 105 || !slices.Equal(letters, []int64{104}) {
		t.Errorf("committed %d with letters %v, want 105 with 104", at, letters)
	}
	if err := b.committable(map[sdk.TopicPartition]int64{tp: 103}); err != nil {
		t.Fatal(err)
	}
	if at, _ := commits(b); at != 0 {
		t.Errorf("committed %d again", at)
	}
	if err := b.committable(map[sdk.TopicPartition]int64{tp: 111}); err == nil {
		t.Error("an offset beyond what was given is believed")
	}
}

func TestSkippedRecordsDoNotHoldTheCommit(t *testing.T) {
	b := testBoard()
	part := b.parts[tp]
	b.skip(part, 100, failure{stageValue, "conv", io.EOF})
	marks := give(b, 101, 0)
	b.wrote(marks, false)
	if at, letters := commits(b); at != 101 || !slices.Equal(letters, []int64{100}) {
		t.Errorf("committed %d with letters %v", at, letters)
	}
	// One record that is not confirmed, then a bad one: both wait.
	b.skip(part, 102, failure{stageValue, "conv", io.EOF})
	b.wrote(give(b, 103, 102), false)
	if at, letters := commits(b); at != 0 || len(letters) != 0 {
		t.Errorf("committed %d with letters %v", at, letters)
	}
	b.flushed()
	if at, letters := commits(b); at != 103 || !slices.Equal(letters, []int64{102}) {
		t.Errorf("committed %d with letters %v", at, letters)
	}
}

func TestRewindDropsWhatCameBefore(t *testing.T) {
	b := testBoard()
	marks := give(b, 110, 110)
	receipt, err := b.Report(&sdk.Record{Topic: "t", Offset: 107}, io.EOF)
	if err != nil {
		t.Fatal(err)
	}
	b.Rewind(tp, 104)
	if b.open(tp, 0) != nil {
		t.Error("a frame that was on its way is taken")
	}
	b.wrote(marks, true)
	if at, letters := commits(b); at != 0 || len(letters) != 0 {
		t.Errorf("committed %d with letters %v", at, letters)
	}
	if err := receipt.Wait(t.Context()); !errors.Is(err, errRewound) {
		t.Errorf("the receipt says %v", err)
	}
	if m := b.open(tp, b.lastRewind); m == nil || m.next != 104 {
		t.Errorf("goes on at %+v", m)
	}
	// A sink that keeps its own offsets: what lies between is skipped on purpose.
	b = testBoard()
	b.Rewind(tp, 200)
	if at, _ := commits(b); at != 200 {
		t.Errorf("committed %d, want 200", at)
	}
}

func TestPauseAndResumeAskForTheRecordsAgain(t *testing.T) {
	b := testBoard()
	b.wrote(give(b, 105, 105), true)
	b.Pause(tp)
	b.Pause(tp)
	if b.open(tp, 0) != nil {
		t.Error("a paused partition goes on")
	}
	r := b.collect(true)[0].GetReport()
	if len(r.GetPauses()) != 1 || len(r.GetRewinds()) != 0 {
		t.Errorf("told %v", r)
	}
	b.Resume(tp)
	r = b.collect(true)[0].GetReport()
	if len(r.GetResumes()) != 1 || len(r.GetRewinds()) != 1 || r.GetRewinds()[0].GetOffset() != 105 {
		t.Errorf("told %v", r)
	}
	if b.open(tp, r.GetRewinds()[0].GetGeneration()) == nil {
		t.Error("a resumed partition does not go on")
	}
}

func TestALetterComesOnceWhoeverWaits(t *testing.T) {
	b := testBoard()
	marks := give(b, 110, 110)
	r := &sdk.Record{Topic: "t", Offset: 103}
	first, err := b.Report(r, io.EOF)
	if err != nil {
		t.Fatal(err)
	}
	second, err := b.Report(r, io.EOF) // the same Write, tried again
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 2)
	go func() { done <- first.Wait(t.Context()) }()
	go func() { done <- second.Wait(t.Context()) }()
	var id uint64
	for id == 0 {
		for _, c := range b.collect(false) {
			if rep := c.GetReport(); rep.GetLetterId() != 0 {
				id = rep.GetLetterId()
				if len(rep.GetLetters()) != 1 || len(rep.GetCommits()) != 0 {
					t.Errorf("told %v", rep)
				}
			}
		}
	}
	b.settle(id, nil)
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	third, err := b.Report(r, io.EOF)
	if err != nil || third.Wait(t.Context()) != nil {
		t.Errorf("a letter that is durable: %v", err)
	}
	b.wrote(marks, true)
	if at, letters := commits(b); at != 110 || len(letters) != 0 {
		t.Errorf("committed %d with letters %v", at, letters)
	}
}

func TestFramesOfARevokedPartitionAreDropped(t *testing.T) {
	in := inbox{wake: make(chan struct{}, 1)}
	for i := range 6 {
		in.push(item{part: wire.Part{Topic: "t", Partition: int32(i % 2)}, data: make([]byte, 10)})
	}
	in.assigns = []assignment{{id: 1, before: 4}, {id: 2, before: 6}}
	if _, ok := in.next(); ok {
		t.Error("a frame overtakes an assignment")
	}
	a, _ := in.pendingAssign()
	if n := in.drop(a.before, map[sdk.TopicPartition]bool{tp: true}); n != 20 {
		t.Errorf("dropped %d bytes", n)
	}
	if len(in.items) != 4 || in.assigns[0].before != 4 || in.items[3].part.Partition != 1 {
		t.Errorf("left %v, %v", in.items, in.assigns)
	}
}
