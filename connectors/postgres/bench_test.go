package main

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	converters "github.com/millrace-io/millrace/plugins/convert"
	"github.com/millrace-io/millrace/plugins/sdk"
)

const benchRows = 200_000

// cpu is the processor time that this process has used.
func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// benchDB holds benchRows rows of changes in transactions of a hundred, behind
// two slots.
func benchDB(b *testing.B) *testDB {
	d := freshDB(b)
	d.exec("CREATE TABLE ev(id bigserial primary key, k int, ts timestamptz, payload text)")
	d.exec("CREATE PUBLICATION " + d.name + " FOR TABLE ev")
	d.exec("SELECT pg_create_logical_replication_slot('" + d.name + "', 'pgoutput')")
	d.exec("SELECT pg_create_logical_replication_slot('" + d.name + "_bare', 'pgoutput')")
	d.exec("CREATE PROCEDURE fill(n int) LANGUAGE plpgsql AS $$ BEGIN FOR i IN 1..n LOOP INSERT INTO ev(k,ts,payload) SELECT g, now(), repeat(md5(g::text), 6) || 'payload!' FROM generate_series(1,100) g; COMMIT; END LOOP; END $$")
	d.exec(fmt.Sprintf("CALL fill(%d)", benchRows/100))
	return d
}

// bareLoop receives and parses the rows with pglogrepl and does nothing else.
func bareLoop(b *testing.B, d *testDB) time.Duration {
	db, err := pgconn.Connect(b.Context(), fmt.Sprintf("host=%s port=%d user=%s password=%s dbname=%s sslmode=disable replication=database", d.server.Host, d.server.Port, d.server.User, d.server.Password, d.name))
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close(context.Background())
	err = pglogrepl.StartReplication(b.Context(), db, d.name+"_bare", 0, pglogrepl.StartReplicationOptions{PluginArgs: []string{"proto_version '1'", "publication_names '" + d.name + "'"}})
	if err != nil {
		b.Fatal(err)
	}
	before, rows := cpu(), 0
	for rows < benchRows {
		m, err := db.ReceiveMessage(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		data, ok := m.(*pgproto3.CopyData)
		if !ok || data.Data[0] != pglogrepl.XLogDataByteID {
			continue
		}
		xld, err := pglogrepl.ParseXLogData(data.Data[1:])
		if err != nil {
			b.Fatal(err)
		}
		msg, err := pglogrepl.Parse(xld.WALData)
		if err != nil {
			b.Fatal(err)
		}
		if _, ok := msg.(*pglogrepl.InsertMessage); ok {
			rows++
		}
	}
	return cpu() - before
}

var errEnough = errors.New("enough")

// ourLoop runs the source with a converter behind it.
func ourLoop(b *testing.B, d *testDB, schemas string) (spent time.Duration, bytes int) {
	cfg := d.config("snapshot.mode", "no_data", "publication.autocreate.mode", "disabled")
	key, _ := converters.New("json", converters.Key, map[string]string{"schemas.enable": schemas})
	value, _ := converters.New("json", converters.Value, map[string]string{"schemas.enable": schemas})
	header, _ := converters.New("json", converters.Header, map[string]string{"schemas.enable": schemas})
	l := newLog(b, cfg)
	r, err := open(b, cfg, l)
	if err != nil {
		b.Fatal(err)
	}
	defer r.src.Close(context.Background())
	rows := 0
	var buf []byte
	out := sdk.NewBatch(func(rec *sdk.Record) error {
		buf = buf[:0]
		if buf, err = key.Encode(buf, rec.Key); err != nil {
			return err
		}
		if buf, err = value.Encode(buf, rec.Value); err != nil {
			return err
		}
		for _, h := range rec.Headers {
			if buf, err = header.Encode(buf, h.Data); err != nil {
				return err
			}
		}
		bytes += len(buf)
		if rows++; rows >= benchRows {
			return errEnough
		}
		return nil
	}, func(sdk.Position) error { return nil })
	before := cpu()
	for {
		if err := r.src.Read(b.Context(), out); errors.Is(err, errEnough) {
			return cpu() - before, bytes / rows
		} else if err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkStream compares the processor time per row of everything we do in this
// process, decode, envelope and JSON, with a bare loop on the same rows.
func BenchmarkStream(b *testing.B) {
	for b.Loop() {
		d := benchDB(b)
		bare := bareLoop(b, d)
		ours, size := ourLoop(b, d, "false")
		per := func(t time.Duration) float64 { return float64(t.Nanoseconds()) / benchRows }
		b.ReportMetric(per(bare), "bare-ns/row")
		b.ReportMetric(per(ours), "ours-ns/row")
		b.ReportMetric(float64(ours)/float64(bare), "ours/bare")
		b.ReportMetric(1e9/per(ours), "rows/cpu-s")
		b.ReportMetric(float64(size), "bytes/record")
	}
}

// insertMessage is a row of the stream as it comes.
func insertMessage() []byte {
	b := []byte{0, 0, 0, 1, 'N', 0, 4}
	for _, v := range []string{"123456", "42", "2026-11-25 13:00:00.123456+00", "some payload that is not very long but a text anyway"} {
		b = append(b, 't', 0, 0, 0, byte(len(v)))
		b = append(b, v...)
	}
	return b
}

func BenchmarkDecodeRow(b *testing.B) {
	m := insertMessage()
	var old, row tuple
	b.ReportAllocs()
	for b.Loop() {
		if _, err := decodeRow(msgInsert, m, &old, &row); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSnapshot reads a table's rows with a converter behind it.
func BenchmarkSnapshot(b *testing.B) {
	for b.Loop() {
		d := freshDB(b)
		d.exec("CREATE TABLE ev(id bigserial primary key, k int, ts timestamptz, payload text)")
		d.exec(fmt.Sprintf("INSERT INTO ev(k,ts,payload) SELECT g, now(), repeat(md5(g::text), 6) || 'payload!' FROM generate_series(1,%d) g; ANALYZE ev", benchRows))
		value, _ := converters.New("json", converters.Value, map[string]string{"schemas.enable": "false"})
		cfg := d.config()
		r, err := open(b, cfg, newLog(b, cfg))
		if err != nil {
			b.Fatal(err)
		}
		rows := 0
		var buf []byte
		out := sdk.NewBatch(func(rec *sdk.Record) (err error) {
			rows++
			buf, err = value.Encode(buf[:0], rec.Value)
			return err
		}, func(sdk.Position) error { return nil })
		began, before := time.Now(), cpu()
		for rows < benchRows {
			if err := r.src.Read(b.Context(), out); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64((cpu()-before).Nanoseconds())/benchRows, "ours-ns/row")
		b.ReportMetric(benchRows/time.Since(began).Seconds(), "rows/s")
		_ = r.src.Close(context.Background())
	}
}
