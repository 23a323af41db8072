package disk

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/millrace-io/millrace/logstore"
)

// recovery brings an opened directory to the state of the last committed frame.
// It reads the checkpoint, the three tables, and the journal from the checkpoint
// on, twice: first to find the end and fold the tables, then to put the batches
// into their partitions. What it cannot read it leaves alone.
type recovery struct {
	log     *Log
	saved   *checkpoint
	journal *journalReader
	state   *folded
	parts   map[partKey]*partition
	found   map[*partition]map[int64]int64 // sizes of the segment files by base offset
	damage  map[damageKey]*logstore.CorruptError
	lost    bool   // committed batches could not be replayed
	end     uint64 // sequence after the last committed frame
	cut     int64  // position after it
}

type partKey struct {
	topic     logstore.TopicID
	partition int32
}

// damageKey names an entry of a frame.
type damageKey struct {
	sequence uint64
	entry    int
}

func (l *Log) recover() error {
	fresh, err := checkVersion(l.fs)
	if err != nil {
		return err
	}
	l.tables = newTables()
	for _, t := range l.tables {
		l.topics[t.name] = t
	}
	if fresh {
		return l.initialize()
	}
	r := &recovery{
		log: l, state: newFolded(),
		parts:  make(map[partKey]*partition),
		found:  make(map[*partition]map[int64]int64),
		damage: make(map[damageKey]*logstore.CorruptError),
	}
	if r.saved, err = readCheckpoint(l.fs); err != nil {
		return err
	}
	if r.journal, err = openJournalReader(l.fs); err != nil {
		return err
	}
	err = r.run()
	if closeErr := r.journal.close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	return r.finish()
}

// initialize makes a new data directory. The version mark comes last: a
// directory without it is made again.
func (l *Log) initialize() error {
	j, err := openJournal(l.fs, l.o.JournalBytes)
	if err != nil {
		return err
	}
	l.journal = j
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails
	j.logID = binary.BigEndian.Uint64(id[:])
	j.lap, j.sequence = 1, 1
	first := checkpoint{clean: true, journalBytes: j.size, lap: j.lap, sequence: j.sequence, logID: j.logID}
	if err := writeCheckpoint(l.fs, &first, l.clock.Now()); err != nil {
		return err
	}
	if err := writeVersion(l.fs); err != nil {
		return err
	}
	return l.fs.MkdirAll(topicsDir)
}

func (r *recovery) run() error {
	if r.journal.size > r.saved.journalBytes {
		r.journal.size = r.saved.journalBytes
	}
	saved := make(map[partKey]*checkpointPart, len(r.saved.partitions))
	for i := range r.saved.partitions {
		p := &r.saved.partitions[i]
		saved[partKey{p.topic, p.partition}] = p
	}
	for table, t := range r.log.tables {
		if err := r.loadTable(table, t.parts[0], saved); err != nil {
			return err
		}
	}
	if err := r.walk(r.judge); err != nil {
		return err
	}
	for _, t := range r.state.topics {
		r.log.topics[t.name] = t
		for _, p := range t.parts {
			if err := r.restore(p, saved); err != nil {
				return err
			}
		}
	}
	r.log.groups = r.state.groups
	for name, epoch := range r.state.epochs {
		r.log.identity(name).epoch = epoch
	}
	return r.walk(r.replay)
}

// loadTable folds what the segments of a table hold. Without the tables nothing
// can be opened.
func (r *recovery) loadTable(table int, p *partition, saved map[partKey]*checkpointPart) error {
	if err := r.restore(p, saved); err != nil {
		return err
	}
	if err := p.stopped(); err != nil {
		return err
	}
	return r.log.eachRun(p, func(data []byte) error {
		if err := r.state.batches(table, data); err != nil {
			return &logstore.CorruptError{File: p.dir(), Reason: err.Error()}
		}
		return nil
	})
}

