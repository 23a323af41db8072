package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/jackc/pgx/v5"
	"github.com/parquet-go/parquet-go"
)

// servers returns the addresses of the real servers, or ends the test.
func servers(t *testing.T) (postgres *pgx.ConnConfig, store string) {
	t.Helper()
	pg, store := os.Getenv("MILLRACE_TEST_POSTGRES"), os.Getenv("MILLRACE_TEST_S3")
	if pg == "" || store == "" {
		if os.Getenv("REQUIRE_SERVERS") != "" {
			t.Fatal("no servers: set MILLRACE_TEST_POSTGRES and MILLRACE_TEST_S3, or run deploy/testbed/test.sh")
		}
		t.Skip("no servers: set MILLRACE_TEST_POSTGRES and MILLRACE_TEST_S3, or run deploy/testbed/test.sh")
	}
	config, err := pgx.ParseConfig(pg)
	if err != nil {
		t.Fatal(err)
	}
	return config, store
}

// pgbench finds the load generator that comes with Postgres.
func pgbench(t *testing.T) string {
	t.Helper()
	if p, err := exec.LookPath("pgbench"); err == nil {
		return p
	}
	if found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/pgbench"); len(found) > 0 {
		return found[0]
	}
	t.Fatal("pgbench is missing: install Postgres' programs (Debian: apt-get install postgresql)")
	return ""
}

// bench is one database under pgbench's load.
type bench struct {
	t      *testing.T
	config *pgx.ConnConfig
	bin    string
}

func (b *bench) exec(database string, statements ...string) {
	b.t.Helper()
	c := b.config.Copy()
	c.Database = database
	conn, err := pgx.ConnectConfig(b.t.Context(), c)
	if err != nil {
		b.t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	for _, s := range statements {
		if _, err := conn.Exec(b.t.Context(), s); err != nil {
			b.t.Fatalf("%s: %v", s, err)
		}
	}
}

func (b *bench) command(args ...string) *exec.Cmd {
	args = append(args, "-h", b.config.Host, "-p", strconv.Itoa(int(b.config.Port)), "-U", b.config.User, b.config.Database)
	cmd := exec.Command(b.bin, args...)
	cmd.Env = append(os.Environ(), "PGPASSWORD="+b.config.Password)
	return cmd
}

// balances is the state of the tables: "accounts 17" -> balance.
type balances map[string]int64

// table reads the state from the database.
func (b *bench) tables() balances {
	b.t.Helper()
	conn, err := pgx.ConnectConfig(b.t.Context(), b.config)
	if err != nil {
		b.t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	out := balances{}
	for table, columns := range map[string][2]string{"accounts": {"aid", "abalance"}, "tellers": {"tid", "tbalance"}, "branches": {"bid", "bbalance"}} {
		rows, err := conn.Query(b.t.Context(), fmt.Sprintf("select %s, %s from pgbench_%s", columns[0], columns[1], table))
		if err != nil {
			b.t.Fatal(err)
		}
		for rows.Next() {
			var id, balance int64
			if err := rows.Scan(&id, &balance); err != nil {
				b.t.Fatal(err)
			}
			out[fmt.Sprint(table, " ", id)] = balance
		}
		if rows.Err() != nil {
			b.t.Fatal(rows.Err())
		}
	}
	return out
}

// change is what both formats hold of a row.
type change struct {
	After *struct {
		Aid, Tid, Bid                *int64
		Abalance, Tbalance, Bbalance *int64
	}
}

func (b balances) apply(table string, c change) {
	a := c.After
	if a == nil {
		return
	}
	switch table {
	case "accounts":
		b[fmt.Sprint(table, " ", *a.Aid)] = *a.Abalance
	case "tellers":
		b[fmt.Sprint(table, " ", *a.Tid)] = *a.Tbalance
	case "branches":
		b[fmt.Sprint(table, " ", *a.Bid)] = *a.Bbalance
	}
}

// shelf is the bucket of one sink.
type shelf struct {
	t      *testing.T
	client *s3.Client
	bucket string
}

func newShelf(t *testing.T, store, bucket string) *shelf {
	t.Helper()
	s := &shelf{t: t, bucket: bucket, client: s3.New(s3.Options{
		BaseEndpoint: &store, UsePathStyle: true, Region: "us-east-1",
		Credentials: credentials.NewStaticCredentialsProvider(os.Getenv("MILLRACE_TEST_S3_ACCESS_KEY"), os.Getenv("MILLRACE_TEST_S3_SECRET_KEY"), ""),
	})}
	if _, err := s.client.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &bucket}); err != nil {
		t.Fatal(err)
	}
	return s
}

