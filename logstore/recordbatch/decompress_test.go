package recordbatch_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	"github.com/millrace-io/millrace/logstore/recordbatch"
)

const xerialSnappy recordbatch.Codec = 100 // snappy in the Java client's framing

func compressors() map[recordbatch.Codec]func([]byte) []byte {
	return map[recordbatch.Codec]func([]byte) []byte{
		recordbatch.CodecGzip: func(d []byte) []byte {
			var b bytes.Buffer
			w := gzip.NewWriter(&b)
			_, _ = w.Write(d)
			_ = w.Close()
			return b.Bytes()
		},
		recordbatch.CodecSnappy: func(d []byte) []byte { return snappy.Encode(nil, d) },
		xerialSnappy: func(d []byte) []byte {
			out := []byte("\x82SNAPPY\x00\x00\x00\x00\x01\x00\x00\x00\x01")
			for len(d) > 0 {
				n := min(len(d), 32<<10)
				block := snappy.Encode(nil, d[:n])
				out = binary.BigEndian.AppendUint32(out, uint32(len(block)))
				out = append(out, block...)
				d = d[n:]
			}
			return out
		},
		recordbatch.CodecLZ4: func(d []byte) []byte {
			var b bytes.Buffer
			w := lz4.NewWriter(&b)
			_, _ = w.Write(d)
			_ = w.Close()
			return b.Bytes()
		},
		recordbatch.CodecZstd: func(d []byte) []byte {
			w, _ := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
			return w.EncodeAll(d, nil)
		},
	}
}

func compressed(t testing.TB, codec recordbatch.Codec, records []recordbatch.Record) []byte {
	t.Helper()
	batch := build(t, records...)
	out := append(batch[:recordbatch.HeaderSize:recordbatch.HeaderSize], compressors()[codec](batch[recordbatch.HeaderSize:])...)
	number := codec
	if codec == xerialSnappy {
		number = recordbatch.CodecSnappy
	}
	out[22] = byte(number)
	binary.BigEndian.PutUint32(out[8:], uint32(len(out)-12))
	binary.BigEndian.PutUint32(out[17:], crc32.Checksum(out[21:], crc32.MakeTable(crc32.Castagnoli)))
	return out
}

func TestEveryCodecIsRead(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for codec := range compressors() {
		it := recordbatch.Iter(nil) // one for all, so that reuse of buffers is tried
		for range 10 {
			want := randomRecords(rng, 1+rng.IntN(40))
			batch := compressed(t, codec, want)
			if err := recordbatch.Check(batch, recordbatch.MaxBytes); err != nil {
				t.Fatal(codec, err)
			}
			it.Reset(batch)
			var got []recordbatch.Record
			for {
				var r recordbatch.Record
				if !it.Next(&r) {
					break
				}
				got = append(got, r)
			}
			if it.Err() != nil {
				t.Fatal(codec, it.Err())
			}
			if !reflect.DeepEqual(got, want) {
				t.Fatal(codec, cmp.Diff(want, got))
			}
		}
	}
}

func TestInflatingStopsAtTheCeiling(t *testing.T) {
	bomb := []recordbatch.Record{{Value: make([]byte, 4<<20)}}
	for codec := range compressors() {
		batch := compressed(t, codec, bomb)
		it := recordbatch.Iter(nil)
		it.ResetLimit(batch, 1<<20)
		var r recordbatch.Record
		if it.Next(&r) || !errors.Is(it.Err(), recordbatch.ErrTooLarge) {
			t.Errorf("%s: %v", codec, it.Err())
		}
		it.Reset(batch)
		if !it.Next(&r) {
			t.Errorf("%s: %v", codec, it.Err())
		}
	}
}

func TestBrokenCompressionIsAnError(t *testing.T) {
	for codec := range compressors() {
		batch := compressed(t, codec, randomRecords(rand.New(rand.NewPCG(7, 8)), 20))
		short := bytes.Clone(batch[:len(batch)-9])
		binary.BigEndian.PutUint32(short[8:], uint32(len(short)-12))
		it := recordbatch.Iter(short)
		var r recordbatch.Record
		n := 0
		for it.Next(&r) {
			n++
		}
		if it.Err() == nil {
			t.Errorf("%s: %d records out of a cut batch, no error", codec, n)
		}
	}
}
