package disk_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/millrace-io/millrace/logstore"
	"github.com/millrace-io/millrace/logstore/disk"
	"github.com/millrace-io/millrace/logstore/disk/disktest"
)

// crashed returns a file system as a process left it that was killed after n
// units of one record on each of two partitions, and where in the journal each
// of their frames begins.
func crashed(t *testing.T, n int, o func(disk.FS) disk.Options) (*disktest.FS, []int) {
	t.Helper()
	fs := disktest.New()
	l, err := disk.Open("memory", o(fs))
	if err != nil {
		t.Fatal(err)
	}
	create(t, l, "t", logstore.TopicConfig{Partitions: 2})
	w := writerOf(t, l, "w")
	for i := range n {
		appendUnit(t, w, &logstore.Unit{
			Batches: []logstore.Batch{to("t", 0, batchOf(t, fmt.Sprintf("a%d", i))), to("t", 1, batchOf(t, fmt.Sprintf("b%d", i)))},
			Offsets: []logstore.GroupOffset{{Group: "g", TopicPartition: logstore.TopicPartition{Topic: "t"}, Offset: int64(i)}},
		})
	}
	after := fs.Clone()
	_ = l.Close()
	var at []int
	journal := after.Bytes("journal")
	for i := 0; i+8 < len(journal); i += 8 {
		if string(journal[i:i+4]) == "MRJF" {
			at = append(at, i)
		}
	}
	return after, at
}

// units checks that exactly n units are there, whole.
func units(l *disk.Log, n int) error {
	for p, letter := range []string{"a", "b"} {
		got, err := readAll(l, "t", int32(p), 0)
		if err != nil {
			return err
		}
		var want []string
		for i := range n {
			want = append(want, fmt.Sprintf("%d:%s%d", i, letter, i))
		}
		if !slices.Equal(got, want) {
			return fmt.Errorf("partition %d holds %d records, want %d", p, len(got), n)
		}
	}
	offset, ok := l.GroupOffsets("g")[logstore.TopicPartition{Topic: "t"}]
	if ok != (n > 0) || ok && int(offset) != n-1 {
		return fmt.Errorf("offset %d of %d units", offset, n)
	}
	return nil
}

// TestTornTailAtEveryByte cuts and garbles the last frame at each of its bytes:
// the units before it are there, the last is there whole or not at all, and the
// log takes more.
func TestTornTailAtEveryByte(t *testing.T) {
	const n = 5
	fs, frames := crashed(t, n, tiny)
	last := frames[len(frames)-1]
	journal := slices.Clone(fs.Bytes("journal"))
	length := int(binary.BigEndian.Uint32(journal[last+8:]))
	rng := rand.New(rand.NewPCG(3, 3))
	for _, how := range []string{"cut", "garble", "flip"} {
		for i := range length {
			torn := slices.Clone(journal)
			switch how {
			case "cut":
				clear(torn[last+i:])
			case "garble":
				for k := last + i; k < len(torn) && k < last+length+100; k++ {
					torn[k] = byte(rng.Uint32())
				}
			case "flip":
				torn[last+i] ^= 1 << rng.IntN(8)
			}
			c := fs.Clone()
			c.SetBytes("journal", torn)
			want := n - 1
			if slices.Equal(torn[last:last+length], journal[last:last+length]) {
				want = n
			}
			if err := reopened(t, c, want, n); err != nil {
				t.Fatalf("%s at byte %d of %d: %v", how, i, length, err)
			}
		}
	}
}

// reopened opens a log that holds want units, or all n when the damage is in
// bytes that no checksum covers because they say nothing; it appends and opens
// again.
func reopened(t *testing.T, fs *disktest.FS, want, n int) error {
	l, err := disk.Open("memory", tiny(fs))
	if err != nil {
		return err
	}
	err = units(l, want)
	if err != nil && units(l, n) == nil {
		want, err = n, nil
	}
	if err != nil {
		return errors.Join(err, l.Close())
	}
	w := writerOf(t, l, "w")
	appendUnit(t, w, &logstore.Unit{
		Batches: []logstore.Batch{to("t", 0, batchOf(t, fmt.Sprintf("a%d", want))), to("t", 1, batchOf(t, fmt.Sprintf("b%d", want)))},
		Offsets: []logstore.GroupOffset{{Group: "g", TopicPartition: logstore.TopicPartition{Topic: "t"}, Offset: int64(want)}},
	})
	again := fs.Clone() // killed again
	if err := l.Close(); err != nil {
		return err
	}
	l, err = disk.Open("memory", tiny(again))
	if err != nil {
		return fmt.Errorf("second opening: %w", err)
	}
	return errors.Join(units(l, want+1), l.Close())
}

