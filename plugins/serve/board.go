package serve

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/millrace-io/millrace/plugins/internal/pb"
	"github.com/millrace-io/millrace/plugins/internal/wire"
	"github.com/millrace-io/millrace/plugins/sdk"
)

const (
	// commitEvery is the shortest time between two commits of a task: each one
	// is a small write into the log.
	commitEvery = 100 * time.Millisecond
	// lettersSoon is how many letters wait for the next commit before one is
	// made early, so that a report stays far below a message's limit.
	lettersSoon = 2000
)

// part is what the task knows about a partition.
type part struct {
	tp       sdk.TopicPartition
	assigned bool
	paused   bool
	want     uint64 // frames that honour an older rewind only are dropped
	rewinds  int    // how often next was set by the sink

	next      int64 // the offset that is decoded next
	given     int64 // after the last record that the sink has been given
	written   int64 // everything below was written, skipped or reported
	confirmed int64 // everything below is stored, as far as the sink says
	commit    int64 // to be told
	committed int64 // told
	letters   []*letter
}

// letter is a record that was given up.
type letter struct {
	offset  int64
	pb      *pb.Letter
	asked   bool // somebody waits: it does not wait for the commit
	told    bool
	settled bool
	err     error
	waiters []func(error)
}

func (l *letter) settle(err error) {
	l.settled, l.err = true, err
	for _, w := range l.waiters {
		w(err)
	}
	l.waiters = nil
}

// board is the state of a sink task's partitions: what was read, written and
// confirmed, and what is to be told. It implements sdk.SinkHost. A sink may call
// it from goroutines of its own.
type board struct {
	tolerate bool
	class    string
	kick     func()
	count    func(counters)

	mu         sync.Mutex // guards the fields below
	parts      map[sdk.TopicPartition]*part
	retryAfter time.Duration
	lastRewind uint64
	rewinds    map[sdk.TopicPartition]uint64 // to be told
	pauses     []sdk.TopicPartition          // to be told
	resumes    []sdk.TopicPartition          // to be told
	commitT    throttled
	waiting    int // letters that are not told
	asked      bool
	hurry      bool
	lastLetter uint64
	told       map[uint64][]*letter // by letter id, until settled
	assigned   []*pb.Assigned       // to be told after all else
}

func newBoard(open *pb.OpenTask, kick func(), count func(counters)) *board {
	return &board{
		tolerate: open.GetTolerate(), class: open.GetClass(), kick: kick, count: count,
		parts: make(map[sdk.TopicPartition]*part), rewinds: make(map[sdk.TopicPartition]uint64),
		told: make(map[uint64][]*letter), commitT: throttled{every: commitEvery},
	}
}

// assign adds a partition.
func (b *board) assign(tp sdk.TopicPartition, offset int64, generation uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.parts[tp] = &part{
		tp: tp, assigned: true, want: generation,
		next: offset, given: offset, written: offset, confirmed: offset, commit: offset, committed: offset,
	}
}

// revoke takes a partition away. What its letters wait for does not come.
func (b *board) revoke(tp sdk.TopicPartition) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.parts[tp]
	if p == nil {
		return
	}
	p.assigned = false
	b.dropLetters(p, 0, errRevoked)
	delete(b.parts, tp)
	delete(b.rewinds, tp)
}

var (
	errRevoked = &sdk.Error{Code: sdk.Conflict, Reason: "sink.partition_revoked", Msg: "the partition was given to another task before the record was passed; it comes again there"}
	errRewound = &sdk.Error{Code: sdk.Conflict, Reason: "sink.rewound", Msg: "the partition was rewound before the record was passed; it comes again"}
)

// dropLetters forgets letters from an offset on that were not told. The caller
// holds b.mu.
func (b *board) dropLetters(p *part, from int64, why error) {
	p.letters = slices.DeleteFunc(p.letters, func(l *letter) bool {
		if l.told || l.offset < from {
			return false
		}
		b.waiting--
		l.settle(why)
		return true
	})
}

