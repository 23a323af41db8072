package recordbatch_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/millrace-io/millrace/logstore/recordbatch"
)

// The files hold one batch each, as franz-go v1.22.2 produced it with idempotent
// writes off and a broker's fetch answer returned it.
func TestBatchesOfFranzGoAreRead(t *testing.T) {
	for _, codec := range []string{"none", "gzip", "snappy", "lz4", "zstd"} {
		batch, err := os.ReadFile(filepath.Join("testdata", "franz-"+codec+".batch"))
		if err != nil {
			t.Fatal(err)
		}
		if err := recordbatch.Check(batch, recordbatch.MaxBytes); err != nil {
			t.Errorf("%s: %v", codec, err)
			continue
		}
		info, err := recordbatch.Parse(batch)
		if err != nil || info.Codec.String() != codec || info.Count != 20 {
			t.Errorf("%s: %+v %v", codec, info, err)
		}
		for i, r := range read(t, batch) {
			key, value := fmt.Sprintf("key-%d", i), fmt.Sprintf("value-%d-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", i)
			good := r.Offset == int64(i) && r.Timestamp == 1790000000000+int64(i)*7
			good = good && (i%5 == 1 && r.Key == nil || string(r.Key) == key)
			good = good && (i%5 == 2 && r.Value == nil || string(r.Value) == value)
			if i%5 == 3 {
				h := r.Headers
				good = good && len(h) == 2 && h[0].Key == "h" && string(h[0].Value) == "x" && h[1].Key == "n" && h[1].Value == nil
			}
			if !good {
				t.Errorf("%s: record %d is %+v", codec, i, r)
			}
		}
	}
}

func TestOwnBytesEqualFranzGoBytes(t *testing.T) {
	want, err := os.ReadFile(filepath.Join("testdata", "franz-none.batch"))
	if err != nil {
		t.Fatal(err)
	}
	got := build(t, read(t, want)...)
	// Apart from the checksum, which follows from it, only the sequence differs:
	// 0 there, -1 here.
	for _, b := range [][]byte{got, want} {
		clear(b[17:21])
		clear(b[53:57])
	}
	if string(got) != string(want) {
		t.Errorf("got  %x\nwant %x", got, want)
	}
}
