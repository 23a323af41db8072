package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/millrace-io/millrace/connectors/internal/cdc"
	"github.com/millrace-io/millrace/plugins/sdk"
)

// fence says which transactions a database snapshot contains. It is what
// pg_current_snapshot prints: xmin:xmax:xip.
type fence struct {
	text       string
	xmin, xmax uint64
	open       []uint64 // running when it was taken, sorted
}

func parseFence(text string) (fence, error) {
	parts := strings.Split(text, ":")
	if len(parts) != 3 {
		return fence{}, fmt.Errorf("%q is no snapshot", text)
	}
	f := fence{text: text}
	var err error
	if f.xmin, err = strconv.ParseUint(parts[0], 10, 64); err != nil {
		return f, fmt.Errorf("read snapshot %q: %w", text, err)
	}
	if f.xmax, err = strconv.ParseUint(parts[1], 10, 64); err != nil {
		return f, fmt.Errorf("read snapshot %q: %w", text, err)
	}
	for _, x := range sdk.SplitList(parts[2]) {
		n, err := strconv.ParseUint(x, 10, 64)
		if err != nil {
			return f, fmt.Errorf("read snapshot %q: %w", text, err)
		}
		f.open = append(f.open, n)
	}
	slices.Sort(f.open)
	return f, nil
}

// contains reports whether a transaction that committed is part of the snapshot.
// The stream's 32-bit ids are widened around the fence.
func (f *fence) contains(xid uint32) bool {
	full := f.xmax + uint64(int64(int32(xid-uint32(f.xmax))))
	if full < f.xmin {
		return true
	}
	if full >= f.xmax {
		return false
	}
	_, running := slices.BinarySearch(f.open, full)
	return !running
}

// segment is a range of a table's key that was read under one fence: what lies
// behind the segment before, up to and with last.
type segment struct {
	last  []string // nil: to the end of the table
	fence fence
}

// tableProgress is how far the snapshot of a table is.
type tableProgress struct {
	done     bool
	rows     int64
	segments []segment
	// key names the columns that the segments' bounds are of, and order how they
	// compare; both are nil for a table that is read in one piece.
	key   []string
	order []keyOrder
}

type storedSegment struct {
	Fence string   `json:"fence"`
	Last  []string `json:"last,omitempty"`
}

// progressBytes bounds what the fences of one table take in a position, with room
// to spare: each restart during its snapshot adds one, and each lists the
// transactions that ran.
const progressBytes = sdk.MaxPositionBytes / 4

// crowded reports whether no further fence fits.
func (p *tableProgress) crowded() bool {
	n := 0
	for _, s := range p.segments {
		n += len(s.fence.text)
		for _, k := range s.last {
			n += len(k)
		}
	}
	return n > progressBytes
}

// offset makes the stored form.
func (p *tableProgress) offset() map[string]any {
	stored := make([]storedSegment, len(p.segments))
	for i, s := range p.segments {
		stored[i] = storedSegment{s.fence.text, s.last}
	}
	fences, _ := json.Marshal(stored) // strings only: cannot fail
	orders := make([]byte, len(p.order))
	for i, o := range p.order {
		orders[i] = '0' + byte(o)
	}
	return map[string]any{"done": p.done, "rows": p.rows, "fences": string(fences), "key": strings.Join(p.key, "\x01"), "order": string(orders)}
}

func readProgress(o map[string]any) (*tableProgress, error) {
	p := &tableProgress{done: cdc.Flag(o, "done"), rows: cdc.Int(o, "rows")}
	if key := cdc.Text(o, "key"); key != "" {
		p.key = strings.Split(key, "\x01")
	}
	for _, c := range cdc.Text(o, "order") {
		p.order = append(p.order, keyOrder(c-'0'))
	}
	var stored []storedSegment
	if err := json.Unmarshal([]byte(cdc.Text(o, "fences")), &stored); err != nil {
		return nil, fmt.Errorf("read stored snapshot progress: %w", err)
	}
	for _, s := range stored {
		f, err := parseFence(s.Fence)
		if err != nil {
			return nil, err
		}
		p.segments = append(p.segments, segment{s.Last, f})
	}
	if len(p.key) != len(p.order) {
		return nil, fmt.Errorf("stored snapshot progress has %d key columns and %d orders", len(p.key), len(p.order))
	}
	return p, nil
}

