package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/millrace-io/millrace/connectors/internal/cdc"
	"github.com/millrace-io/millrace/plugins/sdk"
)

// source captures one database.
type source struct {
	config *config
	task   *sdk.SourceTask
	log    *slog.Logger

	db     *conn // for the catalog
	server server
	pos    position
	ack    atomic.Uint64 // what the server may forget; set by Acknowledged

	types      *types
	maker      *tableMaker
	known      map[uint32]*table // the last form of each table
	emit       *emitter
	messages   *messageRecords
	heartbeats *cdc.Heartbeat

	snap    *snapshot // nil when no rows are to be read
	fences  fences
	stream  *stream
	ended   bool // snapshot.mode=initial_only is done
	lag     time.Duration
	reached time.Time
}

var (
	_ sdk.Source        = (*source)(nil)
	_ sdk.Validator     = (*source)(nil)
	_ sdk.Acknowledger  = (*source)(nil)
	_ sdk.OffsetAlterer = (*source)(nil)
)

func newSource() sdk.Source { return &source{config: &config{}} }

// Define declares the keys.
func (s *source) Define(d *sdk.Def) { s.config.Define(d) }

// Open connects, makes publication and slot, and decides whether rows are read.
func (s *source) Open(ctx context.Context, t *sdk.SourceTask) error {
	s.task, s.log = t, t.Log
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if err := s.config.check().OrNil(); err != nil {
		return err
	}
	db, err := s.config.connect(ctx)
	if err != nil {
		return err
	}
	s.db = db
	if s.server, err = db.describe(ctx); err != nil {
		return s.config.serverError("read the server's settings", err)
	}
	s.build()
	tables, err := s.tables(ctx)
	if err != nil {
		return err
	}
	if err := s.topicsDiffer(tables); err != nil {
		return err
	}
	s.logWarnings(ctx, tables)
	if err := s.setIdentities(ctx, tables); err != nil {
		return err
	}
	if err := s.preparePublication(ctx, tables); err != nil {
		return err
	}
	return s.plan(ctx, tables)
}

// build makes what does not depend on the database.
func (s *source) build() {
	sourceSchema, block := newSourceSchema(), cdc.TransactionBlock()
	s.types = &types{config: s.config, byOID: make(map[uint32]typeInfo)}
	s.maker = &tableMaker{config: s.config, types: s.types, names: s.config.Names(), source: sourceSchema, block: block}
	s.known = make(map[uint32]*table)
	s.emit = newEmitter(s.config, s.log, fmt.Sprint(s.task.ID))
	s.messages = newMessageRecords(s.config, sourceSchema, block)
	s.heartbeats = cdc.NewHeartbeat(s.config.HeartbeatTopic(), s.config.Prefix)
	s.stream = &stream{src: s}
}

// tables returns the captured tables. A partitioned table stands for its
// partitions with publish.via.partition.root, and they for it without.
func (s *source) tables(ctx context.Context) ([]*relation, error) {
	found, err := s.db.relations(ctx, "c.relkind IN ('r','p') AND c.relpersistence = 'p' AND "+ownSchemas)
	if err != nil {
		return nil, s.config.serverError("list the tables", err)
	}
	found = slices.DeleteFunc(found, func(r *relation) bool {
		switch {
		case !s.config.captures(r.id):
			return true
		case s.config.viaRoot:
			return r.partition
		}
		return r.kind == 'p'
	})
	// The order of the include list decides first, then the name.
	include := s.config.Capture.Tables.Include
	rank := func(r *relation) int {
		return slices.IndexFunc(include, func(p cdc.Pattern) bool { return p.Match(r.id.String()) })
	}
	slices.SortStableFunc(found, func(a, b *relation) int { return rank(a) - rank(b) })
	return found, nil
}

func (s *source) topicsDiffer(tables []*relation) error {
	topics := make(map[string]string)
	for _, t := range tables {
		topic := s.maker.names.Topic(t.id)
		if other, ok := topics[topic]; ok {
			return fieldErr(sdk.Invalid, reasonTopics, "table.include.list", "the tables %s and %s would share the topic %q; exclude one or rename it", other, t.id, topic)
		}
		topics[topic] = t.id.String()
	}
	return nil
}

