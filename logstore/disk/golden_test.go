package disk_test

import (
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-io/millrace/logstore"
	"github.com/millrace-io/millrace/logstore/disk"
)

var makeGolden = flag.Bool("make-golden", false, "write testdata of the current format version, when there is none")

// goldenOptions keep the golden directory small.
func goldenOptions() disk.Options {
	o := small()
	o.JournalBytes = 64 << 10
	return o
}

// goldenContent is what testdata/version-1 holds.
func goldenContent() map[string][]string {
	big := strings.Repeat("b", 9<<10)
	return map[string][]string{
		"orders":  {"0:k=first", "1:k=" + big, "2:plain", "3:after the checkpoint", "4:k=" + big},
		"configs": {"0:a=1", "1:b=2", "2:a="},
	}
}

// TestDirectoryOfVersion1Opens opens a copy of the golden directory, which a
// process left that was killed: part of it is in segments, part in the journal.
func TestDirectoryOfVersion1Opens(t *testing.T) {
	golden := filepath.Join("testdata", "version-1")
	if *makeGolden {
		writeGolden(t, golden)
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(golden)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		l := open(t, dir, goldenOptions())
		for topic, want := range goldenContent() {
			if d := cmp.Diff(want, contents(t, l, topic, 0, 0)); d != "" {
				t.Errorf("%s: %.500s", topic, d)
			}
		}
		if topic, ok := l.Catalog().Lookup("configs"); !ok || topic.Config.Cleanup != logstore.CleanupCompact || !topic.Config.Internal || topic.Config.Partitions != 2 {
			t.Errorf("configs: %+v", topic)
		}
		if got := l.GroupOffsets("connect-sink"); len(got) != 1 || got[logstore.TopicPartition{Topic: "orders"}] != 3 {
			t.Errorf("offsets %v", got)
		}
		if w := writerOf(t, l, "source"); w.Epoch() < 3 {
			t.Errorf("epoch %d", w.Epoch())
		}
		closeLog(t, l)
	}
}

// writeGolden makes the golden directory. It refuses to write over one.
func writeGolden(t *testing.T, golden string) {
	if _, err := os.Stat(golden); err == nil {
		t.Fatalf("%s exists and is never written again", golden)
	}
	dir := t.TempDir()
	l := open(t, dir, goldenOptions())
	create(t, l, "orders", logstore.TopicConfig{})
	create(t, l, "configs", logstore.TopicConfig{Partitions: 2, Cleanup: logstore.CleanupCompact, Internal: true})
	writerOf(t, l, "source")
	w := writerOf(t, l, "source")
	values := goldenContent()["orders"]
	value := func(i int) string { return values[i][2:] }
	appendTo(t, w, "orders", 0, value(0))
	appendTo(t, w, "orders", 0, value(1))
	appendTo(t, w, "configs", 0, "a=1", "b=2", "a=")
	appendTo(t, w, "orders", 0, value(2))
	if err := l.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	appendTo(t, w, "orders", 0, value(3))
	appendUnit(t, w, &logstore.Unit{
		Batches: []logstore.Batch{to("orders", 0, batchOf(t, value(4)))},
		Offsets: []logstore.GroupOffset{{Group: "connect-sink", TopicPartition: logstore.TopicPartition{Topic: "orders"}, Offset: 3}},
	})
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		name, _ := filepath.Rel(dir, path)
		if err != nil || d.IsDir() || name == "LOCK" {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		to := filepath.Join(golden, name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		return os.WriteFile(to, data, 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestDirectoryOfTheFutureIsRefused opens what a newer program wrote: one
// sentence, and not a byte is touched.
func TestDirectoryOfTheFutureIsRefused(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join("testdata", "version-future"))); err != nil {
		t.Fatal(err)
	}
	before := tree(t, dir)
	_, err := disk.Open(dir, disk.Options{})
	if err == nil || !strings.Contains(err.Error(), "use the newer millrace that wrote it") || strings.Contains(err.Error(), "\n") {
		t.Fatalf("opened: %v", err)
	}
	t.Log(err)
	after := slices.DeleteFunc(tree(t, dir), func(s string) bool { return strings.HasPrefix(s, "LOCK=") })
	if d := cmp.Diff(before, after); d != "" {
		t.Error(d)
	}
}

// tree lists the files below dir with their content.
func tree(t *testing.T, dir string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		name, _ := filepath.Rel(dir, path)
		all = append(all, name+"="+string(data))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}
