package main

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/millrace-io/millrace/connectors/internal/cdc"
	"github.com/millrace-io/millrace/plugins/sdk"
)

// snapshot reads the rows that exist. All tables are read in one transaction; a
// snapshot that is resumed uses a new one, and the fences tell the two apart.
type snapshot struct {
	src      *source
	name     string // of the exported snapshot, "" to take a new one
	keep     *conn  // keeps the exported snapshot alive until it is imported
	exact    bool   // the snapshot is the slot's own: streaming goes on exactly behind it
	db       *conn
	fence    fence
	horizon  lsn
	tables   []*relation
	progress map[string]*tableProgress

	at      int // index of the table being read
	table   *table
	keyRaw  []int // where the key is in a row
	copy    *copyReader
	tup     tuple
	cur     *slab // being read, from off on
	off     int
	held    []byte // the row that waits for its marker
	hasHeld bool
	first   bool // nothing was emitted yet of this table
	dirty   bool
	unnoted bool // the key of the last row is not noted yet
	total   int64
	done    int64
	started bool
	only    bool // nothing follows
}

// begin opens the transaction and stores that a snapshot is under way.
func (sn *snapshot) begin(ctx context.Context, out *sdk.Batch) error {
	s := sn.src
	if err := pause(ctx, s.config.SnapshotDelay); err != nil {
		return err
	}
	if err := s.reopen(ctx); err != nil {
		return err
	}
	db, err := s.config.connect(ctx)
	if err != nil {
		return err
	}
	sn.db = db
	setup := fmt.Sprintf("SET lock_timeout=%d; SET row_security=off; BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", s.config.LockTimeout.Milliseconds())
	if sn.name != "" {
		setup += "; SET TRANSACTION SNAPSHOT " + quoteLiteral(sn.name)
	}
	if _, err := db.rows(ctx, setup); err != nil {
		return s.config.serverError("open the snapshot", err)
	}
	if sn.fence, sn.horizon, err = s.openFence(ctx, db); err != nil {
		return err
	}
	sn.keep.close()
	sn.keep = nil
	if sn.exact {
		sn.horizon = s.pos.end
	}
	r, err := db.row(ctx, "SELECT (extract(epoch from now())*1000000)::bigint")
	if err != nil {
		return s.config.serverError("open the snapshot", err)
	}
	micros, _ := parseInt([]byte(r[0]))
	s.pos.horizon = max(s.pos.horizon, sn.horizon)
	s.pos.snapshot, s.pos.micros, s.pos.lsn = true, micros, max(s.pos.end, s.pos.lsn)
	s.pos.txID = uint32(sn.fence.xmax)
	e := s.emit
	e.at(micros)
	e.lastCommit = 0
	e.source[sourceTxID] = sdk.Int64(int64(uint32(sn.fence.xmax)))
	for _, t := range sn.tables {
		sn.total += max(0, t.rows)
	}
	sn.started = true
	s.log.Info("snapshot begins", "tables", len(sn.tables), "fence", sn.fence.text)
	return sn.storeServer(out)
}

func (sn *snapshot) storeServer(out *sdk.Batch) error {
	s := sn.src
	return out.Position(sdk.Position{Partition: serverPartition(s.config.Prefix), Offset: s.pos.offset()})
}

func (sn *snapshot) close() {
	if sn == nil {
		return
	}
	sn.copy.close()
	sn.copy = nil
	sn.db.close()
	sn.keep.close()
	sn.db, sn.keep = nil, nil
}

// read appends rows up to the next position.
func (sn *snapshot) read(ctx context.Context, out *sdk.Batch) (finished bool, err error) {
	s := sn.src
	if !sn.started {
		if err := sn.begin(ctx, out); err != nil {
			return false, err
		}
	}
	s.emit.tick()
	for s.emit.appended < s.emit.limit && s.emit.bytes < positionBytes {
		if sn.copy == nil {
			more, err := sn.openTable(ctx, out)
			if err != nil {
				return false, err
			}
			if !more {
				return true, sn.finish(out)
			}
		}
		end, err := sn.rows(ctx, out)
		if err != nil {
			return false, err
		}
		if end {
			if err := sn.closeTable(out); err != nil {
				return false, err
			}
		}
	}
	return false, sn.store(out)
}