// setIdentities applies replica.identity.autoset.values.
func (s *source) setIdentities(ctx context.Context, tables []*relation) error {
	for _, t := range tables {
		for _, rule := range s.config.identityRules {
			if !rule.tables.Match(t.id.String()) {
				continue
			}
			short := map[string]byte{"DEFAULT": 'd', "FULL": 'f', "NOTHING": 'n'}[rule.identity]
			if short == t.identity {
				break
			}
			sql := "ALTER TABLE " + tableList([]*relation{t}) + " REPLICA IDENTITY " + rule.identity
			if _, err := s.db.rows(ctx, sql); err != nil {
				return s.config.serverError("set the replica identity of "+t.id.String(), err)
			}
			break
		}
	}
	return nil
}

// plan compares the stored position with the slot and decides what to do.
func (s *source) plan(ctx context.Context, tables []*relation) error {
	repl, _, err := s.config.connectReplication(ctx)
	if err != nil {
		return err
	}
	id := s.server
	err = repl.identify(ctx, &id)
	repl.close()
	if err != nil {
		return s.config.serverError("identify the server", err)
	}
	s.server = id
	stored := s.task.Offset(serverPartition(s.config.Prefix))
	if stored != nil {
		s.pos = readPosition(stored)
		s.emit.lastCommit = s.pos.lsnCommit
		s.emit.tx.Restore(stored)
		if err := s.sameCluster(); err != nil {
			return err
		}
	}
	s.pos.systemID, s.pos.timeline = s.server.systemID, s.server.timeline
	slot, err := s.db.slot(ctx, s.config.slot, s.server.version)
	if err != nil {
		return s.config.serverError("look at the slot", err)
	}
	mode := s.config.SnapshotMode
	switch {
	case mode == "initial_only" && stored != nil && !s.pos.snapshot:
		s.ended = true
		return nil
	case mode == "initial_only":
		return s.planRows(tables, &snapshot{only: true})
	case stored == nil && s.config.NoData():
		return s.planStream(ctx, slot)
	case stored == nil:
		return s.planFirst(ctx, tables, slot)
	}
	return s.planAgain(ctx, tables, slot)
}

// sameCluster refuses a position that was taken from another server.
func (s *source) sameCluster() error {
	switch {
	case s.pos.systemID != "" && s.pos.systemID != s.server.systemID:
		return fieldErr(sdk.Invalid, reasonCluster, "database.hostname", "the stored position belongs to another cluster (system identifier %s, this one has %s): was the database restored or replaced? Reset the connector's offsets for a new snapshot",
			s.pos.systemID, s.server.systemID)
	case s.pos.end > s.server.walEnd && s.pos.timeline != 0 && s.pos.timeline != s.server.timeline:
		return fieldErr(sdk.Invalid, reasonBehind, "database.hostname", "the server is behind the stored position %s (it is at %s, on timeline %d instead of %d): a standby was promoted that lacked changes already captured. Reset the connector's offsets for a new snapshot, or set offset.mismatch.strategy=trust_slot",
			s.pos.end, s.server.walEnd, s.server.timeline, s.pos.timeline)
	}
	return nil
}

// planStream is the start without rows and without a stored position.
func (s *source) planStream(ctx context.Context, slot *slotInfo) error {
	if slot != nil {
		if problem := s.config.slotProblem(slot); problem != nil {
			return problem
		}
		s.pos.end = slot.confirmed
		return nil
	}
	repl, made, err := s.makeSlot(ctx, s.config.slot, false)
	if err != nil {
		return err
	}
	repl.close()
	s.pos.end = made.point
	return nil
}

// planFirst is the first snapshot. A slot that is made now exports the snapshot
// that fits it; with one that exists a temporary slot does, and the fences drop
// what both would give.
func (s *source) planFirst(ctx context.Context, tables []*relation, slot *slotInfo) error {
	sn := &snapshot{}
	var made madeSlot
	var err error
	if slot == nil {
		sn.exact = true
		if sn.keep, made, err = s.makeSlot(ctx, s.config.slot, false); err != nil {
			return err
		}
		s.pos.end = made.point
	} else {
		if problem := s.config.slotProblem(slot); problem != nil {
			return problem
		}
		s.pos.end = slot.confirmed
		if sn.keep, made, err = s.makeSlot(ctx, temporarySlot(s.config.slot), true); err != nil {
			return err
		}
		if made.point < slot.confirmed {
			sn.keep.close()
			return fieldErr(sdk.Invalid, reasonAhead, "slot.name", "slot %q is at %s, ahead of a snapshot at %s; drop it or choose another slot.name", s.config.slot, slot.confirmed, made.point)
		}
	}
	sn.name = made.snapshot
	return s.planRows(tables, sn)
}

