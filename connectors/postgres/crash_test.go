package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace-io/millrace/plugins/sdk"
)

// event is what matters of a record when counting.
type event struct {
	topic, key, op, after string
	lsn, tx               int64
}

func decodeEvent(t testing.TB, r record) event {
	t.Helper()
	var k, v struct {
		Op     string
		After  json.RawMessage
		Source struct {
			LSN  int64
			TxID int64
		}
	}
	if r.key != nil {
		if err := json.Unmarshal(r.key, &k); err != nil {
			t.Fatal(err)
		}
	}
	if r.value != nil {
		if err := json.Unmarshal(r.value, &v); err != nil {
			t.Fatal(err)
		}
	}
	return event{r.topic, string(r.key), v.Op, string(v.After), v.Source.LSN, v.Source.TxID}
}

var errCrash = errors.New("crash")

// crashRun reads until the log has taken n more records, then drops the source as
// a crash would: what has no position is gone.
func crashRun(t *testing.T, cfg map[string]string, l *memoryLog, n int, ack bool) {
	t.Helper()
	l.mu.Lock()
	l.appends = 0
	l.onAppend = func(i int) error {
		if i >= n {
			return errCrash
		}
		return nil
	}
	l.mu.Unlock()
	r, err := open(t, cfg, l)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	b := sdk.NewBatch(l.append, l.position)
	for {
		b.Reset()
		err := r.src.Read(ctx, b)
		if ack {
			_ = r.src.Acknowledged(ctx, l.positions())
		}
		if err != nil && sdk.CodeOf(err) != sdk.Unavailable {
			if !errors.Is(err, errCrash) {
				t.Fatal(err)
			}
			break
		}
	}
	_ = r.src.Close(context.Background())
	l.mu.Lock()
	l.pending, l.onAppend = nil, nil
	l.mu.Unlock()
}

func plain(d *testDB, pairs ...string) map[string]string {
	return d.config(append([]string{"value.converter.schemas.enable", "false", "key.converter.schemas.enable", "false"}, pairs...)...)
}

// finalState folds the records of a topic: what a compacting reader ends with.
func finalState(t *testing.T, records []record, topic string) map[string]string {
	t.Helper()
	state := map[string]string{}
	for _, r := range records {
		if r.topic != topic {
			continue
		}
		if r.value == nil {
			delete(state, string(r.key))
			continue
		}
		e := decodeEvent(t, r)
		if e.op == "d" {
			delete(state, e.key)
		} else {
			state[e.key] = e.after
		}
	}
	return state
}

func tableState(d *testDB, table string) map[string]string {
	d.t.Helper()
	res, err := d.db.Exec(context.Background(), "SELECT '{\"id\":'||id||'}', '{\"id\":'||id||',\"v\":\"'||v||'\"}' FROM "+table).ReadAll()
	if err != nil {
		d.t.Fatal(err)
	}
	out := map[string]string{}
	for _, r := range res[0].Rows {
		out[string(r[0])] = string(r[1])
	}
	return out
}

func sameState(t *testing.T, got, want map[string]string) {
	t.Helper()
	for k, v := range want {
		if got[k] != v {
			t.Errorf("key %s is %q, want %q", k, got[k], v)
			return
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d keys, want %d", len(got), len(want))
	}
}

// noRepeats checks that no change stands in the log twice: a change is known by
// its transaction, place and key.
func noRepeats(t *testing.T, records []record) {
	t.Helper()
	seen := map[string]int{}
	for i, r := range records {
		if r.value == nil {
			continue
		}
		e := decodeEvent(t, r)
		id := fmt.Sprint(e.topic, e.key, e.op, e.lsn, e.tx, e.after)
		if e.op == "r" {
			id = fmt.Sprint(e.topic, e.key, e.op)
		}
		if j, ok := seen[id]; ok {
			t.Fatalf("record %d repeats record %d: %s", i, j, r.value)
		}
		seen[id] = i
	}
}

func TestStreamCrashedAtAnyRecord(t *testing.T) {
	d := freshDB(t)
	d.exec("CREATE TABLE a(id int primary key, v text); CREATE TABLE b(id int primary key, v text)")
	cfg := plain(d, "snapshot.mode", "no_data", "max.batch.size", "7")
	l := newLog(t, cfg)
	r, err := open(t, cfg, l)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.src.stream.store(sdk.NewBatch(l.append, l.position)); err != nil {
		t.Fatal(err)
	}
	_ = r.src.Close(t.Context())
	// Two transactions at once, a COPY whose rows share a position, and a large one.
	other := dial(t, d.server, d.name)
	defer other.Close(context.Background())
	d.exec("BEGIN; INSERT INTO a VALUES (1,'slow')")
	if _, err := other.Exec(t.Context(), "BEGIN; INSERT INTO b VALUES (1,'fast'); INSERT INTO a VALUES (2,'fast'); COMMIT").ReadAll(); err != nil {
		t.Fatal(err)
	}
	d.exec("INSERT INTO b VALUES (2,'slow'); COMMIT")
	if _, err := d.db.CopyFrom(t.Context(), strings.NewReader(copyRows(1000, 300)), "COPY a FROM STDIN"); err != nil {
		t.Fatal(err)
	}
	d.exec("UPDATE a SET v = v || '!' WHERE id >= 1000; UPDATE a SET id = id + 10000 WHERE id BETWEEN 1000 AND 1049; DELETE FROM a WHERE id BETWEEN 1100 AND 1150")
	d.exec("INSERT INTO b SELECT g, 'x' FROM generate_series(10, 2600) g")
	want := 4 + 300 + 300 + 50*3 + 51*2 + 2591
	rnd := rand.New(rand.NewPCG(1, 2))
	runs := 0
	for want-len(l.all()) > 1 && runs < 120 {
		crashAt := 1 + rnd.IntN(min(120, want-len(l.all())-1))
		// Sometimes the server is told, sometimes the crash comes first.
		crashRun(t, cfg, l, crashAt, rnd.IntN(2) == 0)
		runs++
	}
	final := start(t, cfg, l, true)
	final.waitCount(want)
	time.Sleep(200 * time.Millisecond)
	_ = final.stop()
	records := l.all()
	if len(records) != want {
		t.Errorf("%d records, want %d, after %d crashes", len(records), want, runs)
	}
	noRepeats(t, records)
	sameState(t, finalState(t, records, "shop.public.a"), tableState(d, "a"))
	sameState(t, finalState(t, records, "shop.public.b"), tableState(d, "b"))
	t.Logf("%d crashes", runs)
}

func copyRows(from, n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "%d\tcopied\n", from+i)
	}
	return b.String()
}