// eachRun reads the partition's files from the start to the end, in runs.
func (l *Log) eachRun(p *partition, f func(data []byte) error) error {
	start, _ := p.bounds()
	rd := &reader{log: l, part: p, offset: start, closed: make(chan struct{})}
	for {
		got, _, err := rd.read(windowBytes)
		if err != nil {
			return err
		}
		if got.Data == nil {
			return nil
		}
		if err := f(got.Data); err != nil {
			return err
		}
	}
}

// walk calls f with every frame from the checkpoint on, until f says that the
// frame is not good, which ends the journal.
func (r *recovery) walk(f func(at int64, fr *frame, data []byte) (bool, error)) error {
	pos, lap, sequence := r.saved.position, r.saved.lap, r.saved.sequence
	for r.end == 0 || sequence < r.end {
		at, fr, data, err := r.next(pos, lap, sequence)
		if err != nil {
			return err
		}
		if fr == nil {
			err = r.endOfJournal(pos, lap, sequence)
			if err != nil {
				return err
			}
			break
		}
		good, err := f(at, fr, data)
		if err != nil {
			return err
		}
		if !good {
			break
		}
		pos, lap, sequence = at+fr.length, fr.lap, sequence+1
	}
	if r.end == 0 {
		r.end, r.cut = sequence, pos
	}
	return nil
}

// next returns the frame of that sequence: at pos, or at the start of the next
// lap. A nil frame says that there is none.
func (r *recovery) next(pos int64, lap, sequence uint64) (int64, *frame, []byte, error) {
	for _, at := range [...]int64{pos, 0} {
		fr, data, err := r.journal.frame(at)
		if err != nil && !errors.Is(err, errTorn) {
			return 0, nil, nil, err
		}
		if err == nil && fr.logID == r.saved.logID && fr.sequence == sequence && fr.lap == lap {
			return at, &fr, data, nil
		}
		lap++
	}
	return 0, nil, nil, nil
}

// judge is the first look at a frame: are its batches whole? It folds the tables.
func (r *recovery) judge(at int64, fr *frame, data []byte) (bool, error) {
	for i := range fr.entries {
		e := &fr.entries[i]
		if e.bypass {
			continue
		}
		good, err := checkRun(data[e.payload:e.payload+e.size], e.base, e.next)
		if err == nil {
			continue
		}
		proof, scanErr := r.provenAfter(at+fr.length, fr.lap, fr.sequence)
		if scanErr != nil {
			return false, scanErr
		}
		if !proof {
			r.log.log.Warn("last journal frame is torn and dropped: it was never acknowledged",
				"file", journalName, "offset", at, "bytes", fr.length, "reason", err.Error())
			return false, nil
		}
		damage := &logstore.CorruptError{File: journalName, Offset: at + e.payload + good, Bytes: e.size - good, Reason: err.Error()}
		if table := tableOf(e.topic); table >= 0 {
			return false, damage
		}
		r.damage[damageKey{fr.sequence, i}] = damage
	}
	for i := range fr.entries {
		e := &fr.entries[i]
		if table := tableOf(e.topic); table >= 0 && !e.bypass {
			if err := r.state.batches(table, data[e.payload:e.payload+e.size]); err != nil {
				return false, &logstore.CorruptError{File: journalName, Offset: at + e.payload, Bytes: e.size, Reason: err.Error()}
			}
		}
	}
	return true, nil
}

func tableOf(id logstore.TopicID) int {
	for table := range tableCount {
		if id == tableID(table) {
			return table
		}
	}
	return -1
}

// endOfJournal tells a torn end from damage: when a later frame says that the
// one missing here was durable, committed units are lost.
func (r *recovery) endOfJournal(pos int64, lap, sequence uint64) error {
	if r.end != 0 {
		return nil // the second walk
	}
	proof, err := r.provenAfter(pos, lap, sequence)
	if err != nil || !proof {
		return err
	}
	return &logstore.CorruptError{
		File: journalName, Offset: pos,
		Reason: fmt.Sprintf("frame %d is unreadable, and later frames say that it was committed", sequence),
	}
}

