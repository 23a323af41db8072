package recordbatch_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-io/millrace/logstore/recordbatch"
)

func build(t testing.TB, records ...recordbatch.Record) []byte {
	t.Helper()
	var b recordbatch.Builder
	b.Reset()
	for i := range records {
		if err := b.Append(&records[i]); err != nil {
			t.Fatal(err)
		}
	}
	if b.Size() != len(b.Bytes()) {
		t.Fatalf("Size says %d, batch has %d bytes", b.Size(), len(b.Bytes()))
	}
	return bytes.Clone(b.Bytes())
}

func read(t testing.TB, batch []byte) []recordbatch.Record {
	t.Helper()
	var all []recordbatch.Record
	it := recordbatch.Iter(batch)
	for {
		var r recordbatch.Record
		if !it.Next(&r) {
			break
		}
		all = append(all, r)
	}
	if err := it.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

func randomRecords(rng *rand.Rand, n int) []recordbatch.Record {
	blob := func(most int) []byte {
		switch rng.IntN(5) {
		case 0:
			return nil
		case 1:
			return []byte{}
		}
		b := make([]byte, rng.IntN(most))
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return b
	}
	records := make([]recordbatch.Record, n)
	for i := range records {
		records[i] = recordbatch.Record{Offset: int64(i), Timestamp: rng.Int64N(1 << 45), Key: blob(40), Value: blob(9000)}
		if rng.IntN(50) == 0 {
			records[i].Timestamp = []int64{math.MinInt64, math.MaxInt64, -1, 0}[rng.IntN(4)]
		}
		for range rng.IntN(4) {
			records[i].Headers = append(records[i].Headers, recordbatch.Header{Key: fmt.Sprint("h", rng.IntN(300)), Value: blob(70)})
		}
	}
	return records
}

func TestWhatIsBuiltIsRead(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		want := randomRecords(rng, 1+rng.IntN(30))
		batch := build(t, want...)
		if err := recordbatch.Check(batch, recordbatch.MaxBytes); err != nil {
			t.Fatal(err)
		}
		if got := read(t, batch); !reflect.DeepEqual(got, want) {
			t.Fatal(cmp.Diff(want, got))
		}
		info, err := recordbatch.Parse(batch)
		if err != nil || int(info.Count) != len(want) || info.FirstTimestamp != want[0].Timestamp || info.Size != len(batch) {
			t.Fatalf("info %+v, error %v", info, err)
		}
	}
}

func TestBaseOffsetIsOutsideTheChecksum(t *testing.T) {
	batch := build(t, recordbatch.Record{Value: []byte("a")}, recordbatch.Record{Value: []byte("b")})
	recordbatch.SetBaseOffset(batch, 1<<40)
	if err := recordbatch.Check(batch, len(batch)); err != nil {
		t.Fatal(err)
	}
	if got := read(t, batch); got[1].Offset != 1<<40+1 {
		t.Fatalf("offset %d", got[1].Offset)
	}
}

