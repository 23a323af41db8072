package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-io/millrace/connectors/internal/cdc/cdctest"
	"github.com/millrace-io/millrace/plugins/sdk"
)

// validate runs Validate and returns what it reports.
func validate(t *testing.T, cfg map[string]string) sdk.FieldErrors {
	t.Helper()
	src := newSource().(*source)
	var d sdk.Def
	src.Define(&d)
	if errs := d.Parse(cfg).Errors(); len(errs) > 0 {
		return errs
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	err := src.Validate(ctx)
	var fe sdk.FieldErrors
	if err != nil && !errors.As(err, &fe) {
		t.Fatalf("no field errors: %v", err)
	}
	for _, e := range fe {
		if strings.Contains(e.Error(), cfg["database.password"]) && len(cfg["database.password"]) > 3 {
			t.Errorf("the password is in %q", e.Error())
		}
	}
	return fe
}

// expect checks that one error has a reason, a key and words.
func expect(t *testing.T, errs sdk.FieldErrors, reason, key string, words ...string) {
	t.Helper()
	i := slices.IndexFunc(errs, func(e *sdk.Error) bool { return e.Reason == reason && e.Key == key })
	if i < 0 {
		t.Errorf("no error %s on %s in:", reason, key)
		for _, e := range errs {
			t.Logf("  %s on %s: %v", e.Reason, e.Key, e)
		}
		return
	}
	for _, w := range words {
		if !strings.Contains(errs[i].Error(), w) {
			t.Errorf("%q lacks %q", errs[i].Error(), w)
		}
	}
}

func TestPreflightPasses(t *testing.T) {
	d := freshDB(t)
	d.exec("CREATE TABLE a(id int primary key)")
	for _, e := range validate(t, d.config()) {
		t.Errorf("%s: %v", e.Key, e)
	}
}

func TestPreflightConnection(t *testing.T) {
	d := freshDB(t)
	port := fmt.Sprint(d.server.Port)
	expect(t, validate(t, d.config("database.password", "wrong-Pa55")), reasonAuth, "database.password", "127.0.0.1:"+port, "as postgres", "password authentication failed", "28P01")
	expect(t, validate(t, d.config("database.dbname", "nowhere")), reasonNoDatabase, "database.dbname", `database "nowhere" does not exist`)
	expect(t, validate(t, d.config("database.user", "nobody")), reasonAuth, "database.password", "nobody")
	expect(t, validate(t, d.config("database.port", "1")), reasonUnreachable, "database.hostname", "127.0.0.1:1", "connection refused")
	expect(t, validate(t, d.config("database.hostname", "no-such-host.invalid")), reasonUnreachable, "database.hostname", "no-such-host.invalid", "does not resolve")
	expect(t, validate(t, d.config("database.sslmode", "require")), reasonTLS, "database.sslmode", "does not offer TLS")
	expect(t, validate(t, d.config("database.sslmode", "verify-full", "database.sslrootcert", "/no/such/file")), reasonTLS, "database.sslrootcert")
}

func TestPreflightConfig(t *testing.T) {
	d := freshDB(t)
	expect(t, validate(t, d.config("plugin.name", "decoderbufs")), "config.invalid", "plugin.name", "only pgoutput")
	expect(t, validate(t, d.config("slot.name", "Upper-Case")), "config.invalid", "slot.name")
	expect(t, validate(t, d.config("snapshot.mode", "custom")), "config.invalid", "snapshot.mode", "Java")
	expect(t, validate(t, d.config("time.precision.mode", "structured")), "config.invalid", "time.precision.mode")
	expect(t, validate(t, d.config("converters", "boolean")), "config.invalid", "converters")
	expect(t, validate(t, d.config("table.include.list", "a(?!b)")), "config.invalid", "table.include.list", "look-ahead")
	expect(t, validate(t, d.config("table.include.list", "a", "table.exclude.list", "b")), "config.invalid", "table.exclude.list", "cannot both")
	expect(t, validate(t, d.config("message.key.columns", "nonsense")), "config.invalid", "message.key.columns")
	expect(t, validate(t, d.config("topic.prefix", "a b")), "config.invalid", "topic.prefix")
	expect(t, validate(t, d.config("column.mask.hash.WHIRL.with.salt.x", "a.b.c")), "config.invalid", "column.mask", "WHIRL")
	missing := d.config()
	delete(missing, "database.hostname")
	expect(t, validate(t, missing), "config.invalid", "database.hostname")
}

// role makes a login role for one test.
func (d *testDB) role(attributes string) string {
	name := "r_" + d.name
	d.exec("CREATE ROLE " + name + " LOGIN PASSWORD 'secret' " + attributes)
	d.t.Cleanup(func() {
		c, err := pgconn.Connect(context.Background(), fmt.Sprintf("host=%s port=%d user=%s password=%s dbname=%s sslmode=disable", d.server.Host, d.server.Port, d.server.User, d.server.Password, d.name))
		if err != nil {
			return
		}
		defer c.Close(context.Background())
		_, _ = c.Exec(context.Background(), "DROP OWNED BY "+name+" CASCADE; DROP ROLE "+name).ReadAll()
	})
	return name
}

func TestPreflightRights(t *testing.T) {
	d := freshDB(t)
	role := d.role("NOREPLICATION")
	d.exec("CREATE SCHEMA hidden; CREATE TABLE hidden.b(id int primary key); CREATE TABLE a(id int primary key, private text)")
	d.exec("CREATE TABLE rls(id int primary key); ALTER TABLE rls ENABLE ROW LEVEL SECURITY; GRANT SELECT ON rls TO " + role)
	d.exec("GRANT SELECT (id) ON a TO " + role)
	errs := validate(t, d.config("database.user", role, "database.password", "secret"))
	expect(t, errs, reasonPermission, "database.user", "lacks REPLICATION", "ALTER ROLE")
	d.exec("ALTER ROLE " + role + " REPLICATION")
	errs = validate(t, d.config("database.user", role, "database.password", "secret"))
	expect(t, errs, reasonPermission, "publication.autocreate.mode", "GRANT CREATE ON DATABASE")
	var all []string
	for _, e := range errs {
		all = append(all, e.Error())
	}
	text := strings.Join(all, "\n")
	for _, w := range []string{
		"cannot use schema hidden: GRANT USAGE ON SCHEMA", "cannot read table public.a (columns private): GRANT SELECT ON", "row level security hides rows of table public.rls", "does not own table public.a",
	} {
		if !strings.Contains(text, w) {
			t.Errorf("no %q in\n%s", w, text)
		}
	}
	errs = validate(t, d.config("database.user", role, "database.password", "secret", "publication.autocreate.mode", "all_tables"))
	expect(t, errs, reasonPermission, "publication.autocreate.mode")
}

func TestPreflightTables(t *testing.T) {
	d := freshDB(t)
	expect(t, validate(t, d.config()), reasonNoTables, "table.include.list", "no table")
	d.exec("CREATE TABLE orders(id int primary key); CREATE TABLE log(x int); CREATE TABLE quiet(id int primary key); ALTER TABLE quiet REPLICA IDENTITY NOTHING; CREATE VIEW v AS SELECT 1; CREATE UNLOGGED TABLE u(id int primary key)")
	errs := validate(t, d.config())
	expect(t, errs, reasonIdentity, "table.include.list", "has no primary key and REPLICA IDENTITY DEFAULT: UPDATE and DELETE on it will FAIL", "REPLICA IDENTITY FULL")
	for _, e := range validate(t, d.config("skipped.operations", "u,d,t")) {
		t.Errorf("a table that is only inserted into is refused: %v", e)
	}
	expect(t, validate(t, d.config("table.include.list", "public.quiet")), reasonIdentity, "table.include.list", "NOTHING")
	expect(t, validate(t, d.config("table.include.list", "publik.orders")), reasonNoTables, "table.include.list", `"publik.orders" matches nothing; similar: public.orders`)
	errs = validate(t, d.config("table.include.list", "public.v,public.u,public.orders"))
	expect(t, errs, reasonTableKind, "table.include.list", "public.")
	if len(errs) != 2 {
		t.Errorf("a view and an unlogged table give %d errors", len(errs))
	}
	expect(t, validate(t, d.config("guardrail.collections.max", "1", "guardrail.collections.limit.action", "fail", "table.include.list", "public.(orders|quiet)")), reasonGuardrail, "guardrail.collections.max", "2 tables")
	expect(t, validate(t, d.config("message.key.columns", "public.orders:nope", "table.include.list", "public.orders")), "config.invalid", "message.key.columns", `no column "nope"`)
	expect(t, validate(t, d.config("heartbeat.action.query", "INSERT INTO nowhere VALUES (1)", "table.include.list", "public.orders")), reasonHeartbeat, "heartbeat.action.query", "nowhere")
	if version, _ := strconv.Atoi(d.value("SHOW server_version_num")); version < 170000 {
		expect(t, validate(t, d.config("slot.failover", "true", "table.include.list", "public.orders")), reasonVersion, "slot.failover", "needs Postgres 17")
	}
	d.exec(`CREATE TABLE "or-ders"(id int primary key); CREATE TABLE "or ders"(id int primary key); CREATE TABLE "or/ders"(id int primary key)`)
	expect(t, validate(t, d.config("table.include.list", "public.or.ders")), reasonTopics, "table.include.list", "share the topic")
}

func TestPreflightPublication(t *testing.T) {
	d := freshDB(t)
	d.exec("CREATE TABLE a(id int primary key); CREATE TABLE b(id int primary key)")
	expect(t, validate(t, d.config("publication.autocreate.mode", "disabled")), reasonPublication, "publication.name", "does not exist", `CREATE PUBLICATION`, `"public"."a", "public"."b"`)
	d.exec("CREATE PUBLICATION " + d.name + " FOR TABLE a WITH (publish = 'insert')")
	errs := validate(t, d.config("publication.autocreate.mode", "disabled"))
	expect(t, errs, reasonNotPublished, "publication.name", "public.b", "ADD TABLE")
	if !slices.ContainsFunc(errs, func(e *sdk.Error) bool { return strings.Contains(e.Error(), "does not publish update") }) {
		t.Errorf("missing operations are not reported: %v", errs)
	}
	d.exec("DROP PUBLICATION " + d.name + "; CREATE PUBLICATION " + d.name + " FOR ALL TABLES")
	expect(t, validate(t, d.config()), reasonPublication, "publication.autocreate.mode", "FOR ALL TABLES")
}

func TestPreflightSlot(t *testing.T) {
	d, other := freshDB(t), freshDB(t)
	d.exec("CREATE TABLE a(id int primary key)")
	other.exec("SELECT pg_create_logical_replication_slot('foreign_" + d.name + "', 'pgoutput')")
	expect(t, validate(t, d.config("slot.name", "foreign_"+d.name)), reasonSlotWrong, "slot.name", "belongs to database")
	d.exec("SELECT pg_create_logical_replication_slot('plugin_" + d.name + "', 'test_decoding')")
	expect(t, validate(t, d.config("slot.name", "plugin_"+d.name)), reasonSlotWrong, "slot.name", "uses the plugin test_decoding")
	d.exec("SELECT pg_create_physical_replication_slot('phys_" + d.name + "')")
	expect(t, validate(t, d.config("slot.name", "phys_"+d.name)), reasonSlotWrong, "slot.name", "physical")
	d.exec("SELECT pg_drop_replication_slot('phys_" + d.name + "')")
	// Somebody else reads the slot.
	d.exec("CREATE PUBLICATION " + d.name + " FOR TABLE a")
	d.exec("SELECT pg_create_logical_replication_slot('" + d.name + "', 'pgoutput')")
	reader := &config{}
	*reader = *defaultConfig(t, "database.hostname", d.server.Host, "database.port", fmt.Sprint(d.server.Port), "database.user", d.server.User, "database.password", d.server.Password,
		"database.dbname", d.name, "slot.name", d.name, "publication.name", d.name, "database.initial.statements", "")
	repl, exact, err := reader.connectReplication(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	raw, err := startStream(t.Context(), repl, exact, reader.startCommand(0, 150000))
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	d.exec("SELECT pg_sleep(0.1)")
	busy := reader.busy(&slotInfo{pid: "12", reader: "debezium on 10.0.0.3"})
	if busy.Code != sdk.Unavailable || !strings.Contains(busy.Error(), "is used by pid 12 (debezium on 10.0.0.3)") {
		t.Errorf("busy: %v", busy)
	}
	// A task waits for the slot, and then says who has it.
	_, err = open(t, d.config("slot.max.retries", "1", "slot.retry.delay.ms", "10", "snapshot.mode", "no_data"), newLog(t, d.config()))
	if err != nil {
		t.Fatal(err)
	}
	r, _ := open(t, d.config("slot.max.retries", "1", "slot.retry.delay.ms", "10", "snapshot.mode", "no_data"), newLog(t, d.config()))
	defer r.src.Close(context.Background())
	err = r.src.Read(t.Context(), sdk.NewBatch(r.log.append, r.log.position))
	if sdk.ReasonOf(err) != reasonSlotBusy || sdk.CodeOf(err) != sdk.Unavailable || !strings.Contains(err.Error(), "is used by pid") {
		t.Errorf("reading a slot in use gave %v", err)
	}
}

func TestPreflightSlotReadByAnother(t *testing.T) {
	d := freshDB(t)
	d.exec("CREATE TABLE a(id int primary key); CREATE PUBLICATION " + d.name + " FOR TABLE a")
	d.exec("SELECT pg_create_logical_replication_slot('" + d.name + "', 'pgoutput')")
	c := defaultConfig(t, "database.hostname", d.server.Host, "database.port", fmt.Sprint(d.server.Port), "database.user", d.server.User, "database.password", d.server.Password, "database.dbname", d.name, "slot.name", d.name, "publication.name", d.name)
	repl, exact, err := c.connectReplication(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := repl.rows(t.Context(), "SET application_name='debezium'"); err != nil {
		t.Fatal(err)
	}
	raw, err := startStream(t.Context(), repl, exact, c.startCommand(0, 150000))
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	expect(t, validate(t, d.config()), reasonSlotBusy, "slot.name", "is used by pid", "(debezium on 127.0.0.1)")
}

func TestPreflightServerSettings(t *testing.T) {
	s := cdctest.StartPostgres(t, "wal_level = replica", "max_replication_slots = 1", "max_wal_senders = 2", "wal_sender_timeout = 0", "max_prepared_transactions = 2")
	d := freshDBOn(t, s)
	d.exec("CREATE TABLE a(id int primary key, u point[])")
	expect(t, validate(t, d.config()), reasonWALLevel, "database.hostname", "wal_level=replica", "ALTER SYSTEM SET wal_level=logical", "rds.logical_replication=1")
	d.exec("SELECT pg_create_physical_replication_slot('taken')")
	expect(t, validate(t, d.config()), reasonSlotsFull, "slot.name", "all 1 replication slots", "taken (inactive)")
	if err := s.HBA("local all all trust\nhost postgres all 127.0.0.1/32 scram-sha-256\n"); err != nil {
		t.Fatal(err)
	}
	for range 50 { // the server reads its rules soon
		if errs := validate(t, d.config()); len(errs) > 0 && errs[0].Reason == reasonAuth {
			break
		}
	}
	expect(t, validate(t, d.config()), reasonAuth, "database.user", "no pg_hba.conf entry", "pg_hba.conf")
	if err := s.HBA("local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n"); err != nil {
		t.Fatal(err)
	}
	for range 50 {
		if errs := validate(t, d.config()); len(errs) > 0 && errs[0].Reason != reasonAuth {
			break
		}
	}
	admin := dial(t, s, "postgres")
	defer admin.Close(context.Background())
	if _, err := admin.Exec(t.Context(), "CREATE DATABASE ascii ENCODING 'SQL_ASCII' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'").ReadAll(); err != nil {
		t.Fatal(err)
	}
	expect(t, validate(t, d.config("database.dbname", "ascii")), reasonEncoding, "database.dbname", "SQL_ASCII")
	// The warnings.
	d.exec("BEGIN; INSERT INTO a VALUES (1); PREPARE TRANSACTION 'old'")
	c := defaultConfig(t, "database.hostname", s.Host, "database.port", fmt.Sprint(s.Port), "database.user", s.User, "database.password", s.Password, "database.dbname", d.name)
	p := &preflight{config: c}
	p.run(t.Context())
	var warnings []string
	for _, f := range p.findings {
		if !f.fail {
			warnings = append(warnings, f.err.Error())
		}
	}
	text := strings.Join(warnings, "\n")
	for _, w := range []string{"max_slot_wal_keep_size is unlimited", "wal_sender_timeout=0", "prepared transaction old", "come as text: u (_point)"} {
		if !strings.Contains(text, w) {
			t.Errorf("no warning %q in\n%s", w, text)
		}
	}
	d.exec("ROLLBACK PREPARED 'old'")
}

// pooler passes connections on, except those that ask for replication: poolers do
// not speak that protocol.
func pooler(t *testing.T, target string) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go poolerSession(c, target)
		}
	}()
	return l.Addr().String()
}

