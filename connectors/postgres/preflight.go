package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/millrace-io/millrace/connectors/internal/cdc"
	"github.com/millrace-io/millrace/plugins/sdk"
)

// finding is one result of the preflight: a failure refuses the config, a warning
// is logged when the task starts.
type finding struct {
	fail bool
	err  *sdk.Error
}

// preflight runs every check that can be run and keeps what it finds, so that a
// user meets all problems at once.
type preflight struct {
	config   *config
	db       *conn
	server   server
	tables   []*relation
	findings []finding
	now      time.Time
}

const (
	// oldestVersion is the oldest server that is supported.
	oldestVersion = 120000
	// senders is how many walsenders a snapshot needs beside the stream.
	senders = 2
	// longTransaction makes slot creation wait noticeably.
	longTransaction = time.Hour
	// clockSkew is how far the clocks may differ before lag figures mislead.
	clockSkew = 5 * time.Second
	// smallKeep is a max_slot_wal_keep_size below which a short outage loses the slot.
	smallKeep = 1 << 10 // megabytes
)

func (p *preflight) fail(reason, key, format string, args ...any) {
	p.findings = append(p.findings, finding{true, fieldErr(sdk.Invalid, reason, key, format, args...)})
}

func (p *preflight) warn(reason, key, format string, args ...any) {
	p.findings = append(p.findings, finding{false, fieldErr(sdk.Invalid, reason, key, format, args...)})
}

func (p *preflight) add(err error) {
	if err == nil {
		return
	}
	if e, ok := errors.AsType[*sdk.Error](err); ok {
		p.findings = append(p.findings, finding{true, e})
		return
	}
	p.findings = append(p.findings, finding{true, sdk.Errorf(sdk.Invalid, reasonServer, "%w", err)})
}

// rows runs a query of a check; one that is refused is a warning, not a failure.
func (p *preflight) rows(ctx context.Context, sql string) [][]*string {
	rows, err := p.db.rows(ctx, sql)
	if err != nil {
		if sqlState(err) == "" {
			p.add(p.config.serverError("check the database", err))
		} else {
			p.warn(reasonPermission, "", "a check could not be made: %s", serverText(err))
		}
		return nil
	}
	return rows
}

func (p *preflight) setting(ctx context.Context, name string) string {
	rows := p.rows(ctx, "SELECT setting FROM pg_catalog.pg_settings WHERE name = "+quoteLiteral(name))
	if len(rows) == 0 {
		return ""
	}
	return val(rows[0][0])
}

// Validate checks the config, the connection, the server, the rights and the
// tables, and reports everything that would keep the connector from working.
func (s *source) Validate(ctx context.Context) error {
	errs := s.config.check()
	p := &preflight{config: s.config, now: time.Now()}
	p.run(ctx)
	for _, f := range p.findings {
		if f.fail {
			errs = append(errs, f.err)
		}
	}
	return errs.OrNil()
}

// logWarnings repeats the checks at the start of a task.
func (s *source) logWarnings(ctx context.Context, tables []*relation) {
	p := &preflight{config: s.config, db: s.db, server: s.server, tables: tables, now: time.Now()}
	p.checkDatabase(ctx)
	for _, f := range p.findings {
		if !f.fail {
			s.log.Warn(f.err.Msg, "reason", f.err.Reason)
		}
	}
}

// run connects both ways and checks what follows.
func (p *preflight) run(ctx context.Context) {
	db, err := p.config.connect(ctx)
	if err != nil {
		p.add(err)
		return
	}
	defer db.close()
	p.db = db
	if p.server, err = db.describe(ctx); err != nil {
		p.add(p.config.serverError("read the server's settings", err))
		return
	}
	if p.server.version < oldestVersion {
		p.fail(reasonVersion, "database.hostname", "Postgres %d.%d is not supported, %d or newer is needed", p.server.version/10000, p.server.version%10000, oldestVersion/10000)
		return
	}
	p.family(ctx)
	p.role(ctx)
	p.replication(ctx)
	s := &source{config: p.config, db: db, server: p.server}
	if p.tables, err = s.tables(ctx); err != nil {
		p.add(err)
		return
	}
	for _, t := range p.tables {
		if err := db.fill(ctx, t); err != nil {
			p.add(p.config.serverError("read the table "+t.id.String(), err))
			return
		}
	}
	s.maker = &tableMaker{config: p.config, names: p.config.Names()}
	p.add(s.topicsDiffer(p.tables))
	p.patterns(ctx)
	p.slots(ctx)
	p.publications(ctx)
	p.grants(ctx)
	p.identities()
	p.keyRules()
	p.heartbeat(ctx)
	p.checkDatabase(ctx)
}

