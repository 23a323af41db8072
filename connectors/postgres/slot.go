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

// server is what is known of the server itself.
type server struct {
	version  int // as 150018
	standby  bool
	systemID string
	timeline int64
	walEnd   lsn
	silence  time.Duration // wal_sender_timeout, 0 for none
}

// slotInfo is what the server says of the replication slot.
type slotInfo struct {
	plugin, kind, database string
	temporary, active      bool
	pid                    string
	reader                 string // application and address of the active reader
	restart, confirmed     lsn
	walStatus              string
	invalid                string // why it was invalidated
	failover               bool
}

func (db *conn) slot(ctx context.Context, name string, version int) (*slotInfo, error) {
	columns := "''"
	switch {
	case version >= 170000:
		columns = "coalesce(s.invalidation_reason,'')"
	case version >= 160000:
		columns = "CASE WHEN s.conflicting THEN 'conflict with recovery' ELSE '' END"
	}
	failover := "false"
	if version >= 170000 {
		failover = "s.failover"
	}
	wal := "''"
	if version >= 130000 {
		wal = "coalesce(s.wal_status,'')"
	}
	rows, err := db.rows(ctx, fmt.Sprintf(`SELECT s.plugin, s.slot_type, s.database, s.temporary, s.active, s.active_pid,
 coalesce(a.application_name,'') || coalesce(' on ' || host(a.client_addr),''), s.restart_lsn, s.confirmed_flush_lsn, %s, %s, %s
 FROM pg_catalog.pg_replication_slots s LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid WHERE s.slot_name = %s`,
		wal, columns, failover, quoteLiteral(name)))
	if err != nil || len(rows) == 0 {
		return nil, err
	}
	r := rows[0]
	info := &slotInfo{
		plugin: val(r[0]), kind: val(r[1]), database: val(r[2]), temporary: val(r[3]) == "t", active: val(r[4]) == "t", pid: val(r[5]),
		reader: val(r[6]), walStatus: val(r[9]), invalid: val(r[10]), failover: val(r[11]) == "t",
	}
	info.restart, _ = parseLSN(val(r[7]))
	info.confirmed, _ = parseLSN(val(r[8]))
	if info.walStatus == "lost" && info.invalid == "" {
		info.invalid = "wal_removed"
	}
	if info.restart == 0 && info.invalid == "" && !info.active {
		info.invalid = "no restart position"
	}
	return info, nil
}

// identify asks who the server is, on a replication connection.
func (db *conn) identify(ctx context.Context, s *server) error {
	r, err := db.row(ctx, "IDENTIFY_SYSTEM")
	if err != nil {
		return err
	}
	s.systemID = r[0]
	s.timeline, _ = strconv.ParseInt(r[1], 10, 64)
	s.walEnd, _ = parseLSN(r[2])
	return nil
}

// describe reads what is needed to know of the server, on a normal connection.
func (db *conn) describe(ctx context.Context) (server, error) {
	r, err := db.row(ctx, "SELECT current_setting('server_version_num'), pg_is_in_recovery(), (SELECT setting FROM pg_settings WHERE name='wal_sender_timeout')")
	if err != nil {
		return server{}, err
	}
	var s server
	s.version, _ = strconv.Atoi(r[0])
	s.standby = r[1] == "t"
	ms, _ := strconv.Atoi(r[2])
	s.silence = time.Duration(ms) * time.Millisecond
	return s, nil
}

// madeSlot is a slot that was just made, with the snapshot it exported.
type madeSlot struct {
	point    lsn
	snapshot string
}

// createSlot makes a logical slot and exports its snapshot, which lives until the
// next command on the connection.
func (c *config) createSlot(ctx context.Context, db *conn, s server, name string, temporary bool) (madeSlot, error) {
	ctx, cancel := context.WithTimeout(ctx, c.slotTimeout)
	defer cancel()
	command := "CREATE_REPLICATION_SLOT " + quoteIdent(name)
	if temporary {
		command += " TEMPORARY"
	}
	command += " LOGICAL pgoutput"
	switch {
	case s.version >= 170000 && c.failover && !temporary:
		command += " (SNAPSHOT 'export', FAILOVER)"
	case s.version >= 150000:
		command += " (SNAPSHOT 'export')"
	default:
		command += " EXPORT_SNAPSHOT"
	}
	r, err := db.row(ctx, command)
	if err != nil {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return madeSlot{}, errSlotTimeout
		}
		return madeSlot{}, err
	}
	point, err := parseLSN(r[1])
	return madeSlot{point: point, snapshot: r[2]}, err
}