// fences drop those streamed changes that the snapshot contains already. They are
// needed while the stream is below the horizon, when the snapshot was not the
// slot's own.
type fences struct {
	horizon lsn
	tables  map[string]*tableProgress
}

func (f *fences) idle() bool { return f.horizon == 0 }

// find returns the fence of a key.
func (p *tableProgress) find(t *table, tup *tuple) *fence {
	for i := range p.segments {
		s := &p.segments[i]
		if s.last == nil || i == len(p.segments)-1 || p.compare(t, tup, s.last) <= 0 {
			return &s.fence
		}
	}
	return nil
}

// compare orders a row's key and a bound.
func (p *tableProgress) compare(t *table, tup *tuple, bound []string) int {
	for i, name := range p.key {
		raw := slices.IndexFunc(t.columns, func(c relationColumn) bool { return c.name == name })
		if raw < 0 || raw >= len(tup.columns) || i >= len(bound) {
			return 1
		}
		if c := compareKeys(p.order[i], tup.columns[raw].data, []byte(bound[i])); c != 0 {
			return c
		}
	}
	return 0
}

// filter judges a change by the fence of its key. handled says that nothing more
// is to be done with it.
func (f *fences) filter(st *stream, out *sdk.Batch, kind byte, at lsn, t *table) (handled bool, err error) {
	p := f.tables[t.name]
	if p == nil || len(p.segments) == 0 || st.commit >= f.horizon {
		return false, nil
	}
	contained := func(tup *tuple) bool {
		fc := p.find(t, tup)
		return fc != nil && fc.contains(st.src.emit.txID)
	}
	switch {
	case kind == msgInsert:
		return contained(&st.row), nil
	case kind == msgDelete:
		return contained(&st.old), nil
	case !keyChanged(t, &st.old, &st.row):
		return contained(&st.row), nil
	}
	oldIn, newIn := contained(&st.old), contained(&st.row)
	switch {
	case oldIn && newIn:
		return true, nil
	case oldIn:
		return true, st.src.emit.insert(out, t, at, &st.row)
	case newIn:
		return true, st.src.emit.remove(out, t, at, &st.old)
	}
	return false, nil
}

// truncated reports whether a truncation is part of what the snapshot read.
func (f *fences) truncated(s *source, t *table) bool {
	p := f.tables[t.name]
	if f.idle() || p == nil || s.stream.commit >= f.horizon {
		return false
	}
	in, n := 0, len(p.segments)
	for i := range p.segments {
		if p.segments[i].fence.contains(s.emit.txID) {
			in++
		}
	}
	if in > 0 && in < n {
		s.log.Warn("the table was truncated between two parts of its snapshot; rows read before stay in the log, take a new snapshot of it", "table", t.name)
		return s.config.Skips(cdc.OpTruncate)
	}
	return in > 0
}

// passed forgets the fences when the stream is beyond all of them.
func (f *fences) passed(s *source, out *sdk.Batch) error {
	if f.idle() || s.pos.end < f.horizon {
		return nil
	}
	f.horizon, s.pos.horizon = 0, 0
	names := make([]string, 0, len(f.tables))
	for name := range f.tables {
		names = append(names, name)
	}
	slices.Sort(names)
	f.tables = nil
	for _, name := range names {
		if err := out.Position(sdk.Position{Partition: tablePartition(s.config.Prefix, name)}); err != nil {
			return err
		}
	}
	return s.stream.store(out)
}

// openFence reads the fence of an open transaction and the place in the log above
// which nothing is part of it.
func (s *source) openFence(ctx context.Context, db *conn) (fence, lsn, error) {
	place := "pg_current_wal_insert_lsn()"
	if s.server.standby {
		place = "pg_last_wal_replay_lsn()"
	}
	current := "pg_current_snapshot()::text"
	if s.server.version < 130000 {
		current = "txid_current_snapshot()::text"
	}
	r, err := db.row(ctx, "SELECT "+current+", "+place)
	if err != nil {
		return fence{}, 0, s.config.serverError("open the snapshot", err)
	}
	f, err := parseFence(r[0])
	if err != nil {
		return f, 0, err
	}
	horizon, err := parseLSN(r[1])
	return f, horizon, err
}