// checkDatabase holds the checks that only warn, or that settings decide.
func (p *preflight) checkDatabase(ctx context.Context) {
	p.settings(ctx)
	p.standby(ctx)
	p.failover(ctx)
	p.longRunning(ctx)
	p.columns(ctx)
	p.guardrail()
}

// replication opens a replication session, which has rules of its own.
func (p *preflight) replication(ctx context.Context) {
	repl, _, err := p.config.connectReplication(ctx)
	if err != nil {
		p.add(err)
		return
	}
	defer repl.close()
	if err := repl.identify(ctx, &p.server); err != nil {
		p.add(p.config.replicationError(err))
	}
}

// family refuses servers that only look like Postgres.
func (p *preflight) family(ctx context.Context) {
	rows := p.rows(ctx, "SELECT version()")
	if len(rows) == 0 {
		return
	}
	for _, name := range []string{"CockroachDB", "Redshift", "YB-", "Yugabyte"} {
		if strings.Contains(val(rows[0][0]), name) {
			p.fail(reasonFamily, "database.hostname", "%s is %s, whose logical replication is not Postgres'; this connector cannot capture it", p.config.address(), name)
		}
	}
}

// role checks that the user may replicate.
func (p *preflight) role(ctx context.Context) {
	rows := p.rows(ctx, `SELECT rolsuper, rolreplication OR EXISTS (SELECT FROM pg_catalog.pg_roles g WHERE g.rolname IN
 ('rds_replication','rdsadmin','rds_superuser','rdsrepladmin','cloudsqlsuperuser','alloydbsuperuser') AND pg_has_role(current_user, g.oid, 'MEMBER'))
 FROM pg_catalog.pg_roles WHERE rolname = current_user`)
	if len(rows) == 1 && val(rows[0][0]) != "t" && val(rows[0][1]) != "t" {
		u := quoteIdent(p.config.User)
		p.fail(reasonPermission, "database.user", "role %s lacks REPLICATION. ALTER ROLE %s REPLICATION (RDS: GRANT rds_replication TO %s)", p.config.User, u, u)
	}
}

// settings checks the server's parameters.
func (p *preflight) settings(ctx context.Context) {
	level := p.setting(ctx, "wal_level")
	if effective := p.setting(ctx, "effective_wal_level"); effective != "" {
		level = effective
	}
	if level != "logical" && level != "" {
		p.fail(reasonWALLevel, "database.hostname", "wal_level=%s at %s, needs logical. ALTER SYSTEM SET wal_level=logical; restart. RDS: rds.logical_replication=1; Cloud SQL: cloudsql.logical_decoding=on; Azure: azure.replication_support=logical",
			level, p.config.address())
	}
	switch keep, _ := strconv.Atoi(p.setting(ctx, "max_slot_wal_keep_size")); {
	case keep < 0:
		p.warn("source.wal_unlimited", "", "max_slot_wal_keep_size is unlimited: a connector that is stopped fills the server's disk")
	case keep < smallKeep:
		p.warn("source.wal_small", "", "max_slot_wal_keep_size=%dMB: the slot is invalidated when the connector falls behind by that much", keep)
	}
	switch encoding := p.setting(ctx, "server_encoding"); encoding {
	case "SQL_ASCII":
		p.fail(reasonEncoding, "database.dbname", "the database's encoding is SQL_ASCII, whose bytes cannot be turned into text; make a database with encoding UTF8")
	case "UTF8", "":
	default:
		p.warn(reasonEncoding, "", "the database's encoding is %s; the server converts to UTF8", encoding)
	}
	if p.server.silence == 0 {
		p.warn("source.wal_sender_timeout", "", "wal_sender_timeout=0: the server never notices that a connector is gone, and its slot stays in use")
	}
	if rows := p.rows(ctx, "SELECT (extract(epoch from clock_timestamp())*1000000)::bigint"); len(rows) == 1 {
		micros, _ := parseInt([]byte(val(rows[0][0])))
		if skew := time.Since(time.UnixMicro(micros)); skew > clockSkew || skew < -clockSkew {
			p.warn("source.clock", "", "the server's clock differs by %s; lag figures are off by that much", skew.Round(time.Second))
		}
	}
}