// temporarySlot names the slot that exports a snapshot only.
func temporarySlot(name string) string {
	const suffix = "_snapshot"
	return name[:min(len(name), 63-len(suffix))] + suffix
}

// planAgain is the start with a stored position.
func (s *source) planAgain(ctx context.Context, tables []*relation, slot *slotInfo) error {
	whenNeeded := s.config.SnapshotMode == "when_needed"
	var problem *sdk.Error
	if slot == nil {
		problem = fieldErr(sdk.Invalid, reasonSlotMissing, "slot.name", "slot %q does not exist at %s, but changes up to %s are stored: those since are lost (a data gap). Set snapshot.mode=when_needed for a new snapshot, or reset the connector's offsets",
			s.config.slot, s.config.address(), s.pos.end)
	} else {
		problem = s.config.slotProblem(slot)
		if problem == nil {
			problem = s.aheadProblem(slot)
		}
	}
	switch {
	case problem != nil && !whenNeeded:
		return problem
	case problem != nil:
		s.log.Warn("the stored position cannot be used, a new snapshot is taken", "err", problem.Msg)
		if slot != nil && (problem.Reason == reasonSlotInvalid || problem.Reason == reasonAhead) {
			if _, err := s.db.rows(ctx, "SELECT pg_drop_replication_slot("+quoteLiteral(s.config.slot)+")"); err != nil {
				return s.config.serverError("drop the slot "+s.config.slot, err)
			}
		} else if slot != nil {
			return problem
		}
		s.pos = position{systemID: s.server.systemID, timeline: s.server.timeline}
		s.task.Offsets = nil
		return s.planFirst(ctx, tables, nil)
	case s.pos.snapshot && s.config.SnapshotResume:
		return s.planResume(tables)
	case s.pos.snapshot, s.config.SnapshotMode == "always":
		s.task.Offsets = nil
		end, commit, ord := s.pos.end, s.pos.commit, s.pos.ord
		if err := s.planFirst(ctx, tables, slot); err != nil {
			return err
		}
		s.pos.end, s.pos.commit, s.pos.ord = end, commit, ord
		return nil
	}
	return s.planFences(tables)
}

// aheadProblem compares the slot with the stored position.
func (s *source) aheadProblem(slot *slotInfo) *sdk.Error {
	if s.config.mismatch == "no_validation" || slot.confirmed <= s.pos.end {
		return nil
	}
	if s.config.mismatch != "trust_offset" {
		s.log.Warn("the slot is ahead of the stored position; streaming goes on from the slot", "slot", slot.confirmed.String(), "stored", s.pos.end.String())
		s.pos.end, s.pos.ord, s.pos.commit = slot.confirmed, 0, 0
		return nil
	}
	return fieldErr(sdk.Invalid, reasonAhead, "offset.mismatch.strategy", "slot %q is at %s, the last stored position is %s: %d bytes of changes cannot be read again. Set snapshot.mode=when_needed for a new snapshot, or offset.mismatch.strategy=trust_slot to go on without them",
		s.config.slot, slot.confirmed, s.pos.end, slot.confirmed-s.pos.end)
}

// storedProgress reads what is stored of the tables' snapshots.
func (s *source) storedProgress(tables []*relation) (map[string]*tableProgress, error) {
	out := make(map[string]*tableProgress)
	for _, t := range tables {
		o := s.task.Offset(tablePartition(s.config.Prefix, t.id.String()))
		if o == nil {
			continue
		}
		p, err := readProgress(o)
		if err != nil {
			return nil, sdk.Errorf(sdk.Corrupt, "source.offset", "table %s: %w", t.id, err)
		}
		out[t.id.String()] = p
	}
	return out, nil
}