// Rewind implements sdk.SinkHost.
func (b *board) Rewind(tp sdk.TopicPartition, offset int64) {
	b.mu.Lock()
	if p := b.parts[tp]; p != nil {
		b.rewind(p, max(0, offset))
	}
	b.mu.Unlock()
	b.kick()
}

// rewind sets what comes next. The caller holds b.mu.
func (b *board) rewind(p *part, offset int64) {
	p.rewinds++
	p.next, p.written = offset, offset
	p.given, p.confirmed = min(p.given, offset), min(p.confirmed, offset)
	b.dropLetters(p, offset, errRewound)
	b.advance(p)
	b.lastRewind++
	p.want = b.lastRewind
	if !p.paused {
		b.rewinds[p.tp] = p.want
	}
}

// RetryAfter implements sdk.SinkHost.
func (b *board) RetryAfter(d time.Duration) {
	b.mu.Lock()
	b.retryAfter = d
	b.mu.Unlock()
}

// pause returns how long to wait before a Write is tried again.
func (b *board) pause(err error, attempt int) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e, ok := errors.AsType[*sdk.Error](err); ok && e.After <= 0 && b.retryAfter > 0 {
		return b.retryAfter
	}
	return pauseAfter(err, attempt)
}

// Pause implements sdk.SinkHost. What is on its way is dropped, and read again
// after Resume: so a paused partition holds neither memory nor credit.
func (b *board) Pause(tps ...sdk.TopicPartition) {
	b.mu.Lock()
	for _, tp := range tps {
		if p := b.parts[tp]; p != nil && !p.paused {
			p.paused = true
			b.lastRewind++
			p.want = b.lastRewind
			delete(b.rewinds, tp)
			b.pauses = append(b.pauses, tp)
			b.resumes = slices.DeleteFunc(b.resumes, func(t sdk.TopicPartition) bool { return t == tp })
		}
	}
	b.mu.Unlock()
	b.kick()
}

// Resume implements sdk.SinkHost.
func (b *board) Resume(tps ...sdk.TopicPartition) {
	b.mu.Lock()
	for _, tp := range tps {
		if p := b.parts[tp]; p != nil && p.paused {
			p.paused = false
			b.rewinds[tp] = p.want
			b.resumes = append(b.resumes, tp)
			b.pauses = slices.DeleteFunc(b.pauses, func(t sdk.TopicPartition) bool { return t == tp })
		}
	}
	b.mu.Unlock()
	b.kick()
}

// Report implements sdk.SinkHost.
func (b *board) Report(r *sdk.Record, err error) (*sdk.Receipt, error) {
	tp := sdk.TopicPartition{Topic: r.Topic, Partition: r.Partition}
	if !b.tolerate {
		b.count(counters{failed: 1})
		code := sdk.CodeOf(err)
		if code == sdk.Unavailable {
			code = sdk.Invalid
		}
		return nil, sdk.Errorf(code, "record.rejected", "record at topic %q partition %d offset %d: %s", r.Topic, r.Partition, r.Offset, wire.Text(err.Error()))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.parts[tp]
	if p == nil {
		return nil, sdk.Errorf(sdk.Conflict, "sink.partition_revoked", "topic %q partition %d is not assigned to this task", r.Topic, r.Partition)
	}
	l, fresh := b.letter(p, r.Offset, failure{stagePut, b.class, err})
	if fresh {
		b.count(counters{failed: 1, skipped: 1})
	}
	receipt, settle := sdk.NewReceipt(func() { b.ask(l) })
	if l.settled {
		settle(l.err)
	} else {
		l.waiters = append(l.waiters, settle)
	}
	return receipt, nil
}

// failure says where and why a record failed.
type failure struct {
	stage, class string
	err          error
}

// The names of error classes in dead letters.
const (
	dataException    = "org.apache.kafka.connect.errors.DataException"
	connectException = "org.apache.kafka.connect.errors.ConnectException"
)

// letter returns the letter of an offset, which is made when there is none. The
// caller holds b.mu.
func (b *board) letter(p *part, offset int64, f failure) (l *letter, fresh bool) {
	i, found := slices.BinarySearchFunc(p.letters, offset, func(l *letter, o int64) int { return cmp.Compare(l.offset, o) })
	if found {
		return p.letters[i], false
	}
	errorClass := connectException
	if f.stage != stagePut {
		errorClass = dataException
	}
	l = &letter{offset: offset, pb: &pb.Letter{
		Topic: p.tp.Topic, Partition: p.tp.Partition, Offset: offset,
		Stage: f.stage, Class: wire.Text(f.class), ErrorClass: errorClass, Message: wire.Text(f.err.Error()),
	}}
	p.letters = slices.Insert(p.letters, i, l)
	b.waiting++
	if b.waiting >= lettersSoon {
		b.hurry = true
	}
	return l, true
}

// skip gives up a record that no converter handles.
func (b *board) skip(p *part, offset int64, f failure) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, fresh := b.letter(p, offset, f); fresh {
		b.count(counters{failed: 1, skipped: 1})
	}
}