// slots checks the slot, or that one can be made.
func (p *preflight) slots(ctx context.Context) {
	c := p.config
	info, err := p.db.slot(ctx, c.slot, p.server.version)
	if err != nil {
		p.warn(reasonPermission, "", "the slots cannot be read: %s", serverText(err))
		return
	}
	if info != nil {
		problem := c.slotProblem(info)
		switch {
		case problem != nil && (problem.Reason != reasonSlotInvalid || c.SnapshotMode != "when_needed"):
			p.add(problem)
		case info.active && info.reader != "" && !strings.HasPrefix(info.reader, sessionParams["application_name"]):
			busy := c.busy(info)
			busy.Code = sdk.Conflict
			p.add(busy)
		}
		return
	}
	needed := 1
	if !c.NoData() && c.SnapshotMode == "always" {
		needed = 2
	}
	rows := p.rows(ctx, "SELECT current_setting('max_replication_slots')::int - count(*) FROM pg_catalog.pg_replication_slots")
	if len(rows) == 1 {
		if free, _ := strconv.Atoi(val(rows[0][0])); free < needed {
			p.add(c.slotsFull(ctx, p.db))
		}
	}
	rows = p.rows(ctx, "SELECT current_setting('max_wal_senders')::int, (SELECT count(*) FROM pg_catalog.pg_stat_replication)")
	if len(rows) == 1 {
		most, _ := strconv.Atoi(val(rows[0][0]))
		used, _ := strconv.Atoi(val(rows[0][1]))
		switch {
		case most-used < 1:
			p.fail(reasonSendersFull, "database.hostname", "all %d walsenders of %s are used; raise max_wal_senders and restart", most, c.address())
		case most-used < senders:
			p.warn(reasonSendersFull, "", "%d of %d walsenders are used; %d should be free. Raise max_wal_senders", used, most, senders)
		}
	}
}

// patterns checks that the lists match something that can be captured.
func (p *preflight) patterns(ctx context.Context) {
	c := p.config
	rows := p.rows(ctx, "SELECT n.nspname || '.' || c.relname, c.relkind, c.relpersistence FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r','p','v','m','f') AND n.nspname NOT IN ('pg_catalog','information_schema') AND n.nspname NOT LIKE 'pg\\_toast%'")
	var names []string
	for _, r := range rows {
		names = append(names, val(r[0]))
	}
	matched := 0
	for _, pattern := range c.Capture.Tables.Include {
		hit := false
		for _, r := range rows {
			if !pattern.Match(val(r[0])) {
				continue
			}
			hit = true
			matched++
			p.kind(val(r[0]), val(r[1]), val(r[2]))
		}
		if !hit {
			similar := ""
			if n := sdk.Nearest(pattern.Text, names); n != "" {
				similar = "; similar: " + n
			}
			p.warnOrFail(len(p.tables) == 0, reasonNoTables, "table.include.list", "table.include.list entry %q matches nothing%s", pattern.Text, similar)
		}
	}
	if len(p.tables) == 0 && matched == 0 && len(c.Capture.Tables.Include) == 0 {
		p.add(c.noTables())
	}
}

func (p *preflight) warnOrFail(fail bool, reason, key, format string, args ...any) {
	if fail {
		p.fail(reason, key, format, args...)
		return
	}
	p.warn(reason, key, format, args...)
}

