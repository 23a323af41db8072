package disk_test

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/millrace-io/millrace/logstore"
	"github.com/millrace-io/millrace/logstore/disk"
)

// childDir makes the test binary the process that is killed.
const childDir = "MILLRACE_DISK_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		if err := child(dir); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func killOptions() disk.Options {
	o := small()
	o.JournalBytes = 1 << 20
	o.MaintainEvery = 20 * time.Millisecond
	return o
}

// child appends units without end, and prints the number of each that was
// confirmed. It goes on where the group's offset says that it was.
func child(dir string) error {
	l, err := disk.Open(dir, killOptions())
	if err != nil {
		return err
	}
	ctx := context.Background()
	for _, topic := range []string{"a", "b"} {
		if _, ok := l.Catalog().Lookup(topic); !ok {
			if _, err := l.CreateTopic(ctx, topic, logstore.TopicConfig{}); err != nil {
				return err
			}
		}
	}
	w, err := l.OpenWriter(ctx, "child")
	if err != nil {
		return err
	}
	position := logstore.TopicPartition{Topic: "a"}
	n := int64(0)
	if last, ok := l.GroupOffsets("child")[position]; ok {
		n = last + 1
	}
	rng := rand.New(rand.NewPCG(uint64(n), 9))
	out := bufio.NewWriter(os.Stdout)
	for ; ; n++ {
		number := n
		unit := &logstore.Unit{Offsets: []logstore.GroupOffset{{Group: "child", TopicPartition: position, Offset: n}}}
		for _, topic := range []string{"a", "b"} {
			value := strconv.FormatInt(n, 10)
			if rng.IntN(10) == 0 {
				value += "/" + strings.Repeat("x", rng.IntN(20<<10))
			}
			unit.Batches = append(unit.Batches, to(topic, 0, oneRecord(value)))
		}
		err := w.Append(ctx, unit, func(_ logstore.Result, err error) {
			if err != nil {
				os.Exit(3)
			}
			fmt.Fprintln(out, number)
			_ = out.Flush()
		})
		if err != nil {
			return err
		}
	}
}

// TestKilledProcessLosesNothing kills a process with SIGKILL while it appends,
// again and again on one directory, and reads what it left.
func TestKilledProcessLosesNothing(t *testing.T) {
	kills := 25
	if testing.Short() {
		kills = 5
	}
	dir := t.TempDir()
	rng := rand.New(rand.NewPCG(11, 11))
	acked := int64(-1)
	for kill := range kills {
		last, err := runAndKill(t, dir, 1+rng.IntN(400))
		if err != nil {
			t.Fatalf("kill %d: %v", kill, err)
		}
		acked = max(acked, last)
		if kill%3 == 2 {
			continue // the next child recovers it alone
		}
		l, err := disk.Open(dir, killOptions())
		if err != nil {
			t.Fatalf("kill %d: %v", kill, err)
		}
		there, err := numbered(l)
		if err == nil && there < acked {
			err = fmt.Errorf("unit %d was confirmed, the last there is %d", acked, there)
		}
		if err != nil {
			t.Fatalf("kill %d: %v", kill, err)
		}
		closeLog(t, l)
	}
	t.Logf("%d kills, %d units", kills, acked+1)
}

// runAndKill lets a child confirm some units, kills it, and returns the last
// number it printed.
func runAndKill(t *testing.T, dir string, units int) (int64, error) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childDir+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	last := int64(-1)
	lines := bufio.NewScanner(out)
	for i := 0; lines.Scan(); i++ {
		n, err := strconv.ParseInt(lines.Text(), 10, 64)
		if err != nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			return 0, fmt.Errorf("child said %q", lines.Text())
		}
		last = n
		if i == units {
			_ = cmd.Process.Kill() // what is in the pipe still counts
		}
	}
	_ = cmd.Wait() // it was killed
	return last, nil
}

// numbered checks that both topics hold the units 0 up to one, each once, and
// that the offset says so too; it returns the last.
func numbered(l *disk.Log) (int64, error) {
	offset, ok := l.GroupOffsets("child")[logstore.TopicPartition{Topic: "a"}]
	if !ok {
		offset = -1
	}
	for _, topic := range []string{"a", "b"} {
		all, err := readAll(l, topic, 0, 0)
		if err != nil {
			return 0, err
		}
		if int64(len(all)) != offset+1 {
			return 0, fmt.Errorf("topic %q holds %d units, the offset says %d", topic, len(all), offset+1)
		}
		for i, s := range all {
			s, _, _ = strings.Cut(s, "/")
			if s != fmt.Sprintf("%d:%d", i, i) {
				return 0, fmt.Errorf("topic %q holds %q at %d", topic, s, i)
			}
		}
	}
	return offset, nil
}