// ask sends a letter at once, because somebody waits for it.
func (b *board) ask(l *letter) {
	b.mu.Lock()
	send := !l.told && !l.settled
	l.asked = l.asked || send
	b.asked = b.asked || send
	b.mu.Unlock()
	if send {
		b.kick()
	}
}

// settle takes the news of a report's letters.
func (b *board) settle(id uint64, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range b.told[id] {
		l.settle(err)
	}
	delete(b.told, id)
}

// advance computes what may be committed. The caller holds b.mu.
func (b *board) advance(p *part) {
	at := p.confirmed
	if p.given <= p.confirmed {
		at = p.written // the rest was skipped or reported
	}
	if at > p.commit {
		p.commit = at
	}
	if p.commit > p.committed {
		b.commitT.dirty = true
	}
}

// wrote notes that the sink has taken what it was given. With confirm it is
// stored, too.
func (b *board) wrote(marks []mark, confirm bool) {
	b.mu.Lock()
	for _, m := range marks {
		p := m.part
		if b.parts[m.tp] != p || p.rewinds != m.rewinds {
			continue
		}
		p.written = max(p.written, m.next)
		if confirm {
			p.confirmed = p.written
		}
		b.advance(p)
	}
	b.mu.Unlock()
	b.kick()
}

// flushed notes that all that was written is stored.
func (b *board) flushed() {
	b.mu.Lock()
	for _, p := range b.parts {
		p.confirmed = p.written
		b.advance(p)
	}
	b.mu.Unlock()
	b.kick()
}

// committable notes what the sink says its target holds.
func (b *board) committable(offsets map[sdk.TopicPartition]int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for tp, offset := range offsets {
		p := b.parts[tp]
		if p == nil {
			continue
		}
		if offset > p.next {
			return sdk.Errorf(sdk.Internal, "sink.committable", "the sink says that topic %q partition %d is stored up to offset %d, but it was given only those below %d",
				tp.Topic, tp.Partition, offset, p.next)
		}
		p.confirmed = max(p.confirmed, offset)
	}
	dirty := b.commitT.dirty
	for _, p := range b.parts {
		b.advance(p)
	}
	if b.commitT.dirty != dirty {
		b.kick()
	}
	return nil
}

// collect returns what there is to tell.
func (b *board) collect(final bool) []*pb.Control {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := &pb.SinkReport{}
	now := final || b.hurry || len(b.assigned) > 0
	commit := b.commitT.due(time.Now(), now, b.kick)
	if commit || b.asked {
		b.collectCommits(r, commit)
	}
	for tp, id := range b.rewinds {
		m := wire.Mark(tp, b.parts[tp].next)
		m.Generation = id
		r.Rewinds = append(r.Rewinds, m)
	}
	clear(b.rewinds)
	for _, tp := range b.pauses {
		r.Pauses = append(r.Pauses, wire.Mark(tp, 0))
	}
	for _, tp := range b.resumes {
		r.Resumes = append(r.Resumes, wire.Mark(tp, 0))
	}
	b.pauses, b.resumes = nil, nil
	var out []*pb.Control
	if len(r.GetCommits())+len(r.GetLetters())+len(r.GetRewinds())+len(r.GetPauses())+len(r.GetResumes()) > 0 {
		out = append(out, &pb.Control{Kind: &pb.Control_Report{Report: r}})
	}
	for _, a := range b.assigned {
		out = append(out, &pb.Control{Kind: &pb.Control_Assigned{Assigned: a}})
	}
	b.assigned = nil
	return out
}