// kind refuses what cannot be published.
func (p *preflight) kind(name, kind, persistence string) {
	what := map[string]string{"v": "a view", "m": "a materialized view", "f": "a foreign table"}[kind]
	switch {
	case persistence == "u":
		what = "an unlogged table"
	case persistence == "t":
		what = "a temporary table"
	case kind == "p" && !p.config.viaRoot:
		p.warn(reasonTableKind, "table.include.list", "%s is partitioned: its partitions are captured under their own names; set publish.via.partition.root=true to capture it as one", name)
		return
	}
	if what != "" {
		p.fail(reasonTableKind, "table.include.list", "%s is %s, which has no changes to capture; remove it from table.include.list", name, what)
	}
}

// publications checks the publication, or that it can be made.
func (p *preflight) publications(ctx context.Context) {
	c := p.config
	pub, err := p.db.publication(ctx, c.publication, p.server.version)
	if err != nil {
		p.warn(reasonPermission, "", "the publications cannot be read: %s", serverText(err))
		return
	}
	if pub == nil {
		if c.publicationMode == "disabled" {
			p.add(c.publicationMissing(p.tables))
			return
		}
		p.mayPublish(ctx)
		return
	}
	if c.publicationMode == "filtered" {
		statements, err := c.alterPublication(pub, p.tables, p.server.version)
		if err != nil {
			p.add(err)
		} else if len(statements) > 0 {
			p.mayPublish(ctx)
		}
		return
	}
	var missing []*relation
	for _, t := range p.tables {
		if _, ok := pub.tables[t.id.String()]; !ok {
			missing = append(missing, t)
		}
	}
	if len(missing) > 0 && c.publicationMode == "disabled" {
		p.fail(reasonNotPublished, "publication.name", "tables not in publication %s: %s. ALTER PUBLICATION %s ADD TABLE %s", c.publication, nameList(missing), quoteIdent(c.publication), tableList(missing))
	}
	for _, op := range c.operations() {
		if !slices.Contains(pub.operations, op) {
			p.warnOrFail(c.publicationMode == "disabled", reasonNotPublished, "publication.name", "publication %s does not publish %s: ALTER PUBLICATION %s SET (publish = %s), or name the operation in skipped.operations",
				c.publication, op, quoteIdent(c.publication), quoteLiteral(strings.Join(c.operations(), ", ")))
		}
	}
}

func nameList(tables []*relation) string {
	names := make([]string, len(tables))
	for i, t := range tables {
		names[i] = t.id.String()
	}
	return strings.Join(names, ", ")
}

// mayPublish checks the rights that making the publication needs.
func (p *preflight) mayPublish(ctx context.Context) {
	rows := p.rows(ctx, "SELECT has_database_privilege(current_database(), 'CREATE'), rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user")
	if len(rows) != 1 {
		return
	}
	super := val(rows[0][1]) == "t"
	u := quoteIdent(p.config.User)
	if val(rows[0][0]) != "t" {
		p.fail(reasonPermission, "publication.autocreate.mode", "role %s cannot make a publication: GRANT CREATE ON DATABASE %s TO %s, or make it yourself and set publication.autocreate.mode=disabled", p.config.User, quoteIdent(p.config.database), u)
	}
	if super {
		return
	}
	if p.config.publicationMode == "all_tables" {
		p.fail(reasonPermission, "publication.autocreate.mode", "publication.autocreate.mode=all_tables needs a superuser, and role %s is none; set it to filtered", p.config.User)
		return
	}
	if p.config.publicationMode == "no_tables" {
		return
	}
	owned := p.rows(ctx, "SELECT c.oid FROM pg_catalog.pg_class c WHERE pg_has_role(current_user, c.relowner, 'USAGE')")
	mine := make(map[uint32]bool, len(owned))
	for _, r := range owned {
		mine[oidOf(val(r[0]))] = true
	}
	for _, t := range p.tables {
		if !mine[t.oid] {
			p.fail(reasonPermission, "publication.autocreate.mode", "role %s does not own table %s, which is needed to publish it: ALTER TABLE %s OWNER TO %s, or let its owner make the publication and set publication.autocreate.mode=disabled",
				p.config.User, t.id, tableList([]*relation{t}), u)
		}
	}
}