var errSlotTimeout = errors.New("the slot was not made in time")

// makeSlot makes a slot with retries; it waits for every transaction that runs, so
// when that takes too long the error names them.
func (s *source) makeSlot(ctx context.Context, name string, temporary bool) (*conn, madeSlot, error) {
	for try := 0; ; try++ {
		repl, _, err := s.config.connectReplication(ctx)
		if err != nil {
			return nil, madeSlot{}, err
		}
		made, err := s.config.createSlot(ctx, repl, s.server, name, temporary)
		if err == nil {
			return repl, made, nil
		}
		repl.close()
		again := errors.Is(err, errSlotTimeout) || sqlState(err) == "57014" || sqlState(err) == "55P03"
		if !again || ctx.Err() != nil {
			return nil, madeSlot{}, s.slotError(ctx, name, err)
		}
		if try >= s.config.slotRetries {
			return nil, madeSlot{}, s.slotTimeoutError(ctx, name)
		}
		s.log.Warn("making the replication slot takes long, it waits for running transactions; trying again", "slot", name, "try", try+1)
		if err := pause(ctx, s.config.slotRetryDelay); err != nil {
			return nil, madeSlot{}, err
		}
	}
}

func (s *source) slotTimeoutError(ctx context.Context, name string) error {
	who := "unknown sessions"
	rows, err := s.db.rows(ctx, `SELECT 'pid ' || pid || ', running since ' || date_trunc('second', xact_start) FROM pg_catalog.pg_stat_activity
 WHERE xact_start IS NOT NULL AND pid <> pg_backend_pid() AND backend_type = 'client backend' ORDER BY xact_start LIMIT 3`)
	if err == nil && len(rows) > 0 {
		var parts []string
		for _, r := range rows {
			parts = append(parts, val(r[0]))
		}
		who = strings.Join(parts, "; ")
	}
	return fieldErr(sdk.Unavailable, reasonTimeout, "slot.name", "make slot %q at %s: it waits for transactions that are open: %s; end them or wait", name, s.config.address(), who)
}

func (s *source) slotError(ctx context.Context, name string, err error) error {
	if sqlState(err) == "53400" {
		return s.config.slotsFull(ctx, s.db)
	}
	return s.config.serverError(fmt.Sprintf("make slot %q", name), err)
}

// slotsFull says who holds the slots.
func (c *config) slotsFull(ctx context.Context, db *conn) error {
	rows, err := db.rows(ctx, "SELECT slot_name || CASE WHEN active THEN '' ELSE ' (inactive)' END, current_setting('max_replication_slots') FROM pg_catalog.pg_replication_slots ORDER BY active, slot_name")
	names, most := []string{}, "all"
	if err == nil {
		for _, r := range rows {
			names, most = append(names, val(r[0])), val(r[1])
		}
	}
	return fieldErr(sdk.Invalid, reasonSlotsFull, "slot.name", "all %s replication slots of %s are used: %s. Drop one that nobody needs (SELECT pg_drop_replication_slot('<name>')) or raise max_replication_slots and restart",
		most, c.address(), strings.Join(names, ", "))
}

// slotProblem says what is wrong with a slot that exists, nil when it can be used.
func (c *config) slotProblem(info *slotInfo) *sdk.Error {
	name := c.slot
	switch {
	case info.kind != "logical":
		return fieldErr(sdk.Invalid, reasonSlotWrong, "slot.name", "slot %q is a physical slot; choose another slot.name", name)
	case info.plugin != "pgoutput":
		return fieldErr(sdk.Invalid, reasonSlotWrong, "slot.name", "slot %q uses the plugin %s, not pgoutput; choose another slot.name, or drop it: SELECT pg_drop_replication_slot(%s)", name, info.plugin, quoteLiteral(name))
	case info.database != c.database:
		return fieldErr(sdk.Invalid, reasonSlotWrong, "slot.name", "slot %q belongs to database %q, not %q; choose another slot.name", name, info.database, c.database)
	case info.temporary:
		return fieldErr(sdk.Invalid, reasonSlotWrong, "slot.name", "slot %q is temporary and belongs to another session; choose another slot.name", name)
	case info.invalid != "":
		return fieldErr(sdk.Invalid, reasonSlotInvalid, "slot.name", "slot %q was invalidated (%s): changes after %s are gone. A new snapshot is needed: snapshot.mode=when_needed, or drop the slot: SELECT pg_drop_replication_slot(%s)", name, info.invalid, info.confirmed, quoteLiteral(name))
	}
	return nil
}

