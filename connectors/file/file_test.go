package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/millrace-io/millrace/plugins/sdk"
	"github.com/millrace-io/millrace/plugins/sdk/sdktest"
)

func TestMain(m *testing.M) { sdktest.Main(m, plugin()) }

func TestReadmeHasTheKeys(t *testing.T) {
	sdktest.Keys(t, "README.md", "source", new(source).Define)
	sdktest.Keys(t, "README.md", "sink", new(sink).Define)
}

func TestSource(t *testing.T) {
	sdktest.Source(t, sdktest.SourceCase{
		Class: plugin().Connectors[0].Class,
		Setup: func(t *testing.T) (map[string]string, func(from, to int)) {
			file := filepath.Join(t.TempDir(), "in")
			return map[string]string{"file": file, "topic": "lines", "batch.size": "70"}, func(from, to int) {
				var b bytes.Buffer
				for i := from; i < to; i++ {
					fmt.Fprintf(&b, "record %d;\n", i)
				}
				extend(t, file, b.Bytes())
			}
		},
		Big: func(t *testing.T, config map[string]string, size int) {
			extend(t, config["file"], append(bytes.Repeat([]byte("x"), size), '\n'))
		},
	})
}

func extend(t *testing.T, file string, b []byte) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestSink(t *testing.T) {
	sdktest.Sink(t, sdktest.SinkCase{
		Class: plugin().Connectors[1].Class,
		Big:   true,
		Setup: func(t *testing.T) (map[string]string, func() []string) {
			file := filepath.Join(t.TempDir(), "out")
			return map[string]string{"file": file}, func() []string {
				b, err := os.ReadFile(file)
				if err != nil && !os.IsNotExist(err) {
					t.Fatal(err)
				}
				lines := strings.Split(string(b), "\n")
				return lines[:len(lines)-1]
			}
		},
	})
}

func TestALineWithoutItsEndWaits(t *testing.T) {
	file := filepath.Join(t.TempDir(), "in")
	extend(t, file, []byte("whole\r\nha"))
	s := &source{file: file, topic: "t", batchSize: 10}
	var got []string
	var at []int64
	out := sdk.NewBatch(func(r *sdk.Record) error {
		got = append(got, r.Value.Value.Str())
		return nil
	}, func(p sdk.Position) error {
		at = append(at, p.Offset["position"].(int64))
		return nil
	})
	if err := s.Open(t.Context(), &sdk.SourceTask{}); err != nil {
		t.Fatal(err)
	}
	if err := s.Read(t.Context(), out); err != nil {
		t.Fatal(err)
	}
	extend(t, file, []byte("lf\nnext\n"))
	if err := s.Read(t.Context(), out); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(got, at) != "[whole half next] [7 17]" {
		t.Errorf("read %q at %v", got, at)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestOffsetsOfAnOperatorAreChecked(t *testing.T) {
	ok := map[string]any{"filename": "f"}
	for _, c := range []struct {
		p    sdk.Position
		want bool
	}{
		{sdk.Position{Partition: ok, Offset: map[string]any{"position": int64(0)}}, true},
		{sdk.Position{Partition: ok}, true},
		{sdk.Position{Partition: ok, Offset: map[string]any{"position": int64(-1)}}, false},
		{sdk.Position{Partition: ok, Offset: map[string]any{"position": 1.5}}, false},
		{sdk.Position{Partition: ok, Offset: map[string]any{}}, false},
		{sdk.Position{Partition: map[string]any{}, Offset: map[string]any{"position": int64(0)}}, false},
	} {
		if _, err := new(source).AlterOffsets(t.Context(), []sdk.Position{c.p}); (err == nil) != c.want || err != nil && sdk.CodeOf(err) != sdk.Invalid {
			t.Errorf("%v: %v", c.p, err)
		}
	}
}

func TestStandardInputIsRefusedInASentence(t *testing.T) {
	for _, define := range []func(*sdk.Def){new(source).Define, new(sink).Define} {
		var d sdk.Def
		define(&d)
		errs := d.Parse(map[string]string{"topic": "t"}).Errors()
		if len(errs) != 1 || errs[0].Key != "file" || !strings.Contains(errs[0].Msg, "name a file") {
			t.Errorf("got %v", errs)
		}
	}
}