// openTable starts reading the next table that is not done; more is false behind
// the last one.
func (sn *snapshot) openTable(ctx context.Context, out *sdk.Batch) (more bool, err error) {
	s := sn.src
	for ; sn.at < len(sn.tables); sn.at++ {
		rel := sn.tables[sn.at]
		name := rel.id.String()
		p := sn.progress[name]
		if p != nil && p.done {
			sn.done += p.rows
			continue
		}
		if err := s.db.fill(ctx, rel); err != nil {
			return false, s.config.serverError("read the table "+name, err)
		}
		t, err := s.prepareFrom(ctx, rel)
		if err != nil {
			return false, err
		}
		key, order := sn.order(rel, t)
		if p == nil || p.key == nil || !slices.Equal(p.key, key) || p.crowded() {
			if p != nil && p.rows > 0 {
				s.log.Warn("the table cannot be resumed, because its key is not comparable here or it was cut too often; its rows are read again", "table", name)
			}
			p = &tableProgress{key: key, order: order}
		}
		var from []string
		if n := len(p.segments); n > 0 {
			from = p.segments[n-1].last
		}
		p.segments = append(p.segments, segment{from, sn.fence})
		sn.progress[name] = p
		sn.done += p.rows
		sn.table, sn.first, sn.hasHeld, sn.unnoted = t, true, false, false
		sn.cur = nil
		sn.keyRaw = sn.keyRaw[:0]
		for _, k := range key {
			sn.keyRaw = append(sn.keyRaw, slices.IndexFunc(t.columns, func(c relationColumn) bool { return c.name == k }))
		}
		sn.copy = startCopy(ctx, sn.db, sn.query(rel, t, p, from))
		return true, nil
	}
	return false, nil
}

// order returns the key by which the rows can be read in an order that is known
// here too, nil when there is none. Changes must carry that key, or nothing could
// be judged by it later.
func (sn *snapshot) order(rel *relation, t *table) ([]string, []keyOrder) {
	primary := rel.primaryKey()
	if sn.src.config.Override(rel.id.String()) != "" || len(primary) == 0 || rel.identity != 'd' && rel.identity != 'f' {
		return nil, nil
	}
	var orders []keyOrder
	for _, name := range primary {
		i := slices.IndexFunc(t.columns, func(c relationColumn) bool { return c.name == name })
		if i < 0 {
			return nil, nil
		}
		typ := sn.src.types.column(t.columns[i].oid, t.columns[i].typmod)
		if typ.comparer == orderNone {
			return nil, nil
		}
		orders = append(orders, typ.comparer)
	}
	return primary, orders
}

// query is the SELECT that reads a table, behind a key when it is resumed.
func (sn *snapshot) query(rel *relation, t *table, p *tableProgress, from []string) string {
	if override := sn.src.config.Override(rel.id.String()); override != "" {
		return override
	}
	columns := make([]string, len(t.columns))
	for i, c := range t.columns {
		columns[i] = quoteIdent(c.name)
		needed := slices.ContainsFunc(t.fields, func(f field) bool { return f.raw == i }) ||
			slices.ContainsFunc(t.key, func(k keyField) bool { return k.raw == i }) || slices.Contains(p.key, c.name)
		if !needed {
			columns[i] = "NULL"
		}
	}
	only := "ONLY "
	if rel.kind == 'p' {
		only = ""
	}
	q := "SELECT " + strings.Join(columns, ", ") + " FROM " + only + quoteIdent(rel.id.Schema) + "." + quoteIdent(rel.id.Name)
	if p.key == nil {
		return q
	}
	keys := make([]string, len(p.key))
	for i, k := range p.key {
		keys[i] = quoteIdent(k)
		if p.order[i] == orderCollate {
			keys[i] += ` COLLATE "C"`
		}
	}
	if from != nil {
		bounds := make([]string, len(from))
		for i, b := range from {
			bounds[i] = quoteLiteral(b)
		}
		q += " WHERE (" + strings.Join(keys, ", ") + ") > (" + strings.Join(bounds, ", ") + ")"
	}
	return q + " ORDER BY " + strings.Join(keys, ", ")
}