func poolerSession(c net.Conn, target string) {
	defer c.Close()
	b := make([]byte, 4096)
	n, err := c.Read(b)
	if err != nil {
		return
	}
	if n == 8 { // the request for TLS
		_, _ = c.Write([]byte{'N'})
		if n, err = c.Read(b); err != nil {
			return
		}
	}
	if bytes.Contains(b[:n], []byte("replication\x00")) {
		text := "SFATAL\x00C08P01\x00Munsupported startup parameter: replication\x00\x00"
		_, _ = c.Write(append(binary.BigEndian.AppendUint32([]byte{'E'}, uint32(len(text)+4)), text...))
		return
	}
	up, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	defer up.Close()
	_, _ = up.Write(b[:n])
	go func() { _, _ = io.Copy(up, c) }()
	_, _ = io.Copy(c, up)
}

func TestPreflightPooler(t *testing.T) {
	d := freshDB(t)
	d.exec("CREATE TABLE a(id int primary key)")
	host, port, _ := net.SplitHostPort(pooler(t, fmt.Sprintf("%s:%d", d.server.Host, d.server.Port)))
	expect(t, validate(t, d.config("database.hostname", host, "database.port", port)), reasonProtocol, "database.hostname", "a pooler", "the server's own port")
}

func TestLostSlot(t *testing.T) {
	s := cdctest.StartPostgres(t, "max_slot_wal_keep_size = 1MB", "min_wal_size = 32MB", "max_wal_size = 32MB", "checkpoint_timeout = 30s")
	d := freshDBOn(t, s)
	d.exec("CREATE TABLE a(id int primary key, v text); INSERT INTO a VALUES (1,'one')")
	cfg := plain(d)
	l := newLog(t, cfg)
	r := start(t, cfg, l, true)
	r.waitCount(1)
	_ = r.stop()
	for range 4 {
		d.exec("INSERT INTO a SELECT (SELECT max(id) FROM a) + g, repeat('x', 1000) FROM generate_series(1,8000) g; SELECT pg_switch_wal(); CHECKPOINT")
	}
	if got := d.value("SELECT wal_status FROM pg_replication_slots"); got != "lost" {
		t.Skipf("the slot is %q", got)
	}
	expect(t, validate(t, cfg), reasonSlotInvalid, "slot.name", "was invalidated", "are gone", "snapshot.mode=when_needed")
	_, err := open(t, cfg, l)
	if sdk.ReasonOf(err) != reasonSlotInvalid || sdk.CodeOf(err) != sdk.Invalid {
		t.Errorf("opening with a lost slot gave %v", err)
	}
	cfg["snapshot.mode"] = "when_needed"
	before := len(l.all())
	r = start(t, cfg, l, true)
	r.waitCount(before + 32001)
	sameState(t, finalState(t, l.all(), "shop.public.a"), tableState(d, "a"))
}