// grants checks that each captured table can be read.
func (p *preflight) grants(ctx context.Context) {
	if p.config.NoData() {
		return
	}
	u := quoteIdent(p.config.User)
	for _, t := range p.tables {
		rows := p.rows(ctx, fmt.Sprintf(`SELECT has_schema_privilege(n.oid, 'USAGE'), has_table_privilege(c.oid, 'SELECT'),
 (SELECT string_agg(a.attname, ', ') FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND NOT has_column_privilege(c.oid, a.attnum, 'SELECT')),
 c.relrowsecurity AND NOT (SELECT rolbypassrls OR rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user) AND (c.relforcerowsecurity OR NOT pg_has_role(current_user, c.relowner, 'USAGE'))
 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = %d`, t.oid))
		if len(rows) != 1 {
			continue
		}
		r := rows[0]
		switch name := tableList([]*relation{t}); {
		case val(r[0]) != "t":
			p.fail(reasonPermission, "database.user", "role %s cannot use schema %s: GRANT USAGE ON SCHEMA %s TO %s", p.config.User, t.id.Schema, quoteIdent(t.id.Schema), u)
		case val(r[1]) != "t" && r[2] != nil:
			p.fail(reasonPermission, "database.user", "role %s cannot read table %s (columns %s): GRANT SELECT ON %s TO %s", p.config.User, t.id, val(r[2]), name, u)
		case val(r[3]) == "t":
			p.fail(reasonPermission, "database.user", "row level security hides rows of table %s from role %s: ALTER ROLE %s BYPASSRLS", t.id, p.config.User, u)
		}
	}
}

// identities protects the application: once published, a table without identity
// refuses updates and deletes.
func (p *preflight) identities() {
	changes := !p.config.Skips(cdc.OpUpdate) || !p.config.Skips(cdc.OpDelete)
	if !changes {
		return
	}
	for _, t := range p.tables {
		if slices.ContainsFunc(p.config.identityRules, func(r identityRule) bool { return r.tables.Match(t.id.String()) }) {
			continue
		}
		name := tableList([]*relation{t})
		const stem = "UPDATE and DELETE on it will FAIL in the database once published. "
		switch {
		case t.identity == 'd' && t.primaryKey() == nil:
			p.fail(reasonIdentity, "table.include.list", "%s has no primary key and REPLICA IDENTITY DEFAULT: "+stem+"ALTER TABLE %s REPLICA IDENTITY FULL, add a primary key, exclude the table, or set skipped.operations=u,d,t when it is only inserted into", t.id, name)
		case t.identity == 'n':
			p.fail(reasonIdentity, "table.include.list", "%s has REPLICA IDENTITY NOTHING: "+stem+"ALTER TABLE %s REPLICA IDENTITY DEFAULT or FULL, exclude the table, or set skipped.operations=u,d,t when it is only inserted into", t.id, name)
		case t.identity == 'i' && t.identityColumns() == nil:
			p.fail(reasonIdentity, "table.include.list", "%s has REPLICA IDENTITY USING INDEX, but the index is gone: "+stem+"ALTER TABLE %s REPLICA IDENTITY DEFAULT", t.id, name)
		}
	}
}

// keyRules checks that deletes have the columns that message.key.columns names.
func (p *preflight) keyRules() {
	for _, t := range p.tables {
		columns := cdc.KeyColumns(p.config.Keys, t.id)
		for _, c := range columns {
			if t.attribute(c) == nil {
				p.fail("config.invalid", "message.key.columns", "table %s has no column %q", t.id, c)
			}
		}
		if t.identity == 'd' || t.identity == 'i' {
			if id := t.identityColumns(); columns != nil && id != nil && !subset(columns, id) {
				p.warn(reasonIdentity, "message.key.columns", "deletes on %s do not have the key columns %s, so its key stays %s; ALTER TABLE %s REPLICA IDENTITY FULL", t.id, strings.Join(columns, ","), strings.Join(id, ","), tableList([]*relation{t}))
			}
		}
	}
}