// planResume goes on with a snapshot that was cut, in a transaction of its own.
func (s *source) planResume(tables []*relation) error {
	progress, err := s.storedProgress(tables)
	if err != nil {
		return err
	}
	s.log.Info("the snapshot goes on where it was cut", "tables_begun", len(progress))
	sn := &snapshot{progress: progress}
	return s.planRows(tables, sn)
}

// planFences takes the fences of a finished snapshot up again.
func (s *source) planFences(tables []*relation) error {
	if s.pos.horizon == 0 {
		return nil
	}
	progress, err := s.storedProgress(tables)
	if err != nil {
		return err
	}
	s.fences = fences{horizon: s.pos.horizon, tables: progress}
	return nil
}

// planRows sets the snapshot up for the tables whose rows are wanted.
func (s *source) planRows(tables []*relation, sn *snapshot) error {
	sn.src = s
	sn.tables = slices.DeleteFunc(slices.Clone(tables), func(r *relation) bool {
		return len(s.config.Snapshot) > 0 && !s.config.Snapshot.Match(r.id.String())
	})
	if sn.progress == nil {
		sn.progress = make(map[string]*tableProgress)
	}
	s.snap = sn
	return nil
}

// Read appends rows of the snapshot, then changes.
func (s *source) Read(ctx context.Context, out *sdk.Batch) error {
	if s.snap != nil {
		return s.readSnapshot(ctx, out)
	}
	if s.ended {
		<-ctx.Done()
		return ctx.Err()
	}
	return s.stream.read(ctx, out)
}

func (s *source) readSnapshot(ctx context.Context, out *sdk.Batch) error {
	finished, err := s.snap.read(ctx, out)
	switch {
	case err == nil && !finished:
		return nil
	case err == nil:
		only := s.snap.only
		s.snap.close()
		s.snap = nil
		if only {
			s.ended = true
			return nil
		}
		return pause(ctx, s.config.StreamingDelay)
	case ctx.Err() != nil:
		return ctx.Err()
	}
	var se *sdk.Error
	if !errors.As(err, &se) || se.Code != sdk.Unavailable {
		return err
	}
	if s.snap.table != nil {
		if perr := s.snap.store(out); perr != nil {
			return perr
		}
	}
	// The transaction is gone; what was read stays read, the rest comes in another.
	old := s.snap
	old.close()
	s.snap = &snapshot{src: s, tables: old.tables, progress: old.progress, only: old.only}
	return err
}

// Close releases connections; the slot stays, unless it is asked to go.
func (s *source) Close(ctx context.Context) error {
	s.snap.close()
	if s.stream != nil {
		s.stream.disconnect()
	}
	var err error
	if s.db != nil && s.config.dropSlot {
		if _, derr := s.db.rows(ctx, "SELECT pg_drop_replication_slot("+quoteLiteral(s.config.slot)+")"); derr != nil && sqlState(derr) != "42704" {
			err = s.config.serverError("drop the slot "+s.config.slot, derr)
		}
	}
	s.db.close()
	s.db = nil
	return err
}

// Acknowledged lets the server forget what is durable.
func (s *source) Acknowledged(_ context.Context, positions []sdk.Position) error {
	for _, p := range positions {
		if len(p.Partition) != 1 || p.Partition[keyServer] != s.config.Prefix || p.Offset == nil {
			continue
		}
		stored := readPosition(p.Offset)
		if stored.snapshot || s.config.flushMode == "manual" {
			continue
		}
		for {
			old := s.ack.Load()
			if uint64(stored.end) <= old || s.ack.CompareAndSwap(old, uint64(stored.end)) {
				break
			}
		}
	}
	return nil
}

// AlterOffsets refuses positions that no source could use.
func (s *source) AlterOffsets(_ context.Context, offsets []sdk.Position) (external bool, err error) {
	for _, o := range offsets {
		server, _ := o.Partition[keyServer].(string)
		if server == "" {
			return false, sdk.Errorf(sdk.Invalid, "source.offset", "the partition %v has no member %q; it is {\"server\":\"<topic.prefix>\"}", o.Partition, keyServer)
		}
		if _, table := o.Partition[keyTable]; o.Offset == nil || table {
			continue
		}
		if readPosition(o.Offset).end == 0 {
			return false, sdk.Errorf(sdk.Invalid, "source.offset", "the offset has none of lsn, lsn_proc, lsn_commit and end_lsn as a number")
		}
		if cdc.Text(o.Offset, "incremental_snapshot_collections") != "" {
			return false, sdk.Errorf(sdk.Invalid, "source.offset", "the offset was taken in the middle of an incremental snapshot, which cannot be taken over; wait for its end")
		}
	}
	return false, nil
}