// rows emits rows until enough have come for a position, or the table ends. The
// last row waits, because only what follows tells whether it is the last.
func (sn *snapshot) rows(ctx context.Context, out *sdk.Batch) (end bool, err error) {
	e := sn.src.emit
	for e.appended < e.limit && e.bytes < positionBytes {
		if sn.cur == nil {
			if sn.cur, err = sn.copy.next(ctx); err != nil {
				return false, sn.src.config.serverError("read the rows of "+sn.table.name, err)
			}
			sn.off = 0
		}
		if sn.cur == nil {
			if sn.hasHeld {
				err = sn.emit(out, sn.held, sn.marker(true))
			}
			sn.hasHeld = false
			return true, err
		}
		b := sn.cur.buf[sn.off:sn.cur.n]
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			return false, sdk.Errorf(sdk.Internal, reasonInternal, "a row of %s has no end", sn.table.name)
		}
		if sn.hasHeld {
			if err := sn.emit(out, sn.held, sn.marker(false)); err != nil {
				return false, err
			}
		}
		sn.held, sn.hasHeld = b[:i], true
		if sn.off += i + 1; sn.off >= sn.cur.n {
			sn.noteKey() // it may lie in the slab
			sn.held = append([]byte(nil), sn.held...)
			sn.copy.release(sn.cur)
			sn.cur = nil
		}
	}
	return false, nil
}

// noteKey notes the key of the last row that was emitted, where a resumed
// snapshot goes on.
func (sn *snapshot) noteKey() {
	p := sn.progress[sn.table.name]
	if p.key == nil || !sn.unnoted {
		return
	}
	sn.unnoted = false
	last := make([]string, len(p.key))
	for i := range p.key {
		last[i] = string(sn.tup.columns[sn.keyRaw[i]].data)
	}
	p.segments[len(p.segments)-1].last = last
}

// marker is the source block's snapshot member of the held row.
func (sn *snapshot) marker(last bool) string {
	firstTable, lastTable := sn.at == 0, sn.at == len(sn.tables)-1
	switch {
	case last && lastTable:
		return cdc.SnapshotLast
	case sn.first && firstTable && sn.table != nil:
		return cdc.SnapshotFirst
	case last:
		return cdc.SnapshotLastInTable
	case sn.first:
		return cdc.SnapshotFirstInTable
	}
	return cdc.SnapshotMiddle
}

// emit appends one row in COPY's text form.
func (sn *snapshot) emit(out *sdk.Batch, row []byte, marker string) error {
	e := sn.src.emit
	if err := splitCopy(row, &sn.tup); err != nil {
		return sdk.Errorf(sdk.Internal, reasonInternal, "read a row of %s: %w", sn.table.name, err)
	}
	e.arena.reset()
	e.source[cdc.SourceSnapshot] = sdk.String(marker)
	e.place(sn.table, sn.src.pos.lsn)
	if err := e.fill(sn.table, sn.table.row, &sn.tup, nil); err != nil {
		return err
	}
	key, err := e.fillKey(sn.table, sn.table.keyRow, &sn.tup, sn.table.row)
	if err != nil {
		return err
	}
	if err := e.event(out, sn.table, cdc.OpRead, key, sdk.Null, sdk.Struct(sn.table.row), e.context); err != nil {
		return err
	}
	e.bytes += len(row)
	sn.first, sn.dirty = false, true
	sn.done++
	p := sn.progress[sn.table.name]
	p.rows++
	sn.unnoted = true
	return nil
}

// store hands the table's progress on.
func (sn *snapshot) store(out *sdk.Batch) error {
	if !sn.dirty {
		return nil
	}
	sn.noteKey()
	s := sn.src
	name := sn.table.name
	if err := out.Position(sdk.Position{Partition: tablePartition(s.config.Prefix, name), Offset: sn.progress[name].offset()}); err != nil {
		return err
	}
	s.emit.appended, s.emit.bytes, sn.dirty = 0, 0, false
	sn.report()
	return nil
}

func (sn *snapshot) report() {
	p := sdk.Progress{Phase: "snapshot", Done: sn.done, Total: max(sn.total, sn.done), ItemsDone: sn.at, Items: len(sn.tables)}
	if sn.table != nil {
		p.Item = sn.table.name
	}
	sn.src.task.Progress(p)
}

func (sn *snapshot) closeTable(out *sdk.Batch) error {
	if err := sn.copy.result(); err != nil {
		return sn.src.config.serverError("read the rows of "+sn.table.name, err)
	}
	sn.copy = nil
	p := sn.progress[sn.table.name]
	sn.unnoted = false
	p.done = true
	p.segments[len(p.segments)-1].last = nil
	sn.dirty = true
	if err := sn.store(out); err != nil {
		return err
	}
	sn.src.log.Info("snapshot of table done", "table", sn.table.name, "rows", p.rows)
	sn.at++
	return nil
}