func TestCheckRefuses(t *testing.T) {
	good := build(t, recordbatch.Record{Value: []byte("a")}, recordbatch.Record{Value: []byte("b")})
	be := binary.BigEndian
	seal := func(b []byte) { be.PutUint32(b[17:], crc32.Checksum(b[21:], crc32.MakeTable(crc32.Castagnoli))) }
	for _, c := range []struct {
		name  string
		spoil func(b []byte) []byte
		want  error
	}{
		{"too large", func(b []byte) []byte { return append(b, make([]byte, 1000)...) }, recordbatch.ErrTooLarge},
		{"cut", func(b []byte) []byte { return b[:len(b)-1] }, recordbatch.ErrShort},
		{"only a length", func(b []byte) []byte { return b[:12] }, recordbatch.ErrShort},
		{"empty", func([]byte) []byte { return nil }, recordbatch.ErrShort},
		{"more than one", func(b []byte) []byte { return append(b, b...) }, recordbatch.ErrInvalid},
		{"negative length", func(b []byte) []byte { be.PutUint32(b[8:], 1<<31); return b }, recordbatch.ErrInvalid},
		{"small length", func(b []byte) []byte { be.PutUint32(b[8:], 48); return b }, recordbatch.ErrInvalid},
		{"magic 1", func(b []byte) []byte { b[16] = 1; return b }, recordbatch.ErrInvalid},
		{"checksum", func(b []byte) []byte { b[len(b)-1] ^= 1; return b }, recordbatch.ErrChecksum},
		{"codec 5", func(b []byte) []byte { b[22] = 5; seal(b); return b }, recordbatch.ErrInvalid},
		{"log append time", func(b []byte) []byte { b[22] = 8; seal(b); return b }, recordbatch.ErrInvalid},
		{"transactional", func(b []byte) []byte { b[22] = 16; seal(b); return b }, recordbatch.ErrInvalid},
		{"control", func(b []byte) []byte { b[22] = 32; seal(b); return b }, recordbatch.ErrInvalid},
		{"unknown bit", func(b []byte) []byte { b[21] = 1; seal(b); return b }, recordbatch.ErrInvalid},
		{"producer id", func(b []byte) []byte { be.PutUint64(b[43:], 7); seal(b); return b }, recordbatch.ErrInvalid},
		{"producer epoch", func(b []byte) []byte { be.PutUint16(b[51:], 0); seal(b); return b }, recordbatch.ErrInvalid},
		{"sequence", func(b []byte) []byte { be.PutUint32(b[53:], 1); seal(b); return b }, recordbatch.ErrInvalid},
		{"count", func(b []byte) []byte { be.PutUint32(b[57:], 1); seal(b); return b }, recordbatch.ErrInvalid},
		{"no records", func(b []byte) []byte { be.PutUint32(b[57:], 0); seal(b); return b }, recordbatch.ErrInvalid},
		{"last delta", func(b []byte) []byte { be.PutUint32(b[23:], 2); seal(b); return b }, recordbatch.ErrInvalid},
		{"negative delta", func(b []byte) []byte { be.PutUint32(b[23:], 1<<31); seal(b); return b }, recordbatch.ErrInvalid},
	} {
		b := c.spoil(bytes.Clone(good))
		err := recordbatch.Check(b, len(good)*2)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
	}
	if err := recordbatch.Check(good, len(good)); err != nil {
		t.Error(err)
	}
}

func TestSplitWalksARun(t *testing.T) {
	var run []byte
	for i := range 3 {
		run = append(run, build(t, recordbatch.Record{Value: bytes.Repeat([]byte{'x'}, i)})...)
	}
	for i := range 3 {
		batch, rest, err := recordbatch.Split(run)
		if err != nil {
			t.Fatal(err)
		}
		if r := read(t, batch); len(r) != 1 || len(r[0].Value) != i {
			t.Fatalf("batch %d: %v", i, r)
		}
		run = rest
	}
	if len(run) != 0 {
		t.Fatalf("%d bytes left", len(run))
	}
}

func TestBuilderKeepsToItsLimits(t *testing.T) {
	var b recordbatch.Builder
	if b.Bytes() != nil {
		t.Error("an empty builder has bytes")
	}
	many := recordbatch.Record{Headers: make([]recordbatch.Header, recordbatch.MaxHeaders+1)}
	if err := b.Append(&many); !errors.Is(err, recordbatch.ErrTooLarge) {
		t.Errorf("headers: %v", err)
	}
	many.Headers = many.Headers[1:]
	if err := b.Append(&many); err != nil {
		t.Error(err)
	}
	if err := recordbatch.Check(b.Bytes(), recordbatch.MaxBytes); err != nil {
		t.Error(err)
	}
	size := b.Size()
	if testing.Short() {
		return // the rest wants a gigabyte
	}
	huge := make([]byte, recordbatch.MaxBytes-size) // zero pages, never touched
	if err := b.Append(&recordbatch.Record{Value: huge}); !errors.Is(err, recordbatch.ErrTooLarge) {
		t.Errorf("size: %v", err)
	}
	if b.Size() != size || b.Count() != 1 {
		t.Error("a refused record changed the batch")
	}
	b.Reset()
	if b.Count() != 0 || b.Size() != recordbatch.HeaderSize || b.Bytes() != nil {
		t.Error("reset left something")
	}
}

