package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-io/millrace/connectors/internal/cdc/cdctest"
	converters "github.com/millrace-io/millrace/plugins/convert"
	"github.com/millrace-io/millrace/plugins/sdk"
	"github.com/millrace-io/millrace/plugins/serve"
)

var pg cdctest.RunPostgres

func TestMain(m *testing.M) {
	if serve.Started() {
		serve.Main(plugin())
		return
	}
	flag.Bool("update", false, "rewrite golden files")
	code := m.Run()
	pg.Stop()
	os.Exit(code)
}

var databases atomic.Int64

// testDB is a fresh database and a connection to it.
type testDB struct {
	t      testing.TB
	server *cdctest.Server
	name   string
	db     *pgconn.PgConn
}

func dial(t testing.TB, s *cdctest.Server, database string) *pgconn.PgConn {
	t.Helper()
	db, err := pgconn.Connect(t.Context(), fmt.Sprintf("host=%s port=%d user=%s password=%s dbname=%s sslmode=disable", s.Host, s.Port, s.User, s.Password, database))
	if err != nil {
		t.Fatal(err)
	}
	return db
}

func freshDB(t testing.TB) *testDB { return freshDBOn(t, pg.Get(t)) }

func freshDBOn(t testing.TB, s *cdctest.Server) *testDB {
	t.Helper()
	name := fmt.Sprintf("test%d_%d", os.Getpid(), databases.Add(1))
	return freshDBNamed(t, s, name)
}

func freshDBNamed(t testing.TB, s *cdctest.Server, name string) *testDB {
	t.Helper()
	admin := dial(t, s, "postgres")
	defer admin.Close(context.Background())
	dropDB(admin, name)
	if _, err := admin.Exec(t.Context(), "CREATE DATABASE "+name).ReadAll(); err != nil {
		t.Fatal(err)
	}
	d := &testDB{t: t, server: s, name: name, db: dial(t, s, name)}
	t.Cleanup(func() {
		_ = d.db.Close(context.Background())
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		admin, err := pgconn.Connect(ctx, fmt.Sprintf("host=%s port=%d user=%s password=%s dbname=postgres sslmode=disable", s.Host, s.Port, s.User, s.Password))
		if err != nil {
			return
		}
		defer admin.Close(ctx)
		dropDB(admin, name)
	})
	return d
}

// dropDB drops a database with its slots.
func dropDB(admin *pgconn.PgConn, name string) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for range 50 {
		_, err := admin.Exec(ctx, "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = '"+name+"' AND active").ReadAll()
		if err != nil {
			return
		}
		_, err = admin.Exec(ctx, "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = '"+name+"'").ReadAll()
		if err == nil {
			break
		}
	}
	_, _ = admin.Exec(ctx, "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)").ReadAll()
}

func (d *testDB) exec(sql string) {
	d.t.Helper()
	if _, err := d.db.Exec(context.Background(), sql).ReadAll(); err != nil {
		d.t.Fatalf("%s: %v", sql, err)
	}
}

func (d *testDB) value(sql string) string {
	d.t.Helper()
	res, err := d.db.Exec(context.Background(), sql).ReadAll()
	if err != nil {
		d.t.Fatalf("%s: %v", sql, err)
	}
	if len(res) == 0 || len(res[len(res)-1].Rows) == 0 {
		return ""
	}
	return string(res[len(res)-1].Rows[0][0])
}

// config is what a connector needs for this database; more keys are pairs.
func (d *testDB) config(pairs ...string) map[string]string {
	c := map[string]string{
		"name": "test", "topic.prefix": "shop", "database.hostname": d.server.Host, "database.port": fmt.Sprint(d.server.Port), "database.user": d.server.User,
		"database.password": d.server.Password, "database.dbname": d.name, "slot.name": d.name, "publication.name": d.name,
	}
	for i := 0; i+1 < len(pairs); i += 2 {
		c[pairs[i]] = pairs[i+1]
	}
	return c
}

// taskHost keeps what the source reports.
type taskHost struct {
	mu         sync.Mutex
	progress   []sdk.Progress
	conditions []string
}

func (h *taskHost) Progress(p sdk.Progress) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.progress = append(h.progress, p)
}

func (h *taskHost) Condition(code, _ string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if code != "" {
		h.conditions = append(h.conditions, code)
	}
}

// record is one record as it would stand in the log.
type record struct {
	topic      string
	key, value []byte
	headers    []string
}

// log is a commit log in memory: records become part of it with a position, all
// or nothing, as the worker has it.
type memoryLog struct {
	mu       sync.Mutex
	records  []record
	pending  []record
	offsets  map[string]sdk.Position
	changed  chan struct{}
	key      converters.Converter
	value    converters.Converter
	header   converters.Converter
	onAppend func(n int) error
	appends  int
}

