package recordbatch_test

import (
	"bytes"
	"testing"

	"github.com/millrace-io/millrace/logstore/recordbatch"
)

func benchRecords() recordbatch.Record {
	return recordbatch.Record{Timestamp: 1790000000000, Key: []byte(`{"id":100000}`), Value: bytes.Repeat([]byte("0123456789"), 30)}
}

func BenchmarkBuild100(b *testing.B) {
	r := benchRecords()
	var builder recordbatch.Builder
	b.ReportAllocs()
	for b.Loop() {
		builder.Reset()
		for range 100 {
			if err := builder.Append(&r); err != nil {
				b.Fatal(err)
			}
		}
		b.SetBytes(int64(len(builder.Bytes())))
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/100, "ns/record")
}

func BenchmarkRead100(b *testing.B) {
	r := benchRecords()
	var builder recordbatch.Builder
	builder.Reset()
	for range 100 {
		if err := builder.Append(&r); err != nil {
			b.Fatal(err)
		}
	}
	batch := builder.Bytes()
	b.SetBytes(int64(len(batch)))
	b.ReportAllocs()
	for b.Loop() {
		if err := recordbatch.Check(batch, recordbatch.MaxBytes); err != nil {
			b.Fatal(err)
		}
		it := recordbatch.Iter(batch)
		for it.Next(&r) {
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/100, "ns/record")
}