// provenAfter looks for a frame that says the one of that sequence was durable:
// in as many bytes from pos on, and from the journal's start on, as one write
// can have.
func (r *recovery) provenAfter(pos int64, lap, sequence uint64) (bool, error) {
	for _, from := range [...]int64{pos, 0} {
		to := min(r.journal.size, from+2*maxGroupBytes)
		for at := from; at < to; at += frameAlign {
			head, err := r.journal.bytes(at, frameHeaderSize)
			if err != nil {
				return false, err
			}
			if _, ok := frameLength(head); !ok {
				continue
			}
			fr, _, err := r.journal.frame(at)
			if err != nil && !errors.Is(err, errTorn) {
				return false, err
			}
			if err == nil && fr.logID == r.saved.logID && (fr.lap == lap || fr.lap == lap+1) &&
				fr.sequence > sequence && fr.durable >= sequence {
				return true, nil
			}
		}
	}
	return false, nil
}

// restore puts a partition into the state of the checkpoint and compares it with
// its folder.
func (r *recovery) restore(p *partition, saved map[partKey]*checkpointPart) error {
	key := partKey{p.topic.id, p.id}
	r.parts[key] = p
	sizes, err := r.log.segmentFiles(p)
	if err != nil {
		return err
	}
	r.found[p] = sizes
	part := saved[key]
	if part == nil {
		return nil
	}
	p.start, p.end, p.lost = part.start, part.end, part.lost
	for i, s := range part.segments {
		last := i == len(part.segments)-1
		seg := &segment{part: p, base: s.base, size: s.size, next: s.next, maxTime: s.maxTime, cleaned: s.flags&flagCompacted != 0}
		size, there := sizes[s.base]
		switch {
		case !there:
			err = &logstore.CorruptError{File: seg.path(), Bytes: s.size, Reason: "the segment is missing: put it back from a copy, or delete the topic"}
		case p.topic.config.Cleanup == logstore.CleanupCompact && !last:
			seg.size = size // compaction may have replaced it after the checkpoint
		case size < s.size:
			err = &logstore.CorruptError{
				File: seg.path(), Offset: size, Bytes: s.size - size,
				Reason: fmt.Sprintf("the segment has %d bytes of %d: put it back from a copy, or delete the topic", size, s.size),
			}
		}
		seg.dirSynced.Store(true)
		seg.index.reset(seg.size, seg.maxTime)
		p.segments = append(p.segments, seg)
	}
	if err == nil {
		err = r.log.checkTopicID(p)
	}
	if err == nil && p.lost {
		err = &logstore.CorruptError{
			File:   journalName,
			Reason: "an earlier opening found committed batches of this partition damaged and kept a copy of the journal: delete the topic when they are not needed",
		}
	}
	if err != nil {
		r.log.log.Error("partition is stopped", "topic", p.topic.name, "partition", p.id, "err", err)
		p.stop(err)
	}
	return nil
}

// checkTopicID makes sure that a folder was not swapped with another's.
func (l *Log) checkTopicID(p *partition) error {
	name := p.dir() + "/" + topicIDName
	text, err := readFile(l.fs, name, smallFileMax)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	id := strings.TrimSpace(string(text))
	if id == "" || id == p.topic.id.String() {
		return nil // nothing syncs this file, so it may be lost
	}
	return &logstore.CorruptError{File: name, Bytes: int64(len(text)), Reason: fmt.Sprintf("the folder belongs to topic id %q, not %q", id, p.topic.id)}
}

// segmentFiles lists the segment files of a partition with their sizes.
func (l *Log) segmentFiles(p *partition) (map[int64]int64, error) {
	entries, err := l.fs.ReadDir(p.dir())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	sizes := make(map[int64]int64, len(entries))
	for _, e := range entries {
		if base, ok := segmentBase(e.Name); ok && !e.Dir {
			sizes[base] = e.Size
		}
	}
	return sizes, nil
}