// each calls f with every object in order of topic and offset, and returns how
// many rows f saw.
func (s *shelf) each(f func(table string, body []byte) int) (rows int) {
	s.t.Helper()
	var keys []string
	pages := s3.NewListObjectsV2Paginator(s.client, &s3.ListObjectsV2Input{Bucket: &s.bucket, Prefix: aws.String("topics/bench")})
	for pages.HasMorePages() {
		page, err := pages.NextPage(s.t.Context())
		if err != nil {
			s.t.Fatal(err)
		}
		for _, o := range page.Contents {
			keys = append(keys, *o.Key)
		}
	}
	slices.Sort(keys)
	for _, k := range keys {
		out, err := s.client.GetObject(s.t.Context(), &s3.GetObjectInput{Bucket: &s.bucket, Key: &k})
		if err != nil {
			s.t.Fatal(err)
		}
		body, err := io.ReadAll(out.Body)
		if err != nil {
			s.t.Fatal(err)
		}
		_, table, _ := strings.Cut(strings.Split(k, "/")[1], "pgbench_")
		rows += f(table, body)
	}
	return rows
}

func (s *shelf) fromLines(into balances) int {
	return s.each(func(table string, body []byte) (n int) {
		for line := range strings.Lines(string(body)) {
			var c change
			if err := json.Unmarshal([]byte(line), &c); err != nil {
				s.t.Fatal(err)
			}
			into.apply(table, c)
			n++
		}
		return n
	})
}

// The rows of Parquet objects: each table has columns of its own.
type (
	accountRow struct {
		After *struct {
			ID      int64 `parquet:"aid"`
			Balance int64 `parquet:"abalance,optional"`
		} `parquet:"after,optional"`
	}
	tellerRow struct {
		After *struct {
			ID      int64 `parquet:"tid"`
			Balance int64 `parquet:"tbalance,optional"`
		} `parquet:"after,optional"`
	}
	branchRow struct {
		After *struct {
			ID      int64 `parquet:"bid"`
			Balance int64 `parquet:"bbalance,optional"`
		} `parquet:"after,optional"`
	}
)

func readParquet[T any](t *testing.T, body []byte, f func(T)) int {
	t.Helper()
	rows, err := parquet.Read[T](bytes.NewReader(body), int64(len(body)))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		f(r)
	}
	return len(rows)
}

func (s *shelf) fromParquet(into balances) int {
	return s.each(func(table string, body []byte) int {
		switch table {
		case "accounts":
			return readParquet(s.t, body, func(r accountRow) { into[fmt.Sprint(table, " ", r.After.ID)] = r.After.Balance })
		case "tellers":
			return readParquet(s.t, body, func(r tellerRow) { into[fmt.Sprint(table, " ", r.After.ID)] = r.After.Balance })
		case "branches":
			return readParquet(s.t, body, func(r branchRow) { into[fmt.Sprint(table, " ", r.After.ID)] = r.After.Balance })
		}
		return readParquet(s.t, body, func(struct{}) {})
	})
}