func newLog(t testing.TB, config map[string]string) *memoryLog {
	t.Helper()
	sub := func(prefix string) map[string]string {
		m := make(map[string]string)
		for k, v := range config {
			if rest, ok := strings.CutPrefix(k, prefix); ok {
				m[rest] = v
			}
		}
		return m
	}
	l := &memoryLog{offsets: make(map[string]sdk.Position), changed: make(chan struct{}, 1)}
	var err error
	if l.key, err = converters.New("JsonConverter", converters.Key, sub("key.converter.")); err != nil {
		t.Fatal(err)
	}
	if l.value, err = converters.New("JsonConverter", converters.Value, sub("value.converter.")); err != nil {
		t.Fatal(err)
	}
	if l.header, err = converters.New("JsonConverter", converters.Header, nil); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *memoryLog) append(r *sdk.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.onAppend != nil {
		if err := l.onAppend(l.appends); err != nil {
			return err
		}
	}
	l.appends++
	k, err := l.key.Encode(nil, r.Key)
	if err != nil {
		return err
	}
	v, err := l.value.Encode(nil, r.Value)
	if err != nil {
		return err
	}
	out := record{topic: r.Topic, key: k, value: v}
	for _, h := range r.Headers {
		b, err := l.header.Encode(nil, h.Data)
		if err != nil {
			return err
		}
		out.headers = append(out.headers, h.Key, string(b))
	}
	l.pending = append(l.pending, out)
	return nil
}

func (l *memoryLog) position(p sdk.Position) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.records = append(l.records, l.pending...)
	l.pending = nil
	name := fmt.Sprint(p.Partition)
	if p.Offset == nil {
		delete(l.offsets, name)
	} else {
		l.offsets[name] = p
	}
	select {
	case l.changed <- struct{}{}:
	default:
	}
	return nil
}

func (l *memoryLog) positions() []sdk.Position {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []sdk.Position
	for _, p := range l.offsets {
		out = append(out, p)
	}
	return out
}

func (l *memoryLog) all() []record {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]record(nil), l.records...)
}

// running is a source that runs.
type running struct {
	t      testing.TB
	src    *source
	host   *taskHost
	log    *memoryLog
	cancel context.CancelFunc
	done   chan error
}

// open makes a source for a config and opens it.
func open(t testing.TB, config map[string]string, l *memoryLog) (*running, error) {
	t.Helper()
	src := newSource().(*source)
	var def sdk.Def
	src.Define(&def)
	if err := def.Parse(config).Errors().OrNil(); err != nil {
		return nil, err
	}
	handler := slog.Handler(slog.DiscardHandler)
	if testing.Verbose() {
		handler = slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})
	}
	host := &taskHost{}
	task := &sdk.SourceTask{Task: sdk.Task{Connector: config["name"], Config: config, Log: slog.New(handler), Host: host}, Offsets: l.positions()}
	r := &running{t: t, src: src, host: host, log: l}
	if err := src.Open(t.Context(), task); err != nil {
		_ = src.Close(context.Background())
		return nil, err
	}
	return r, nil
}

// start opens a source and calls Read until it is stopped. Positions are
// acknowledged when ack is set.
func start(t testing.TB, config map[string]string, l *memoryLog, ack bool) *running {
	t.Helper()
	r, err := open(t, config, l)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel, r.done = cancel, make(chan error, 1)
	go func() { r.done <- r.loop(ctx, ack) }()
	t.Cleanup(func() { r.stop() })
	return r
}

func (r *running) loop(ctx context.Context, ack bool) error {
	batch := sdk.NewBatch(r.log.append, r.log.position)
	for {
		batch.Reset()
		err := r.src.Read(ctx, batch)
		if ack {
			_ = r.src.Acknowledged(ctx, r.log.positions())
		}
		var se *sdk.Error
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.As(err, &se) && se.Code == sdk.Unavailable:
			if testing.Verbose() {
				fmt.Fprintln(os.Stderr, "retry:", err)
			}
			_ = pause(ctx, min(max(se.After, 50*time.Millisecond), 300*time.Millisecond))
		case err != nil:
			return err
		}
	}
}

// stop ends the source; what has no position yet is lost, as in a crash.
func (r *running) stop() error {
	if r.cancel == nil {
		return nil
	}
	r.cancel()
	err := <-r.done
	r.cancel = nil
	_ = r.src.Close(context.Background())
	r.log.mu.Lock()
	r.log.pending = nil
	r.log.mu.Unlock()
	return err
}

// wait waits until the log holds what is asked for.
func (r *running) wait(what string, ok func([]record) bool) {
	r.t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		if ok(r.log.all()) {
			return
		}
		select {
		case <-r.log.changed:
		case err := <-r.done:
			r.done <- err
			r.t.Fatalf("waiting for %s: the source ended: %v", what, err)
		case <-deadline:
			r.t.Fatalf("waiting for %s: there are %d records", what, len(r.log.all()))
		}
	}
}

func (r *running) waitCount(n int) {
	r.t.Helper()
	r.wait(fmt.Sprintf("%d records", n), func(rs []record) bool { return len(rs) >= n })
}