// heartbeat runs the heartbeat's statement in a transaction that is rolled back.
func (p *preflight) heartbeat(ctx context.Context) {
	if p.config.HeartbeatQuery == "" {
		return
	}
	if _, err := p.db.rows(ctx, "BEGIN"); err != nil {
		return
	}
	_, err := p.db.rows(ctx, p.config.HeartbeatQuery)
	if _, rerr := p.db.rows(ctx, "ROLLBACK"); rerr != nil {
		p.add(p.config.serverError("check heartbeat.action.query", rerr))
	}
	if err != nil {
		p.fail(reasonHeartbeat, "heartbeat.action.query", "heartbeat.action.query is refused: %s", serverText(err))
	}
}

func (p *preflight) standby(ctx context.Context) {
	if !p.server.standby {
		return
	}
	switch {
	case p.server.version < 160000:
		p.fail(reasonStandby, "database.hostname", "%s is a standby, and logical decoding on a standby needs Postgres 16; use the primary", p.config.address())
	case p.setting(ctx, "hot_standby_feedback") != "on":
		p.fail(reasonStandby, "database.hostname", "%s is a standby with hot_standby_feedback=off, whose slot would be invalidated: set hot_standby_feedback=on", p.config.address())
	case p.config.publicationMode != "disabled":
		p.warn(reasonStandby, "", "%s is a standby: the publication must be made on the primary", p.config.address())
	}
}

func (p *preflight) failover(ctx context.Context) {
	if !p.config.failover {
		return
	}
	switch {
	case p.server.version < 170000:
		p.fail(reasonVersion, "slot.failover", "slot.failover=true needs Postgres 17, the server is %d", p.server.version/10000)
	case p.server.standby:
		p.fail(reasonStandby, "slot.failover", "slot.failover=true is for the primary, and %s is a standby", p.config.address())
	case p.setting(ctx, "synchronized_standby_slots") == "":
		p.warn("source.failover", "", "synchronized_standby_slots is empty: a promoted standby can be behind what was captured already")
	}
}

// longRunning finds transactions that slot creation would wait for.
func (p *preflight) longRunning(ctx context.Context) {
	for _, r := range p.rows(ctx, fmt.Sprintf("SELECT pid, date_trunc('second', now() - xact_start) FROM pg_catalog.pg_stat_activity WHERE xact_start < now() - interval '%d seconds' AND backend_type = 'client backend' AND pid <> pg_backend_pid() ORDER BY xact_start LIMIT 3", int(longTransaction.Seconds()))) {
		p.warn(reasonTimeout, "", "slot creation will wait for pid %s, whose transaction runs since %s", val(r[0]), val(r[1]))
	}
	for _, r := range p.rows(ctx, "SELECT gid, prepared FROM pg_catalog.pg_prepared_xacts WHERE database = current_database() LIMIT 3") {
		p.warn(reasonTimeout, "", "slot creation will wait for the prepared transaction %s of %s", val(r[0]), val(r[1]))
	}
}

// columns names what comes out differently from how it is stored.
func (p *preflight) columns(ctx context.Context) {
	t := &types{config: p.config, byOID: make(map[uint32]typeInfo)}
	for _, rel := range p.tables {
		var oids []uint32
		lower := make(map[string]string)
		for _, a := range rel.attributes {
			oids = append(oids, a.oid)
			if other, ok := lower[strings.ToLower(a.name)]; ok {
				p.warn(reasonSchema, "", "table %s has columns that differ only by case: %s, %s; some targets cannot hold both", rel.id, other, a.name)
			}
			lower[strings.ToLower(a.name)] = a.name
		}
		if err := t.load(ctx, p.db, oids); err != nil {
			return
		}
		var plain []string
		for _, a := range rel.attributes {
			if !t.column(a.oid, a.typmod).known && p.config.Capture.Column(rel.id, a.name) {
				plain = append(plain, a.name+" ("+t.byOID[a.oid].name+")")
			}
		}
		if len(plain) > 0 {
			p.warn("source.type", "", "columns of %s whose types have no form of their own and come as text: %s", rel.id, strings.Join(plain, ", "))
		}
	}
}

func (p *preflight) guardrail() {
	if most := p.config.GuardrailMax; most > 0 && len(p.tables) > most {
		p.warnOrFail(p.config.Guardrail == "fail", reasonGuardrail, "guardrail.collections.max", "%d tables are captured, and guardrail.collections.max is %d; narrow table.include.list or raise it", len(p.tables), most)
	}
}