func TestKeptRecordsKeepTheirOffsets(t *testing.T) {
	var b recordbatch.Builder
	b.Reset()
	for _, off := range []int64{103, 107} {
		if err := b.AppendAt(100, &recordbatch.Record{Offset: off, Key: []byte("k")}); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.AppendAt(100, &recordbatch.Record{Offset: 107}); !errors.Is(err, recordbatch.ErrInvalid) {
		t.Errorf("repeated offset: %v", err)
	}
	batch := b.BytesUpTo(109)
	info, err := recordbatch.Parse(batch)
	if err != nil || info.NextOffset() != 110 || info.BaseOffset != 100 || info.Count != 2 {
		t.Fatalf("%+v %v", info, err)
	}
	got := read(t, batch)
	if len(got) != 2 || got[0].Offset != 103 || got[1].Offset != 107 {
		t.Fatalf("%+v", got)
	}
	if err := recordbatch.VerifyChecksum(batch); err != nil {
		t.Fatal(err)
	}
}

func TestNothingIsAllocatedPerRecord(t *testing.T) {
	value, key := bytes.Repeat([]byte("v"), 300), []byte("key")
	headers := []recordbatch.Header{{Key: "a", Value: key}, {Key: "b"}}
	var b recordbatch.Builder
	fill := func() {
		b.Reset()
		for i := range 100 {
			r := recordbatch.Record{Timestamp: int64(i), Key: key, Value: value, Headers: headers}
			if err := b.Append(&r); err != nil {
				t.Fatal(err)
			}
		}
		b.Bytes()
	}
	fill()
	if n := testing.AllocsPerRun(50, fill); n != 0 {
		t.Errorf("building 100 records made %v allocations", n)
	}
	batch := bytes.Clone(b.Bytes())
	var r recordbatch.Record
	walk := func() {
		it := recordbatch.Iter(batch)
		for it.Next(&r) {
		}
		if it.Err() != nil || len(r.Headers) != 2 {
			t.Fatal(it.Err())
		}
	}
	walk()
	if n := testing.AllocsPerRun(50, walk); n != 0 {
		t.Errorf("reading 100 records made %v allocations", n)
	}
	if n := testing.AllocsPerRun(50, func() {
		if err := recordbatch.Check(batch, len(batch)); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("checking made %v allocations", n)
	}
}

func TestIteratorNamesTheBrokenRecord(t *testing.T) {
	batch := build(t, recordbatch.Record{Value: []byte("aaaa")}, recordbatch.Record{Value: []byte("bbbb")})
	batch[len(batch)-6] = 0x7e // length of the second value
	it := recordbatch.Iter(batch)
	var r recordbatch.Record
	if !it.Next(&r) || it.Next(&r) {
		t.Fatal("want exactly one record")
	}
	if err := it.Err(); !errors.Is(err, recordbatch.ErrInvalid) || !strings.Contains(err.Error(), "record 1 of 2") {
		t.Fatal(err)
	}
}

func FuzzIterator(f *testing.F) {
	f.Add(build(f, recordbatch.Record{Key: []byte("k"), Value: []byte("v"), Headers: []recordbatch.Header{{Key: "h", Value: []byte("x")}}}))
	for codec := range compressors() {
		f.Add(compressed(f, codec, randomRecords(rand.New(rand.NewPCG(3, uint64(codec))), 5)))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		checkErr := recordbatch.Check(data, recordbatch.MaxBytes)
		it := recordbatch.Iter(nil)
		it.ResetLimit(data, 1<<20)
		var b recordbatch.Builder
		b.Reset()
		var r recordbatch.Record
		n := 0
		for it.Next(&r) {
			n++
			if err := b.Append(&r); err != nil {
				t.Fatal(err)
			}
		}
		if it.Err() != nil || n == 0 {
			return
		}
		if checkErr == nil && n != int(it.Info().Count) {
			t.Fatalf("%d records of %d without an error", n, it.Info().Count)
		}
		again := recordbatch.Iter(b.Bytes())
		m := 0
		for again.Next(&r) {
			m++
		}
		if again.Err() != nil || m != n {
			t.Fatalf("read %d, rebuilt %d: %v", n, m, again.Err())
		}
	})
}