// collectCommits adds the offsets, and the letters that belong to them or that
// somebody waits for. The caller holds b.mu.
func (b *board) collectCommits(r *pb.SinkReport, commit bool) {
	var told []*letter
	for _, p := range b.parts {
		for _, l := range p.letters {
			if !l.told && (l.asked || commit && l.offset < p.commit) {
				l.told = true
				b.waiting--
				told = append(told, l)
				r.Letters = append(r.Letters, l.pb)
			}
		}
		if commit && p.commit > p.committed {
			p.committed = p.commit
			r.Commits = append(r.Commits, wire.Mark(p.tp, p.commit))
			p.letters = slices.DeleteFunc(p.letters, func(l *letter) bool { return l.offset < p.commit })
		}
	}
	b.asked, b.hurry = false, false
	if len(told) > 0 {
		b.lastLetter++
		r.LetterId = b.lastLetter
		b.told[r.GetLetterId()] = told
	}
}

// answer queues the answer to an assignment, behind everything before it.
func (b *board) answer(id uint64, err error) {
	b.mu.Lock()
	b.assigned = append(b.assigned, &pb.Assigned{Id: id, Error: wire.ErrorToPB(err)})
	b.mu.Unlock()
	b.kick()
}

// close ends what waits.
func (b *board) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.commitT.stop()
	err := fmt.Errorf("the task has ended: %w", context.Canceled)
	for _, p := range b.parts {
		for _, l := range p.letters {
			l.settle(err)
		}
	}
	for _, ls := range b.told {
		for _, l := range ls {
			l.settle(err)
		}
	}
	b.told = nil
}

// mark is how far one Write goes in a partition.
type mark struct {
	tp      sdk.TopicPartition
	part    *part
	next    int64
	given   int64 // after the last record for the sink, 0 when there is none
	want    uint64
	rewinds int
}

// open begins to decode a frame; it returns nil when the frame is to be dropped.
func (b *board) open(tp sdk.TopicPartition, generation uint64) *mark {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.parts[tp]
	if p == nil || generation < p.want {
		return nil
	}
	return &mark{tp: tp, part: p, next: p.next, want: p.want, rewinds: p.rewinds}
}

// current reports whether a frame that was begun may go on.
func (b *board) current(m *mark) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return m.part.want == m.want && b.parts[m.tp] == m.part
}

// take notes what the sink is about to be given, and returns the partitions that
// were rewound or paused meanwhile, whose records must not be.
func (b *board) take(marks []mark) (stale map[sdk.TopicPartition]bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range marks {
		if m.part.want != m.want || b.parts[m.tp] != m.part {
			stale = with(stale, m.tp)
			continue
		}
		m.part.next = max(m.part.next, m.next)
		m.part.given = max(m.part.given, m.given)
	}
	return stale
}

// stale returns the partitions that were rewound or taken away since take.
func (b *board) stale(marks []mark) (stale map[sdk.TopicPartition]bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range marks {
		if m.part.rewinds != m.rewinds || b.parts[m.tp] != m.part {
			stale = with(stale, m.tp)
		}
	}
	return stale
}

func with(set map[sdk.TopicPartition]bool, tp sdk.TopicPartition) map[sdk.TopicPartition]bool {
	if set == nil {
		set = make(map[sdk.TopicPartition]bool)
	}
	set[tp] = true
	return set
}