// finish stores that streaming may begin. The progress of tables is forgotten
// when nothing of the stream needs to be judged by it.
func (sn *snapshot) finish(out *sdk.Batch) error {
	s := sn.src
	s.pos.snapshot, s.pos.snapshotDone = false, true
	s.fences = fences{horizon: s.pos.horizon, tables: sn.progress}
	if s.pos.horizon <= s.pos.end {
		s.fences, s.pos.horizon = fences{}, 0
	}
	if err := sn.storeServer(out); err != nil {
		return err
	}
	if s.fences.idle() {
		for _, t := range sn.tables {
			if err := out.Position(sdk.Position{Partition: tablePartition(s.config.Prefix, t.id.String())}); err != nil {
				return err
			}
		}
	}
	sn.table = nil
	sn.report()
	s.emit.source[cdc.SourceSnapshot] = sdk.Null
	s.log.Info("snapshot done", "rows", sn.done)
	return nil
}

// splitCopy splits a row of COPY's text form and undoes its escapes in place.
func splitCopy(row []byte, t *tuple) error {
	t.set, t.keyOnly, t.columns = true, false, t.columns[:0]
	for {
		i := bytes.IndexByte(row, '\t')
		col := row
		if i >= 0 {
			col = row[:i]
		}
		c := rawColumn{kind: colText, data: col}
		if j := bytes.IndexByte(col, '\\'); j >= 0 {
			if len(col) == 2 && col[1] == 'N' {
				c = rawColumn{kind: colNull}
			} else if c.data = unescape(col, j); c.data == nil {
				return errSyntax
			}
		}
		t.columns = append(t.columns, c)
		if i < 0 {
			return nil
		}
		row = row[i+1:]
	}
}

// unescape undoes backslashes from index j on, in place; nil for a wrong text.
func unescape(b []byte, j int) []byte {
	out := b[:j]
	for i := j; i < len(b); i++ {
		if b[i] != '\\' {
			out = append(out, b[i])
			continue
		}
		i++
		if i >= len(b) {
			return nil
		}
		switch b[i] {
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'v':
			out = append(out, '\v')
		default:
			out = append(out, b[i])
		}
	}
	return out
}

// copyReader runs a COPY on a goroutine of its own and hands on slabs of whole
// rows.
type copyReader struct {
	cancel context.CancelFunc
	slabs  chan *slab
	free   chan *slab
	ended  chan struct{}
	err    error // set before ended is closed
	cur    *slab
	ctx    context.Context //nolint:containedctx // ends the writer with the goroutine it runs on
}

func startCopy(ctx context.Context, db *conn, query string) *copyReader {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	r := &copyReader{cancel: cancel, slabs: make(chan *slab, slabCount), free: make(chan *slab, slabCount+2), ended: make(chan struct{}), ctx: ctx}
	go func() {
		defer close(r.ended)
		defer close(r.slabs)
		_, r.err = db.CopyTo(ctx, r, "COPY ("+query+") TO STDOUT")
		if r.err == nil && r.cur != nil && r.cur.n > 0 {
			r.err = r.flush()
		}
	}()
	return r
}

// Write takes one row from the driver.
func (r *copyReader) Write(row []byte) (int, error) {
	if r.cur != nil && r.cur.n+len(row) > len(r.cur.buf) {
		if err := r.flush(); err != nil {
			return 0, err
		}
	}
	if r.cur == nil {
		select {
		case r.cur = <-r.free:
		default:
			r.cur = &slab{buf: make([]byte, max(slabBytes, len(row)))}
		}
		r.cur.n = 0
		if len(r.cur.buf) < len(row) {
			r.cur.buf = make([]byte, len(row))
		}
	}
	r.cur.n += copy(r.cur.buf[r.cur.n:], row)
	return len(row), nil
}

func (r *copyReader) flush() error {
	select {
	case r.slabs <- r.cur:
		r.cur = nil
		return nil
	case <-r.ctx.Done():
		return r.ctx.Err()
	}
}

// next returns the next slab, nil at the end.
func (r *copyReader) next(ctx context.Context) (*slab, error) {
	select {
	case s, ok := <-r.slabs:
		if !ok {
			<-r.ended
			return nil, r.err
		}
		return s, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (r *copyReader) release(s *slab) {
	if len(s.buf) > slabBytes {
		return
	}
	select {
	case r.free <- s:
	default:
	}
}

// result is the error of a COPY that has ended.
func (r *copyReader) result() error {
	<-r.ended
	r.cancel()
	return r.err
}

// close ends a COPY in the middle; its connection is of no more use.
func (r *copyReader) close() {
	if r == nil {
		return
	}
	r.cancel()
	for {
		select {
		case <-r.slabs:
		case <-r.ended:
			return
		case <-time.After(closeTimeout):
			return
		}
	}
}