func segmentBase(name string) (int64, bool) {
	digits, ok := strings.CutSuffix(name, ".log")
	if !ok || len(digits) != 20 {
		return 0, false
	}
	base, err := strconv.ParseInt(digits, 10, 64)
	return base, err == nil && base >= 0
}

// replay puts the batches of a committed frame into their partitions.
func (r *recovery) replay(at int64, fr *frame, data []byte) (bool, error) {
	for i := range fr.entries {
		e := &fr.entries[i]
		p := r.parts[partKey{e.topic, e.partition}]
		if p == nil || p.lost {
			continue // the topic was deleted later, or the partition has ended
		}
		var err error
		if damage := r.damage[damageKey{fr.sequence, i}]; damage != nil {
			err = damage
		} else {
			err = r.replayEntry(p, e, data)
		}
		if err == nil {
			continue
		}
		if !errors.Is(err, logstore.ErrCorrupt) {
			return false, err
		}
		damage := &logstore.CorruptError{}
		if !errors.As(err, &damage) {
			damage = &logstore.CorruptError{File: journalName, Offset: at, Bytes: fr.length, Reason: err.Error()}
		}
		if tableOf(e.topic) >= 0 {
			return false, damage
		}
		r.log.log.Error("partition is stopped", "topic", p.topic.name, "partition", p.id, "err", damage)
		p.stop(damage)
		p.lost, r.lost = true, true
	}
	return true, nil
}

func (r *recovery) replayEntry(p *partition, e *frameEntry, data []byte) error {
	seg := p.last()
	if seg != nil && r.found[p][seg.base] < seg.size && p.stopped() != nil {
		return p.stopped() // nothing can follow a segment that is cut
	}
	if seg == nil || seg.base != e.segment {
		seg = &segment{part: p, base: e.segment}
		if err := r.log.makeDir(p); err != nil {
			return err
		}
	}
	placed := entry{
		part: p, seg: seg, pos: e.position, base: e.base, next: e.next, maxTime: e.maxTime,
		bypass: e.bypass, length: int(e.size),
	}
	if e.bypass {
		if size, there := r.found[p][e.segment]; !there || size < e.position+e.size {
			return &logstore.CorruptError{File: seg.path(), Offset: e.position, Bytes: e.size, Reason: "a committed batch is missing from the segment"}
		}
	} else {
		placed.data = data[e.payload : e.payload+e.size]
	}
	if err := r.log.publish(&placed); err != nil {
		return err
	}
	return r.log.trimTails(p)
}

// trimTails keeps the tails small while the journal is replayed.
func (l *Log) trimTails(p *partition) error {
	p.mu.Lock()
	large := len(p.tail) >= l.o.TailBytes || l.tailBytes.Load() > l.o.TailsBytes
	p.mu.Unlock()
	if large {
		return l.flushTail(p)
	}
	return nil
}

// finish makes the recovered state durable and starts a new lap, so that nothing
// the last process left in the journal can be taken for a frame again.
func (r *recovery) finish() error {
	l := r.log
	j, err := openJournal(l.fs, l.o.JournalBytes)
	if err != nil {
		return err
	}
	l.journal = j
	j.logID, j.pos, j.sequence, j.durable = r.saved.logID, 0, r.end, r.end-1
	j.lap = r.saved.lap + (r.end - r.saved.sequence) + 2 // above every lap that can be in the journal
	if n := r.end - r.saved.sequence; n > 0 {
		l.log.Info("journal was replayed", "frames", n, "end", r.cut)
	}
	if r.lost {
		if err := r.keepJournal(); err != nil {
			return err
		}
	}
	c := &l.committer
	c.capture(false)
	l.keeper.checkpoint(<-l.keeper.captures)
	if err := l.Err(); err != nil {
		return err
	}
	if l.ckptFull != nil {
		return fmt.Errorf("write the checkpoint that recovery needs: %w: %w", logstore.ErrFull, l.ckptFull)
	}
	for p, sizes := range r.found {
		if err := r.settle(p, sizes); err != nil {
			return err
		}
	}
	return r.removeDeleted()
}