// TestFrameBehindATornOneStaysDead leaves a whole frame behind a torn one, as a
// write that was cut can, and puts a frame of the same size in the torn one's
// place: the one behind must not come to life at the next start.
func TestFrameBehindATornOneStaysDead(t *testing.T) {
	const n = 6
	fs, _ := crashed(t, n, tiny)
	l, err := disk.Open("memory", tiny(fs))
	if err != nil {
		t.Fatal(err)
	}
	w := writerOf(t, l, "w") // the frame that will be torn
	appendUnit(t, w, &logstore.Unit{Batches: []logstore.Batch{to("t", 0, batchOf(t, "behind"))}})
	after := fs.Clone()
	_ = l.Close()
	journal := slices.Clone(after.Bytes("journal")) // the last opening began at its first byte
	be := binary.BigEndian
	behind := int(be.Uint32(journal[8:]))
	journal[20] ^= 1                                                    // the lap of the first frame: it is none any more
	be.PutUint64(journal[behind+32:], be.Uint64(journal[behind+32:])-1) // durable: both were in one write
	head := behind + 48 + 72*int(be.Uint32(journal[behind+12:]))
	be.PutUint32(journal[behind+4:], crc32.Checksum(journal[behind+8:head], crc32.MakeTable(crc32.Castagnoli)))
	after.SetBytes("journal", journal)

	if l, err = disk.Open("memory", tiny(after)); err != nil {
		t.Fatal(err)
	}
	if err := units(l, n); err != nil {
		t.Fatal(err)
	}
	writerOf(t, l, "w") // the same bytes, but for what tells laps apart
	killed := after.Clone()
	_ = l.Close()
	if l, err = disk.Open("memory", tiny(killed)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(units(l, n), l.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestDamageInCommittedFramesIsNeverSilent flips bits in frames that later ones
// say were committed: the opening is refused by a sentence that names the place,
// or the partition stops; records are never missing without an error.
func TestDamageInCommittedFramesIsNeverSilent(t *testing.T) {
	const n = 12
	fs, frames := crashed(t, n, tiny)
	journal := slices.Clone(fs.Bytes("journal"))
	first := frames[len(frames)-n]
	end := frames[len(frames)-2] // the last two may pass for torn
	rng := rand.New(rand.NewPCG(4, 4))
	refused, stopped, harmless := 0, 0, 0
	for at := first; at < end; at++ {
		flipped := slices.Clone(journal)
		flipped[at] ^= 1 << rng.IntN(8)
		c := fs.Clone()
		c.SetBytes("journal", flipped)
		l, err := disk.Open("memory", tiny(c))
		var damage *logstore.CorruptError
		if err != nil {
			if !errors.As(err, &damage) || damage.File != "journal" || strings.Contains(err.Error(), "\n") {
				t.Fatalf("byte %d: %v", at, err)
			}
			refused++
			continue
		}
		err = units(l, n)
		if err == nil {
			harmless++ // padding, or a field that recovery writes anew
		} else if !errors.As(err, &damage) {
			t.Fatalf("byte %d: %v", at, err)
		} else {
			stopped++
			if err := stoppedForGood(t, l, c); err != nil {
				t.Fatalf("byte %d: %v", at, err)
			}
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d refused, %d stopped a partition, %d harmless", refused, stopped, harmless)
	if refused == 0 || stopped == 0 || harmless > (refused+stopped)/4 {
		t.Error("the damage was not where it should be")
	}
}

// stoppedForGood checks that one of the two partitions takes nothing, the other
// does, that the journal was kept, and that it is so after a restart.
func stoppedForGood(t *testing.T, l *disk.Log, fs *disktest.FS) error {
	for opening := range 2 {
		bad := 0
		for p := range int32(2) {
			w := writerOf(t, l, "x")
			_, err := logstore.Append(t.Context(), w, &logstore.Unit{Batches: []logstore.Batch{to("t", p, batchOf(t, "more"))}})
			if errors.Is(err, logstore.ErrCorrupt) {
				bad++
			} else if err != nil {
				return err
			}
		}
		if bad != 1 {
			return fmt.Errorf("opening %d: %d partitions are stopped", opening, bad)
		}
		if err := l.Close(); err != nil {
			return err
		}
		var err error
		if l, err = disk.Open("memory", tiny(fs)); err != nil {
			return err
		}
	}
	if !slices.ContainsFunc(fs.Names(), func(name string) bool { return strings.HasPrefix(name, "journal.damaged-") }) {
		return errors.New("no copy of the journal was kept")
	}
	return l.Close()
}

// TestFlippedBitsAreNeverServed flips one bit anywhere in any file of a log that
// was closed: what is read is right or an error, other partitions go on, and no
// file is removed.
func TestFlippedBitsAreNeverServed(t *testing.T) {
	rounds := 3000
	if testing.Short() || raceEnabled {
		rounds = 300
	}
	fs := disktest.New()
	l, err := disk.Open("memory", tiny(fs))
	if err != nil {
		t.Fatal(err)
	}
	create(t, l, "t", logstore.TopicConfig{Partitions: 2})
	w := writerOf(t, l, "w")
	for i := range 120 {
		appendTo(t, w, "t", int32(i%2), fmt.Sprint(i, strings.Repeat("z", i*20)))
	}
	want := [][]string{contents(t, l, "t", 0, 0), contents(t, l, "t", 1, 0)}
	closeLog(t, l)
	fs.SetBytes("reserve", nil)
	var names []string
	for _, name := range fs.Names() {
		if name != "journal" && name != "LOCK" { // nothing is in the one, and the other says nothing
			names = append(names, name)
		}
	}
	rng := rand.New(rand.NewPCG(5, 5))
	var served, stopped, refused int
	for range rounds {
		c := fs.Clone()
		name := names[rng.IntN(len(names))]
		data := c.Bytes(name)
		if len(data) == 0 {
			continue
		}
		at := rng.IntN(len(data))
		spoiled := slices.Clone(data)
		spoiled[at] ^= 1 << rng.IntN(8)
		c.SetBytes(name, spoiled)
		l, err := disk.Open("memory", tiny(c))
		if err != nil {
			if !errors.Is(err, logstore.ErrCorrupt) && !strings.Contains(err.Error(), "use the newer millrace") {
				t.Fatalf("%s byte %d: %v", name, at, err)
			}
			refused++
			continue
		}
		bad := 0
		for p := range int32(2) {
			got, err := readAll(l, "t", p, 0)
			if err != nil && !errors.Is(err, logstore.ErrCorrupt) {
				t.Fatalf("%s byte %d: %v", name, at, err)
			}
			if err != nil {
				bad++
			}
			if len(got) > len(want[p]) || !slices.Equal(got, want[p][:len(got)]) || err == nil && len(got) != len(want[p]) {
				t.Fatalf("%s byte %d: partition %d: wrong records were served", name, at, p)
			}
			if off := rng.IntN(60); err == nil {
				if got, err := readAll(l, "t", p, int64(off)); err != nil || !slices.Equal(got, want[p][off:]) {
					t.Fatalf("%s byte %d: partition %d from %d: %v", name, at, p, off, err)
				}
			}
		}
		if bad > 1 {
			t.Fatalf("%s byte %d: both partitions are damaged", name, at)
		}
		stopped += bad
		served += 1 - bad
		_ = l.Close()
		for _, n := range names {
			if c.Bytes(n) == nil {
				t.Fatalf("%s byte %d: %s was removed", name, at, n)
			}
		}
	}
	t.Logf("%d served, %d stopped, %d refused", served, stopped, refused)
}

// TestStructuralDamage takes files away, cuts and swaps them.
func TestStructuralDamage(t *testing.T) {
	fs := disktest.New()
	l, err := disk.Open("memory", tiny(fs))
	if err != nil {
		t.Fatal(err)
	}
	create(t, l, "t", logstore.TopicConfig{Partitions: 2})
	w := writerOf(t, l, "w")
	for i := range 100 {
		appendTo(t, w, "t", int32(i%2), fmt.Sprint(i, strings.Repeat("z", 1500)))
	}
	want := [][]string{contents(t, l, "t", 0, 0), contents(t, l, "t", 1, 0)}
	closeLog(t, l)
	fs.SetBytes("reserve", nil)
	var logs []string
	for _, name := range fs.Names() {
		if strings.HasPrefix(name, "topics/t/0/") && strings.HasSuffix(name, ".log") {
			logs = append(logs, name)
		}
	}
	middle, last := logs[len(logs)/2], logs[len(logs)-1]
	for name, c := range map[string]struct {
		do      func(c *disktest.FS)
		stopped bool   // partition 0
		refused string // the opening
	}{
		"middle segment missing": {do: func(c *disktest.FS) { c.SetBytes(middle, nil) }, stopped: true},
		"last segment missing":   {do: func(c *disktest.FS) { c.SetBytes(last, nil) }, stopped: true},
		"middle segment cut":     {do: func(c *disktest.FS) { c.SetBytes(middle, c.Bytes(middle)[:100]) }, stopped: true},
		"last segment cut":       {do: func(c *disktest.FS) { c.SetBytes(last, c.Bytes(last)[:1]) }, stopped: true},
		"segments swapped": {do: func(c *disktest.FS) {
			a, b := slices.Clone(c.Bytes(logs[0])), slices.Clone(c.Bytes(middle))
			c.SetBytes(logs[0], b)
			c.SetBytes(middle, a)
		}, stopped: true},
		"topic id of another": {do: func(c *disktest.FS) { c.SetBytes("topics/t/0/topic.id", []byte("AAAAAAAAAAAAAAAAAAAAAA\n")) }, stopped: true},
		"topic id missing":    {do: func(c *disktest.FS) { c.SetBytes("topics/t/0/topic.id", nil) }},
		"indexes missing":     {do: removeIndexes},
		"stray files": {do: func(c *disktest.FS) {
			c.SetBytes("topics/t/0/x.tmp", []byte("?"))
			c.SetBytes("topics/stray", []byte("?"))
		}},
		"file of the future":    {do: func(c *disktest.FS) { c.SetBytes("topics/t/0/00000000000000099999.log", []byte("never committed")) }},
		"longer last segment":   {do: func(c *disktest.FS) { c.SetBytes(last, append(slices.Clone(c.Bytes(last)), "never committed"...)) }},
		"journal missing":       {do: func(c *disktest.FS) { c.SetBytes("journal", nil) }},
		"checkpoint missing":    {do: func(c *disktest.FS) { c.SetBytes("checkpoint", nil) }, refused: "corrupt: checkpoint"},
		"checkpoint empty":      {do: func(c *disktest.FS) { c.SetBytes("checkpoint", []byte{}) }, refused: "corrupt: checkpoint"},
		"version missing":       {do: func(c *disktest.FS) { c.SetBytes("VERSION", nil) }, refused: "corrupt: VERSION"},
		"version unreadable":    {do: func(c *disktest.FS) { c.SetBytes("VERSION", []byte("?")) }, refused: "corrupt: VERSION"},
		"version of the future": {do: func(c *disktest.FS) { c.SetBytes("VERSION", []byte("millrace log 2\n")) }, refused: "use the newer millrace"},
		"topics table missing":  {do: func(c *disktest.FS) { c.SetBytes("topics/__topics/0/00000000000000000000.log", nil) }, refused: "corrupt: topics/__topics"},
	} {
		t.Run(name, func(t *testing.T) {
			spoiled := fs.Clone()
			c.do(spoiled)
			names := spoiled.Names()
			l, err := disk.Open("memory", tiny(spoiled))
			if c.refused != "" {
				if err == nil || !strings.Contains(err.Error(), c.refused) || strings.Contains(err.Error(), "\n") {
					t.Errorf("opened: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got, err := readAll(l, "t", 0, 0)
			if c.stopped != errors.Is(err, logstore.ErrCorrupt) || err != nil && !c.stopped {
				t.Errorf("partition 0: %v", err)
			}
			if err == nil && !slices.Equal(got, want[0]) || len(got) > len(want[0]) || !slices.Equal(got, want[0][:len(got)]) {
				t.Error("partition 0: wrong records")
			}
			if got, err := readAll(l, "t", 1, 0); err != nil || !slices.Equal(got, want[1]) {
				t.Errorf("partition 1: %v", err)
			}
			appendTo(t, writerOf(t, l, "w"), "t", 1, "more")
			closeLog(t, l)
			if spoiled.Bytes("topics/t/0/00000000000000099999.log") != nil {
				t.Error("a file without anything committed is left")
			}
			for _, name := range names {
				if spoiled.Bytes(name) == nil && !strings.Contains(name, "99999") && name != "checkpoint.tmp" {
					t.Errorf("%s was removed", name)
				}
			}
		})
	}
}

func removeIndexes(fs *disktest.FS) {
	for _, name := range fs.Names() {
		if strings.HasSuffix(name, "index") {
			fs.SetBytes(name, nil)
		}
	}
}