// busy says who reads the slot.
func (c *config) busy(info *slotInfo) *sdk.Error {
	who := ""
	if info.reader != "" {
		who = " (" + info.reader + ")"
	}
	return fieldErr(sdk.Unavailable, reasonSlotBusy, "slot.name", "slot %q at %s is used by pid %s%s; stop the other reader, or choose another slot.name", c.slot, c.address(), info.pid, who)
}

// waitFree waits until nobody reads the slot: after a crash the server takes
// until wal_sender_timeout to notice.
func (s *source) waitFree(ctx context.Context) (*slotInfo, error) {
	for try := 0; ; try++ {
		info, err := s.db.slot(ctx, s.config.slot, s.server.version)
		if err != nil || info == nil || !info.active {
			return info, s.config.serverError("look at the slot", err)
		}
		if problem := s.config.slotProblem(info); problem != nil {
			return nil, problem
		}
		if try >= s.config.slotRetries {
			return nil, s.config.busy(info)
		}
		s.log.Warn("the slot is in use, waiting", "slot", s.config.slot, "pid", info.pid, "reader", info.reader)
		s.task.Condition(reasonSlotBusy, s.config.busy(info).Msg)
		if err := pause(ctx, min(s.config.slotRetryDelay, time.Second<<min(try, 5))); err != nil {
			return nil, err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// publication is what the catalog says of a publication.
type publication struct {
	all, viaRoot bool
	operations   []string
	tables       map[string][]string // schema.table -> published columns, nil for all
}

func (db *conn) publication(ctx context.Context, name string, version int) (*publication, error) {
	root := "false"
	if version >= 130000 {
		root = "pubviaroot"
	}
	rows, err := db.rows(ctx, fmt.Sprintf("SELECT puballtables, pubinsert, pubupdate, pubdelete, pubtruncate, %s FROM pg_catalog.pg_publication WHERE pubname = %s", root, quoteLiteral(name)))
	if err != nil || len(rows) == 0 {
		return nil, err
	}
	p := &publication{all: val(rows[0][0]) == "t", viaRoot: val(rows[0][5]) == "t", tables: make(map[string][]string)}
	for i, op := range []string{"insert", "update", "delete", "truncate"} {
		if val(rows[0][1+i]) == "t" {
			p.operations = append(p.operations, op)
		}
	}
	columns := "NULL"
	if version >= 150000 {
		columns = `(SELECT string_agg(x, E'\x01') FROM unnest(attnames) x)`
	}
	rows, err = db.rows(ctx, fmt.Sprintf("SELECT schemaname, tablename, %s FROM pg_catalog.pg_publication_tables WHERE pubname = %s", columns, quoteLiteral(name)))
	if err != nil {
		return nil, err
	}
	for _, r := range rows {
		id := cdc.TableID{Schema: val(r[0]), Name: val(r[1])}
		p.tables[id.String()] = nil
		if r[2] != nil {
			p.tables[id.String()] = strings.Split(*r[2], "\x01")
		}
	}
	return p, nil
}

// publishOption is the publication's WITH clause.
func (c *config) publishOption(version int) string {
	options := "publish = " + quoteLiteral(strings.Join(c.operations(), ", "))
	if version >= 130000 {
		options += fmt.Sprintf(", publish_via_partition_root = %v", c.viaRoot)
	}
	return options
}

func tableList(tables []*relation) string {
	names := make([]string, len(tables))
	for i, t := range tables {
		names[i] = quoteIdent(t.id.Schema) + "." + quoteIdent(t.id.Name)
	}
	return strings.Join(names, ", ")
}

// preparePublication makes or alters the publication as the mode says. It comes
// before the slot: the server looks a publication up as of each change.
func (s *source) preparePublication(ctx context.Context, tables []*relation) error {
	c, version := s.config, s.server.version
	p, err := s.db.publication(ctx, c.publication, version)
	if err != nil {
		return c.serverError("read the publication", err)
	}
	name := quoteIdent(c.publication)
	var statements []string
	switch {
	case p == nil && c.publicationMode == "disabled":
		return c.publicationMissing(tables)
	case p == nil && c.publicationMode == "all_tables":
		statements = append(statements, "CREATE PUBLICATION "+name+" FOR ALL TABLES WITH ("+c.publishOption(version)+")")
	case p == nil && c.publicationMode == "no_tables":
		statements = append(statements, "CREATE PUBLICATION "+name+" WITH ("+c.publishOption(version)+")")
	case p == nil:
		if len(tables) == 0 {
			return c.noTables()
		}
		statements = append(statements, "CREATE PUBLICATION "+name+" FOR TABLE "+tableList(tables)+" WITH ("+c.publishOption(version)+")")
	case c.publicationMode == "filtered":
		if statements, err = c.alterPublication(p, tables, version); err != nil {
			return err
		}
	}
	for _, sql := range statements {
		if _, err := s.db.rows(ctx, sql); err != nil {
			e := c.serverError("make the publication "+name, err)
			if sqlState(err) == "42501" {
				return fieldErr(sdk.Invalid, reasonPermission, "publication.autocreate.mode", "make the publication %s: %s; let its owner run: %s, and set publication.autocreate.mode=disabled", name, serverText(err), sql)
			}
			return e
		}
	}
	return nil
}

func (c *config) publicationMissing(tables []*relation) error {
	list := "<tables>"
	if len(tables) > 0 {
		list = tableList(tables)
	}
	return fieldErr(sdk.Invalid, reasonPublication, "publication.name", "publication %q does not exist and publication.autocreate.mode is disabled: CREATE PUBLICATION %s FOR TABLE %s", c.publication, quoteIdent(c.publication), list)
}

// alterPublication returns the statements that make a publication hold the tables
// and operations, none when it does already.
func (c *config) alterPublication(p *publication, tables []*relation, version int) ([]string, error) {
	if p.all {
		return nil, fieldErr(sdk.Invalid, reasonPublication, "publication.autocreate.mode", "publication %q is FOR ALL TABLES, which publication.autocreate.mode=filtered would have to drop; set it to all_tables or choose another publication.name", c.publication)
	}
	var out []string
	name := quoteIdent(c.publication)
	missing := false
	for _, t := range tables {
		if _, ok := p.tables[t.id.String()]; !ok {
			missing = true
		}
	}
	if len(tables) > 0 && (missing || len(p.tables) != len(tables)) {
		out = append(out, "ALTER PUBLICATION "+name+" SET TABLE "+tableList(tables))
	}
	if !slices.Equal(p.operations, c.operations()) || version >= 130000 && p.viaRoot != c.viaRoot {
		out = append(out, "ALTER PUBLICATION "+name+" SET ("+c.publishOption(version)+")")
	}
	return out, nil
}

func (c *config) noTables() error {
	key := "table.include.list"
	if len(c.TableInclude) == 0 && len(c.schemaInclude) > 0 {
		key = "schema.include.list"
	}
	return fieldErr(sdk.Invalid, reasonNoTables, key, "no table of database %q is captured; check the include and exclude lists", c.database)
}

// startCommand is START_REPLICATION with its options quoted.
func (c *config) startCommand(at lsn, version int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "START_REPLICATION SLOT %s LOGICAL %s (proto_version '1', publication_names %s", quoteIdent(c.slot), at,
		quoteOption(quoteIdent(c.publication)))
	if version >= 140000 {
		b.WriteString(", messages 'true'")
	}
	options, _ := c.streamOptions() // checked before
	for _, o := range options {
		fmt.Fprintf(&b, ", %s %s", quoteIdent(o[0]), quoteOption(o[1]))
	}
	b.WriteByte(')')
	return b.String()
}

func quoteOption(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
