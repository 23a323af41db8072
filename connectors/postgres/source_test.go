package main

import (
	"testing"
)

func TestSnapshotThenStream(t *testing.T) {
	d := freshDB(t)
	d.exec("CREATE TABLE a(id int primary key, v text); INSERT INTO a SELECT g, 'v' || g FROM generate_series(1,2500) g")
	cfg := d.config()
	r := start(t, cfg, newLog(t, cfg), true)
	r.waitCount(2500)
	d.exec("INSERT INTO a VALUES (3000,'new'); UPDATE a SET v='x' WHERE id=1; DELETE FROM a WHERE id=2")
	r.waitCount(2504)
	rs := r.log.all()
	t.Logf("%s\n%s\n%s", rs[0].value, rs[2500].value, rs[2503].key)
}