// TestPostgresToS3SurvivesKills runs pgbench while every process is killed again
// and again. Afterwards the tables, rebuilt from the objects of each sink, equal
// those in Postgres, and no record is in S3 twice.
func TestPostgresToS3SurvivesKills(t *testing.T) {
	config, store := servers(t)
	b := &bench{t: t, config: config.Copy(), bin: pgbench(t)}
	name := fmt.Sprintf("bench_%d", rand.IntN(1e9))
	b.exec(config.Database, "create database "+name)
	b.config.Database = name
	if out, err := b.command("-i", "-s", "1", "-q").CombinedOutput(); err != nil {
		t.Fatalf("pgbench -i: %v\n%s", err, out)
	}
	// The history has no key; a worker refuses to publish such a table without.
	b.exec(name, "alter table pgbench_history replica identity full")
	t.Cleanup(func() {
		conn, err := pgx.ConnectConfig(context.Background(), config)
		if err != nil {
			return
		}
		defer func() { _ = conn.Close(context.Background()) }()
		_, _ = conn.Exec(context.Background(), "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1", name)
		_, _ = conn.Exec(context.Background(), "select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = $1", name)
		_, _ = conn.Exec(context.Background(), "drop database if exists "+name+" with (force)")
	})
	lines, tables := newShelf(t, store, strings.ReplaceAll(name, "_", "-")+"-json"), newShelf(t, store, strings.ReplaceAll(name, "_", "-")+"-parquet")

	dir, addr := t.TempDir(), freePort(t)
	data := filepath.Join(dir, "data")
	w := startWorker(t, data, addr)
	w.create("pg", map[string]string{
		"connector.class": "io.debezium.connector.postgresql.PostgresConnector", "topic.prefix": "bench", "slot.name": name, "publication.name": name,
		"database.hostname": config.Host, "database.port": strconv.Itoa(int(config.Port)), "database.user": config.User, "database.password": config.Password,
		"database.dbname": name, "plugin.name": "pgoutput", "table.include.list": `public\.pgbench_.*`,
	})
	sink := func(bucket, format string) map[string]string {
		return map[string]string{
			"connector.class": "io.confluent.connect.s3.S3SinkConnector", "topics.regex": `bench\..*`, "s3.bucket.name": bucket, "s3.region": "us-east-1", "store.url": store,
			"aws.access.key.id": os.Getenv("MILLRACE_TEST_S3_ACCESS_KEY"), "aws.secret.access.key": os.Getenv("MILLRACE_TEST_S3_SECRET_KEY"),
			"format.class": format, "flush.size": "5000", "rotate.schedule.interval.ms": "700", "behavior.on.null.values": "ignore",
		}
	}
	w.create("json", sink(lines.bucket, "io.confluent.connect.s3.format.json.JsonFormat"))
	w.create("parquet", sink(tables.bucket, "io.confluent.connect.s3.format.parquet.ParquetFormat"))

	w.until("the snapshot is done", func() bool {
		s, err := w.status("pg")
		return err == nil && len(s.Details) == 1 && s.Details[0].Progress != nil && s.Details[0].Progress.Phase == "streaming"
	})
	load := b.command("-n", "-c", "2", "-T", strconv.Itoa(4*kills()), "--rate", "200")
	var said bytes.Buffer
	load.Stdout, load.Stderr = &said, &said
	if err := load.Start(); err != nil {
		t.Fatal(err)
	}
	victims := []string{"worker", "pg", "json", "parquet"}
	for range kills() {
		for _, v := range victims {
			time.Sleep(time.Duration(300+rand.IntN(700)) * time.Millisecond)
			if v == "worker" {
				w.kill()
				w = startWorker(t, data, addr)
				continue
			}
			w.until(v+" has a process", func() bool { return w.pid(v) > 0 })
			_ = syscall.Kill(w.pid(v), syscall.SIGKILL)
		}
	}
	if err := load.Wait(); err != nil {
		t.Fatalf("pgbench: %v\n%s", err, said.String())
	}
	want := b.tables()
	var inLines, inTables balances
	var lineRows, tableRows int
	w.until("the objects hold the tables' final state", func() bool {
		inLines, inTables = balances{}, balances{}
		lineRows, tableRows = lines.fromLines(inLines), tables.fromParquet(inTables)
		if different(want, inLines)+different(want, inTables) == 0 {
			return true
		}
		time.Sleep(time.Second)
		return false
	})
	var inLog int64
	for _, table := range []string{"accounts", "tellers", "branches", "history"} {
		inLog += w.end("bench.public.pgbench_" + table)
	}
	w.until("both sinks hold what the log holds", func() bool {
		lineRows, tableRows = lines.fromLines(balances{}), tables.fromParquet(balances{})
		if int64(lineRows) == inLog && int64(tableRows) == inLog {
			return true
		}
		time.Sleep(time.Second)
		return int64(lineRows) > inLog || int64(tableRows) > inLog
	})
	t.Logf("%d kills each of worker, source, JSON sink and Parquet sink: %d records in the log, %d JSON lines, %d Parquet rows, %d table rows equal in both", kills(), inLog, lineRows, tableRows, len(want))
	if int64(lineRows) != inLog || int64(tableRows) != inLog {
		t.Errorf("records are in S3 twice: %d in the log, %d JSON lines, %d Parquet rows", inLog, lineRows, tableRows)
	}
	if changes := 4*transactions(said.String()) + int64(len(want)); inLog != changes {
		t.Errorf("the log holds %d records, snapshot and transactions make %d", inLog, changes)
	}
}

// different counts the rows that differ.
func different(a, b balances) (n int) {
	for k, v := range a {
		if w, ok := b[k]; !ok || v != w {
			n++
		}
	}
	return n + max(0, len(b)-len(a))
}

// transactions reads how many transactions pgbench says it made.
func transactions(said string) int64 {
	for line := range strings.Lines(said) {
		if rest, ok := strings.CutPrefix(line, "number of transactions actually processed:"); ok {
			n, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return n
		}
	}
	return -1
}
