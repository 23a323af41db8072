package main

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/millrace-io/millrace/connectors/internal/cdc/cdctest"
	"github.com/millrace-io/millrace/plugins/sdk"
)

// eventually waits for a query to give true.
func (d *testDB) eventually(what, sql string) {
	d.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for d.value(sql) != "t" {
		if time.Now().After(deadline) {
			d.t.Fatalf("waiting for %s", what)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func TestConfirmedPositionFollows(t *testing.T) {
	d, other := freshDB(t), freshDB(t)
	d.exec("CREATE TABLE a(id int primary key, v text); CREATE TABLE busy(id int primary key, v text)")
	other.exec("CREATE TABLE elsewhere(id int)")
	cfg := plain(d, "table.include.list", "public.a", "status.update.interval.ms", "500")
	l := newLog(t, cfg)
	r := start(t, cfg, l, true)
	d.exec("INSERT INTO a VALUES (1,'one')")
	r.waitCount(1)
	follows := func(what string) {
		t.Helper()
		at := d.value("SELECT pg_current_wal_lsn()")
		d.eventually(what, "SELECT confirmed_flush_lsn >= '"+at+"' FROM pg_replication_slots WHERE slot_name='"+d.name+"'")
	}
	follows("the captured table")
	d.exec("INSERT INTO busy SELECT g, 'x' FROM generate_series(1,5000) g")
	follows("a table that is not captured")
	other.exec("INSERT INTO elsewhere SELECT g FROM generate_series(1,5000) g")
	follows("another database")
	if n := len(l.all()); n != 1 {
		t.Errorf("%d records", n)
	}
	// Nothing is confirmed that is not stored: a stop right now loses nothing.
	_ = r.stop()
	slot, _ := parseLSN(d.value("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name='" + d.name + "'"))
	stored := readPosition(l.offsets["map[server:shop]"].Offset)
	if slot > stored.end {
		t.Errorf("the slot is at %s, the stored position is %s", slot, stored.end)
	}
}

func TestNothingIsConfirmedWithoutAcknowledgement(t *testing.T) {
	d := freshDB(t)
	d.exec("CREATE TABLE a(id int primary key, v text)")
	cfg := plain(d, "snapshot.mode", "no_data", "status.update.interval.ms", "200")
	r := start(t, cfg, newLog(t, cfg), false)
	d.exec("INSERT INTO a VALUES (1,'one')")
	r.waitCount(1)
	before := d.value("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name='" + d.name + "'")
	time.Sleep(1200 * time.Millisecond)
	if after := d.value("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name='" + d.name + "'"); after != before {
		t.Errorf("confirmed %s, then %s", before, after)
	}
}

func TestBlockedAppendKeepsTheConnection(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for longer than wal_sender_timeout")
	}
	d := freshDB(t)
	d.exec("CREATE TABLE a(id int primary key, v text)")
	cfg := plain(d, "snapshot.mode", "no_data")
	l := newLog(t, cfg)
	blocked := make(chan struct{})
	l.onAppend = func(i int) error {
		if i == 100 {
			<-blocked
		}
		return nil
	}
	r := start(t, cfg, l, true)
	d.exec("INSERT INTO a SELECT g, repeat('x', 500) FROM generate_series(1,20000) g")
	d.eventually("a reader", "SELECT active FROM pg_replication_slots WHERE slot_name='"+d.name+"'")
	pid := d.value("SELECT active_pid FROM pg_replication_slots WHERE slot_name='" + d.name + "'")
	time.Sleep(7 * time.Second) // wal_sender_timeout is 5 s
	if now := d.value("SELECT active_pid FROM pg_replication_slots WHERE slot_name='" + d.name + "'"); now != pid {
		t.Errorf("the reader was %s and is %q", pid, now)
	}
	close(blocked)
	r.waitCount(20000)
}

func TestConnectionsThatBreak(t *testing.T) {
	d := freshDB(t)
	d.exec("CREATE TABLE a(id int primary key, v text)")
	cfg := plain(d, "max.batch.size", "50", "slot.retry.delay.ms", "100")
	l := newLog(t, cfg)
	r := start(t, cfg, l, true)
	total := 0
	for round := range 12 {
		d.exec(fmt.Sprintf("INSERT INTO a SELECT %d + g, 'x' FROM generate_series(1,400) g", round*1000))
		total += 400
		if round%3 == 0 {
			r.waitCount(total - 399)
		}
		d.exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'millrace' AND datname = '" + d.name + "'")
	}
	d.exec("UPDATE a SET v = 'y' WHERE id = 1")
	total++
	r.waitCount(total)
	time.Sleep(300 * time.Millisecond)
	_ = r.stop()
	if n := len(l.all()); n != total {
		t.Errorf("%d records, want %d", n, total)
	}
	noRepeats(t, l.all())
	sameState(t, finalState(t, l.all(), "shop.public.a"), tableState(d, "a"))
}

func TestServerThatCrashes(t *testing.T) {
	s := cdctest.StartPostgres(t)
	d := freshDBOn(t, s)
	d.exec("CREATE TABLE a(id int primary key, v text); INSERT INTO a SELECT g, 'old' FROM generate_series(1,20000) g")
	cfg := plain(d, "slot.retry.delay.ms", "100")
	l := newLog(t, cfg)
	r := start(t, cfg, l, true)
	r.waitCount(2000) // in the middle of the snapshot
	for range 2 {
		if err := s.Crash(); err != nil {
			t.Fatal(err)
		}
		if err := s.Start(); err != nil {
			t.Fatal(err)
		}
		d.db = dial(t, s, d.name)
		d.exec("INSERT INTO a SELECT (SELECT max(id) FROM a) + g, 'new' FROM generate_series(1,500) g; UPDATE a SET v = v || '!' WHERE id % 7 = 0")
		last := d.value("SELECT max(id) FROM a")
		r.wait("row "+last, func(rs []record) bool {
			return strings.Contains(string(rs[len(rs)-1].value), `"op":"u"`) && strings.Contains(string(rs[len(rs)-1].value), "!")
		})
	}
	time.Sleep(300 * time.Millisecond)
	_ = r.stop()
	noRepeats(t, l.all())
	sameState(t, finalState(t, l.all(), "shop.public.a"), tableState(d, "a"))
}

func TestSlotThatExistsBeforeTheSnapshot(t *testing.T) {
	d := freshDB(t)
	d.exec("CREATE TABLE a(id int primary key, v text); CREATE PUBLICATION " + d.name + " FOR TABLE a")
	d.exec("SELECT pg_create_logical_replication_slot('" + d.name + "', 'pgoutput')")
	d.exec("INSERT INTO a SELECT g, 'both' FROM generate_series(1,300) g")
	cfg := plain(d)
	l := newLog(t, cfg)
	r := start(t, cfg, l, true)
	r.waitCount(300)
	d.exec("INSERT INTO a VALUES (1000,'later')")
	r.waitCount(301)
	time.Sleep(300 * time.Millisecond)
	_ = r.stop()
	if n := len(l.all()); n != 301 {
		t.Errorf("%d records, want 301: the slot's changes are in the snapshot already", n)
	}
	if n := len(l.offsets); n != 1 {
		t.Errorf("%d stored positions, want the stream's only: %v", n, l.offsets)
	}
}

func TestSnapshotModes(t *testing.T) {
	d := freshDB(t)
	d.exec("CREATE TABLE a(id int primary key, v text); INSERT INTO a VALUES (1,'one'),(2,'two')")
	only := plain(d, "snapshot.mode", "initial_only", "slot.name", d.name+"_only")
	l := newLog(t, only)
	r := start(t, only, l, true)
	r.waitCount(2)
	d.exec("INSERT INTO a VALUES (3,'three')")
	time.Sleep(200 * time.Millisecond)
	_ = r.stop()
	r = start(t, only, l, true)
	time.Sleep(200 * time.Millisecond)
	_ = r.stop()
	if n := len(l.all()); n != 2 {
		t.Errorf("initial_only gave %d records", n)
	}
	always := plain(d, "snapshot.mode", "always")
	l = newLog(t, always)
	r = start(t, always, l, true)
	r.waitCount(3)
	d.exec("INSERT INTO a VALUES (4,'four')")
	r.waitCount(4)
	_ = r.stop()
	d.exec("INSERT INTO a VALUES (5,'five')")
	r = start(t, always, l, true)
	r.waitCount(9)
	d.exec("INSERT INTO a VALUES (6,'six')")
	r.waitCount(10)
	_ = r.stop()
	if n := len(l.all()); n != 10 {
		t.Errorf("always gave %d records, want 3 + 1 + 5 + 1", n)
	}
	for _, alias := range []string{"never", "schema_only"} {
		c := defaultConfig(t, "snapshot.mode", alias)
		if !c.NoData() {
			t.Errorf("%s reads rows", alias)
		}
	}
}

func TestEnumLabelAddedWhileStreaming(t *testing.T) {
	d := freshDB(t)
	d.exec("CREATE TYPE mood AS ENUM ('sad','ok'); CREATE TABLE a(id int primary key, m mood)")
	cfg := d.config("snapshot.mode", "no_data")
	l := newLog(t, cfg)
	r := start(t, cfg, l, true)
	d.exec("INSERT INTO a VALUES (1,'ok')")
	r.waitCount(1)
	d.exec("ALTER TYPE mood ADD VALUE 'glad'")
	d.exec("INSERT INTO a VALUES (2,'glad')")
	r.waitCount(2)
	rs := l.all()
	if !strings.Contains(string(rs[0].value), `"allowed":"sad,ok"`) || !strings.Contains(string(rs[1].value), `"allowed":"sad,ok,glad"`) {
		t.Errorf("%s\n%s", rs[0].value, rs[1].value)
	}
}

func TestLargeTransactionInPieces(t *testing.T) {
	d := freshDB(t)
	d.exec("CREATE TABLE a(id int primary key, v text)")
	cfg := plain(d, "snapshot.mode", "no_data")
	l := newLog(t, cfg)
	most, last := 0, 0
	pieces := 0
	r, err := open(t, cfg, l)
	if err != nil {
		t.Fatal(err)
	}
	defer r.src.Close(context.Background())
	d.exec("INSERT INTO a SELECT g, repeat('x', 200) FROM generate_series(1,30000) g")
	n := 0
	b := sdk.NewBatch(func(rec *sdk.Record) error { n++; return nil }, func(p sdk.Position) error {
		if most = max(most, n-last); n > last {
			pieces++
		}
		last = n
		if n < 30000 && n > 0 && (p.Offset["ord"] != int64(n) || p.Offset["commit_lsn"] == nil) {
			t.Errorf("after %d records the position is %v", n, p.Offset)
		}
		return nil
	})
	for n < 30000 || last < n {
		if err := r.src.Read(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	if most > positionRecords || pieces < 30 {
		t.Errorf("%d pieces, the largest of %d records", pieces, most)
	}
}

func TestDebeziumOffsetIsTakenOver(t *testing.T) {
	d := freshDB(t)
	d.exec("CREATE TABLE a(id int primary key, v text); CREATE PUBLICATION " + d.name + " FOR TABLE a")
	d.exec("SELECT pg_create_logical_replication_slot('" + d.name + "', 'pgoutput')")
	at, _ := parseLSN(d.value("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name='" + d.name + "'"))
	d.exec("INSERT INTO a VALUES (1,'one')")
	cfg := plain(d)
	l := newLog(t, cfg)
	_ = l.position(sdk.Position{Partition: map[string]any{"server": "shop"}, Offset: map[string]any{
		"lsn_proc": float64(at), "messageType": "UPDATE", "lsn_commit": float64(at), "lsn": float64(at), "txId": float64(1739), "ts_usec": float64(1795578926678254),
	}})
	r := start(t, cfg, l, true)
	r.waitCount(1)
	if v := string(l.all()[0].value); !strings.Contains(v, `"op":"c"`) {
		t.Errorf("the first record is %s", v)
	}
}