// keepJournal copies the journal away when committed batches in it could not be
// put into their partitions: what is left of them is there.
func (r *recovery) keepJournal() error {
	fs := r.log.fs
	src, err := openJournalReader(fs)
	if err != nil {
		return err
	}
	defer func() { _ = src.close() }()
	dst, _, err := fs.OpenFile(damagedJournalName(r.log.journal.lap), true)
	if err != nil {
		return err
	}
	for at := int64(0); at < src.size && err == nil; at += windowBytes {
		var piece []byte
		if piece, err = src.bytes(at, windowBytes); err == nil {
			_, err = dst.WriteAt(piece, at)
		}
	}
	if err == nil {
		err = dst.Sync()
	}
	if err = errors.Join(err, dst.Close()); err != nil {
		return fmt.Errorf("keep a copy of the damaged journal: %w", err)
	}
	return fs.SyncDir(".")
}

func damagedJournalName(lap uint64) string { return fmt.Sprintf("%s.damaged-%d", journalName, lap) }

// settle cuts a partition's last segment at the committed end, and removes the
// files that hold nothing committed.
func (r *recovery) settle(p *partition, sizes map[int64]int64) error {
	l := r.log
	last := p.last()
	p.next = cursor{offset: p.end}
	if last != nil {
		p.next = cursor{seg: last, pos: last.size, offset: p.end}
		last.allocated = last.size
	}
	if p.gone != nil {
		return nil // not a byte is touched
	}
	if last != nil && sizes[last.base] > last.size {
		l.log.Debug("segment is cut at its committed end", "file", last.path(), "offset", last.size, "bytes", sizes[last.base]-last.size)
		if err := l.files.truncate(last, last.size); err != nil {
			return err
		}
	}
	for base := range sizes {
		if r.leftOver(p, base) {
			s := &segment{part: p, base: base}
			l.log.Debug("file holds nothing committed and is removed", "file", s.path())
			for _, suffix := range []string{".log", indexSuffix, timeIndexSuffix} {
				if err := l.fs.RemoveAll(s.file(suffix)); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// leftOver reports whether a segment file is known to hold nothing that is kept:
// it begins at or after the committed end, or below the start, or compaction has
// merged it into the one before.
func (r *recovery) leftOver(p *partition, base int64) bool {
	merged := false
	for _, s := range p.segments {
		if s.base == base {
			return false
		}
		merged = merged || p.topic.config.Cleanup == logstore.CleanupCompact && base > s.base && base < s.next
	}
	if base < p.end && base >= p.start && !merged {
		r.log.log.Warn("unknown segment file is left alone", "topic", p.topic.name, "partition", p.id, "base", base)
		return false
	}
	return true
}

// removeDeleted removes the folders of topics whose deletion was committed.
func (r *recovery) removeDeleted() error {
	l := r.log
	for _, t := range r.state.deleted {
		mine, err := r.folderOf(t)
		if err != nil {
			return err
		}
		if mine {
			if err := l.removeFolder(t); err != nil {
				return err
			}
		}
		l.forgetDeleted(t)
	}
	return l.fs.RemoveAll(trashDir)
}

// folderOf reports whether the folder of that name is still the deleted topic's.
func (r *recovery) folderOf(t *topic) (bool, error) {
	for _, p := range t.parts {
		text, err := readFile(r.log.fs, p.dir()+"/"+topicIDName, smallFileMax)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return false, err
		}
		if id := strings.TrimSpace(string(text)); id != "" {
			return id == t.id.String(), nil
		}
	}
	return r.log.topics[t.name] == nil, nil
}