// sql runs a statement on the catalog connection, making a new one when it broke.
func (s *source) sql(ctx context.Context, statement string) ([][]*string, error) {
	if err := s.reopen(ctx); err != nil {
		return nil, err
	}
	return s.db.rows(ctx, statement)
}

func (s *source) reopen(ctx context.Context) error {
	if s.db != nil && !s.db.IsClosed() {
		return nil
	}
	db, err := s.config.connect(ctx)
	if err != nil {
		return err
	}
	s.db = db
	return nil
}

// prepare makes the table of a relation message; the catalog adds what the
// message lacks.
func (s *source) prepare(ctx context.Context, m relationMessage, previous *table) (*table, error) {
	if !s.config.captures(cdc.TableID{Schema: m.schema, Name: m.name}) {
		return s.maker.make(m, nil, nil), nil
	}
	if err := s.reopen(ctx); err != nil {
		return nil, err
	}
	if s.config.QueryTimeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.config.QueryTimeout)
		defer cancel()
	}
	cat, err := s.db.relation(ctx, m.id)
	if err != nil {
		return nil, s.config.serverError("read the table "+m.schema+"."+m.name, err)
	}
	return s.finishTable(ctx, m, cat, previous)
}

func (s *source) finishTable(ctx context.Context, m relationMessage, cat *relation, previous *table) (*table, error) {
	oids := make([]uint32, len(m.columns))
	for i, c := range m.columns {
		oids[i] = c.oid
	}
	if err := s.types.load(ctx, s.db, oids); err != nil {
		return nil, s.config.serverError("read the types of "+m.schema+"."+m.name, err)
	}
	t := s.maker.make(m, cat, previous)
	s.known[m.id] = t
	return t, nil
}

// prepareFrom makes the table that the snapshot reads, in the form that the
// stream will have: without generated columns, and with the published ones only.
func (s *source) prepareFrom(ctx context.Context, rel *relation) (*table, error) {
	published, err := s.publishedColumns(ctx, rel)
	if err != nil {
		return nil, err
	}
	m := relationMessage{id: rel.oid, schema: rel.id.Schema, name: rel.id.Name, replicaIdentity: rel.identity}
	identity := rel.identityColumns()
	for _, a := range rel.attributes {
		if a.generated || published != nil && !slices.Contains(published, a.name) {
			continue
		}
		m.columns = append(m.columns, relationColumn{
			identity: rel.identity == 'f' || slices.Contains(identity, a.name), name: a.name, oid: a.oid, typmod: a.typmod,
		})
	}
	return s.finishTable(ctx, m, rel, nil)
}

func (s *source) publishedColumns(ctx context.Context, rel *relation) ([]string, error) {
	if s.server.version < 150000 {
		return nil, nil
	}
	rows, err := s.db.rows(ctx, fmt.Sprintf(`SELECT (SELECT string_agg(x, E'\x01') FROM unnest(attnames) x) FROM pg_catalog.pg_publication_tables WHERE pubname = %s AND schemaname = %s AND tablename = %s`,
		quoteLiteral(s.config.publication), quoteLiteral(rel.id.Schema), quoteLiteral(rel.id.Name)))
	if err != nil {
		return nil, s.config.serverError("read the publication", err)
	}
	if len(rows) == 0 || rows[0][0] == nil {
		return nil, nil
	}
	return strings.Split(*rows[0][0], "\x01"), nil
}

// progress shows how far behind the stream is.
func (s *source) progress(now time.Time) {
	if now.Sub(s.reached) < time.Second {
		return
	}
	s.reached = now
	p := sdk.Progress{Phase: "streaming"}
	if s.pos.micros > 0 {
		p.Lag = max(0, now.Sub(time.UnixMicro(s.pos.micros)))
	}
	s.task.Progress(p)
}