func TestSlotGoneOrAhead(t *testing.T) {
	d := freshDB(t)
	d.exec("CREATE TABLE a(id int primary key, v text); INSERT INTO a VALUES (1,'one')")
	cfg := plain(d)
	l := newLog(t, cfg)
	r := start(t, cfg, l, true)
	r.waitCount(1)
	d.exec("INSERT INTO a VALUES (2,'two')")
	r.waitCount(2)
	_ = r.stop()
	d.exec("INSERT INTO a VALUES (3,'three')")
	// The server lets go of a slot a moment after its reader has gone.
	for d.value("SELECT active FROM pg_replication_slots WHERE slot_name = '"+d.name+"'") == "t" {
		time.Sleep(10 * time.Millisecond)
	}
	// Somebody moves the slot on.
	d.value("SELECT pg_replication_slot_advance('" + d.name + "', pg_current_wal_lsn())")
	_, err := open(t, cfg, l)
	if sdk.ReasonOf(err) != reasonAhead || !strings.Contains(err.Error(), "bytes of changes cannot be read again") {
		t.Errorf("a slot ahead gave %v", err)
	}
	trusting := plain(d, "offset.mismatch.strategy", "trust_slot")
	r2, err := open(t, trusting, l)
	if err != nil {
		t.Fatal(err)
	}
	_ = r2.src.Close(context.Background())
	d.value("SELECT pg_drop_replication_slot('" + d.name + "')")
	_, err = open(t, cfg, l)
	if sdk.ReasonOf(err) != reasonSlotMissing || !strings.Contains(err.Error(), "data gap") {
		t.Errorf("a missing slot gave %v", err)
	}
	l.offsets["map[server:shop]"].Offset["systemid"] = "1"
	_, err = open(t, cfg, l)
	if sdk.ReasonOf(err) != reasonCluster {
		t.Errorf("another cluster gave %v", err)
	}
}
