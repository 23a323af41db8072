package main

import (
	"context"
	"fmt"
	"testing"

	"github.com/millrace-io/millrace/plugins/sdk/sdktest"
)

func TestConformance(t *testing.T) {
	pg.Get(t)
	sdktest.Source(t, sdktest.SourceCase{
		Class: plugin().Connectors[0].Class,
		Setup: func(t *testing.T) (map[string]string, func(from, to int)) {
			d := freshDB(t)
			d.exec("CREATE TABLE a(id bigserial primary key, v text); CREATE PUBLICATION " + d.name + " FOR TABLE a")
			d.exec("SELECT pg_create_logical_replication_slot('" + d.name + "', 'pgoutput')")
			// The suite goes back to old positions, which only a slot that is never
			// confirmed allows, and takes the first unit for the first record.
			cfg := d.config("snapshot.mode", "no_data", "lsn.flush.mode", "manual", "ack.keepalive", "false", "slot.retry.delay.ms", "100", "max.batch.size", "70", "tombstones.on.delete", "false")
			return cfg, func(from, to int) {
				d.exec(fmt.Sprintf("INSERT INTO a(v) SELECT 'record ' || g || ';' FROM generate_series(%d,%d) g", from, to-1))
			}
		},
		Big: func(t *testing.T, config map[string]string, size int) {
			d := &testDB{t: t, server: pg.Get(t), name: config["database.dbname"]}
			d.db = dial(t, d.server, d.name)
			defer d.db.Close(context.Background())
			d.exec(fmt.Sprintf("INSERT INTO a(v) VALUES (repeat('x', %d))", size))
		},
	})
}