func TestSnapshotCrashedAtAnyRecord(t *testing.T) {
	for _, key := range []string{"int", "uuid", "text"} {
		t.Run(key, func(t *testing.T) { snapshotCrashes(t, key) })
	}
}

func snapshotCrashes(t *testing.T, key string) {
	d := freshDB(t)
	id := map[string]string{"int": "%s", "uuid": "md5((%s)::text)::uuid", "text": "'k' || %s || 'Ä'"}[key]
	of := func(n string) string { return fmt.Sprintf(id, n) }
	d.exec("CREATE TABLE a(id " + key + " primary key, v text); CREATE TABLE b(id " + key + " primary key, v text)")
	d.exec("INSERT INTO a SELECT " + of("g") + ", 'old' FROM generate_series(1,6000) g; INSERT INTO b SELECT " + of("g") + ", 'old' FROM generate_series(1,3000) g")
	cfg := plain(d)
	l := newLog(t, cfg)
	rnd := rand.New(rand.NewPCG(3, 4))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Add(1)
	worker := dial(t, d.server, d.name)
	defer worker.Close(context.Background())
	go func() { // changes go on all the time
		defer wg.Done()
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			n := fmt.Sprint(1 + (i*37)%6500)
			sql := []string{
				"UPDATE a SET v = 'u" + fmt.Sprint(i) + "' WHERE id = " + of(n),
				"DELETE FROM b WHERE id = " + of(n),
				"INSERT INTO a VALUES (" + of(fmt.Sprint(10000+i)) + ", 'new')",
				"UPDATE b SET id = " + of(fmt.Sprint(20000+i)) + " WHERE id = " + of(fmt.Sprint(3000-i%2900)),
			}[i%4]
			if _, err := worker.Exec(context.Background(), sql).ReadAll(); err != nil {
				t.Error(err, sql)
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	for range 8 {
		crashRun(t, cfg, l, 200+rnd.IntN(2500), rnd.IntN(2) == 0)
	}
	close(stop)
	wg.Wait()
	r := start(t, cfg, l, true)
	d.exec("INSERT INTO a VALUES (" + of("999999") + ", 'end')")
	r.wait("the last row", func(rs []record) bool {
		return slices.ContainsFunc(rs[max(0, len(rs)-50):], func(x record) bool { return strings.Contains(string(x.value), `"end"`) })
	})
	_ = r.stop()
	records := l.all()
	noRepeats(t, records)
	want := map[string]string{}
	for _, table := range []string{"a", "b"} {
		res, err := d.db.Exec(t.Context(), "SELECT to_json(id), v FROM "+table).ReadAll()
		if err != nil {
			t.Fatal(err)
		}
		want = map[string]string{}
		for _, row := range res[0].Rows {
			want[`{"id":`+string(row[0])+`}`] = `{"id":` + string(row[0]) + `,"v":"` + string(row[1]) + `"}`
		}
		sameState(t, finalState(t, records, "shop.public."+table), want)
	}
	reads := 0
	for _, x := range records {
		if strings.Contains(string(x.value), `"op":"r"`) {
			reads++
		}
	}
	t.Logf("%d records, %d of them read by the snapshot", len(records), reads)
}
