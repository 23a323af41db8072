package main

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/millrace-io/millrace/connectors/internal/cdc"
	"github.com/millrace-io/millrace/plugins/sdk"
)

const (
	connectorName = "postgresql"
	version       = "0.1.0"
	schemaPrefix  = "io.debezium.connector.postgresql."
)

// The positions of this connector's fields in the source block.
const (
	sourceSchema = cdc.SourceCommon + iota
	sourceTable
	sourceTxID
	sourceLSN
	sourceXmin
	sourceOrigin
	sourceOriginLSN
	sourceFields // how many there are
)

func newSourceSchema() *sdk.Schema {
	long := sdk.OptionalOf(sdk.KindInt64)
	return cdc.SourceSchema(schemaPrefix+"Source",
		sdk.Field{Name: "schema", Schema: sdk.Of(sdk.KindString)},
		sdk.Field{Name: "table", Schema: sdk.Of(sdk.KindString)},
		sdk.Field{Name: "txId", Schema: long},
		sdk.Field{Name: "lsn", Schema: long},
		sdk.Field{Name: "xmin", Schema: long},
		sdk.Field{Name: "origin", Schema: sdk.OptionalOf(sdk.KindString)},
		sdk.Field{Name: "origin_lsn", Schema: long},
	)
}

// clockEvery is how many records share one reading of the clock.
const clockEvery = 32

// headersKey is how many headers a record can have beside the context's.
const keyHeaders = 1

// emitter makes records of rows and appends them. Everything it hands to Append
// is reused, which Append allows.
type emitter struct {
	config  *config
	log     *slog.Logger
	context []sdk.Header
	headers []sdk.Header // room for a key's header, then the context's
	tx      *cdc.Transactions

	arena    arena
	record   sdk.Record
	envelope [cdc.EnvelopeFields]sdk.Value
	source   [sourceFields]sdk.Value
	block    [3]sdk.Value

	txID       uint32
	lastCommit lsn // end of the last transaction seen, 0 for none
	txTime     int64
	since      int // records since the clock was read
	appended   int // records since the last position
	bytes      int // and about how many bytes of rows
	limit      int // of records between two positions
}

func newEmitter(c *config, log *slog.Logger, task string) *emitter {
	e := &emitter{config: c, log: log, limit: min(positionRecords, c.MaxBatch)}
	if c.Headers {
		e.context = cdc.ContextHeaders(c.Prefix, task, connectorName, uuid7())
	}
	e.headers = append(make([]sdk.Header, keyHeaders, keyHeaders+len(e.context)), e.context...)
	if c.Transactions {
		e.tx = cdc.NewTransactions(c.TransactionTopic())
	}
	e.source[cdc.SourceVersion] = sdk.String(version)
	e.source[cdc.SourceConnector] = sdk.String(connectorName)
	e.source[cdc.SourceName] = sdk.String(c.Prefix)
	e.source[cdc.SourceDB] = sdk.String(c.database)
	return e
}

// tick reads the clock into the envelope.
func (e *emitter) tick() {
	now := time.Now()
	e.envelope[cdc.FieldTsMs] = sdk.Int64(now.UnixMilli())
	e.envelope[cdc.FieldTsUs] = sdk.Int64(now.UnixMicro())
	e.envelope[cdc.FieldTsNs] = sdk.Int64(now.UnixNano())
	e.since = 0
}

// at sets the time of the change, in microseconds since 1970.
func (e *emitter) at(micros int64) {
	e.txTime = micros
	e.source[cdc.SourceTsMs] = sdk.Int64(floorDiv(micros, 1000))
	e.source[cdc.SourceTsUs] = sdk.Int64(micros)
	e.source[cdc.SourceTsNs] = sdk.Int64(micros * 1000)
}

// place sets what the source block says of one change.
func (e *emitter) place(t *table, at lsn) {
	e.source[sourceSchema], e.source[sourceTable] = t.schemaValue, t.nameValue
	e.source[sourceLSN] = sdk.Int64(int64(at))
	e.source[cdc.SourceSequence] = e.sequence(at)
}

// sequence prints ["<end of the last commit>","<position>"].
func (e *emitter) sequence(at lsn) sdk.Value {
	b := append(e.arena.room(48), '[')
	if e.lastCommit == 0 {
		b = append(b, "null"...)
	} else {
		b = append(b, '"')
		b = strconv.AppendUint(b, uint64(e.lastCommit), 10)
		b = append(b, '"')
	}
	b = append(b, ',', '"')
	b = strconv.AppendUint(b, uint64(at), 10)
	b = append(b, '"', ']')
	return sdk.String(str(e.arena.keep(b)))
}

// fill converts the captured columns of a tuple into a row. Where the server left
// a value out, that of the whole old row stands in.
func (e *emitter) fill(t *table, into []sdk.Value, row, old *tuple) error {
	if len(row.columns) != len(t.columns) {
		return sdk.Errorf(sdk.Internal, reasonInternal, "a row of %s has %d columns, its description %d", t.name, len(row.columns), len(t.columns))
	}
	for i := range t.fields {
		f := &t.fields[i]
		c := row.columns[f.raw]
		if c.kind == colUnchanged && old != nil && old.set && !old.keyOnly && f.raw < len(old.columns) {
			c = old.columns[f.raw]
		}
		v, err := f.value(c, &e.arena)
		if err != nil {
			if v, err = e.failed(t, f, err); err != nil {
				return err
			}
		}
		into[i] = v
	}
	return nil
}

// failed decides on a value that could not be converted.
func (e *emitter) failed(t *table, f *field, err error) (sdk.Value, error) {
	column := t.columns[f.raw].name
	if e.config.OnConversion == "fail" || !f.optional {
		why := ""
		if !f.optional {
			why = "; the column does not allow null"
		}
		return sdk.Null, sdk.Errorf(sdk.Invalid, reasonConversion, "convert column %q of %s: %w%s; exclude the column or change its handling mode", column, t.name, err, why)
	}
	if e.config.OnConversion == "warn" && !t.warned[f.raw] {
		if t.warned == nil {
			t.warned = make(map[int]bool)
		}
		t.warned[f.raw] = true
		e.log.Warn("a value could not be converted and is null; further ones of this column are not logged", "table", t.name, "column", column, "err", err)
	}
	return sdk.Null, nil
}

// fillKey makes a record key; row holds the already converted row or is nil.
func (e *emitter) fillKey(t *table, into []sdk.Value, tup *tuple, row []sdk.Value) (sdk.Data, error) {
	if len(t.key) == 0 {
		return sdk.Data{}, nil
	}
	for i := range t.key {
		k := &t.key[i]
		if row != nil && k.inRow >= 0 {
			into[i] = row[k.inRow]
			continue
		}
		if k.raw >= len(tup.columns) {
			return sdk.Data{}, sdk.Errorf(sdk.Internal, reasonInternal, "a row of %s lacks the key column %q", t.name, t.columns[k.raw].name)
		}
		v, err := k.value(tup.columns[k.raw], &e.arena)
		if err != nil {
			return sdk.Data{}, sdk.Errorf(sdk.Invalid, reasonConversion, "convert key column %q of %s: %w", t.columns[k.raw].name, t.name, err)
		}
		into[i] = v
	}
	return sdk.Data{Schema: t.keyType, Value: sdk.Struct(into)}, nil
}

// event appends one change event. before and after are structs or null.
func (e *emitter) event(out *sdk.Batch, t *table, op string, key sdk.Data, before, after sdk.Value, headers []sdk.Header) error {
	if e.since++; e.since > clockEvery {
		e.tick()
	}
	e.envelope[cdc.FieldBefore], e.envelope[cdc.FieldAfter] = before, after
	e.envelope[cdc.FieldSource] = sdk.Struct(e.source[:])
	e.envelope[cdc.FieldOp] = sdk.String(op)
	e.envelope[cdc.FieldTransaction] = sdk.Null
	if e.tx.Open() && op != cdc.OpRead {
		e.envelope[cdc.FieldTransaction] = e.transactionBlock(t.name)
	}
	return e.append(out, t.topic, key, sdk.Data{Schema: t.envelope, Value: sdk.Struct(e.envelope[:])}, headers)
}

func (e *emitter) append(out *sdk.Batch, topic string, key, value sdk.Data, headers []sdk.Header) error {
	e.record = sdk.Record{
		Topic: topic, Partition: sdk.PartitionByKey, Timestamp: sdk.NoTimestamp, Key: key, Value: value, Headers: headers,
	}
	e.appended++
	return out.Append(&e.record)
}

// transactionBlock counts an event and describes its place in the transaction.
func (e *emitter) transactionBlock(name string) sdk.Value {
	total, inTable := e.tx.Count(name)
	e.block[0] = sdk.String(e.transactionID(e.source[sourceLSN].Int()))
	e.block[1], e.block[2] = sdk.Int64(total), sdk.Int64(inTable)
	return sdk.Struct(e.block[:])
}

// transactionID prints <xid>:<position>, which is how the reference connector
// names a transaction in each of its records.
func (e *emitter) transactionID(at int64) string {
	return fmt.Sprintf("%d:%d", e.txID, at)
}

// beginTransaction announces a transaction before its first event.
func (e *emitter) beginTransaction(out *sdk.Batch, at lsn) error {
	if e.tx == nil || e.tx.Open() {
		return nil
	}
	e.appended++
	return out.Append(e.tx.Begin(strconv.FormatUint(uint64(e.txID), 10), e.transactionID(int64(at)), floorDiv(e.txTime, 1000)))
}

// endTransaction announces the end of a transaction that had events.
func (e *emitter) endTransaction(out *sdk.Batch, end lsn) error {
	if !e.tx.Open() {
		return nil
	}
	e.appended++
	return out.Append(e.tx.End(e.transactionID(int64(end)), floorDiv(e.txTime, 1000)))
}

// keyHeader returns the context's headers behind one that holds another key.
func (e *emitter) keyHeader(name string, key sdk.Data) []sdk.Header {
	e.headers[0] = sdk.Header{Key: name, Data: key}
	return e.headers
}

// tombstone appends the record without value that follows a delete.
func (e *emitter) tombstone(out *sdk.Batch, t *table, key sdk.Data, headers []sdk.Header) error {
	if !e.config.Tombstones || key.Schema == nil {
		return nil
	}
	return e.append(out, t.topic, key, sdk.Data{}, headers)
}

// insert appends the event of an insert.
func (e *emitter) insert(out *sdk.Batch, t *table, at lsn, after *tuple) error {
	if e.config.Skips(cdc.OpCreate) {
		return nil
	}
	if err := e.start(out, t, at); err != nil {
		return err
	}
	if err := e.fill(t, t.row, after, nil); err != nil {
		return err
	}
	key, err := e.fillKey(t, t.keyRow, after, t.row)
	if err != nil {
		return err
	}
	return e.event(out, t, cdc.OpCreate, key, sdk.Null, sdk.Struct(t.row), e.context)
}

// start prepares for the events of one message.
func (e *emitter) start(out *sdk.Batch, t *table, at lsn) error {
	e.place(t, at)
	return e.beginTransaction(out, at)
}

// update appends the event of an update, or those of a delete and an insert when
// the key changed.
func (e *emitter) update(out *sdk.Batch, t *table, at lsn, old, after *tuple) error {
	if keyChanged(t, old, after) {
		if err := e.rekey(out, t, at, old, after); err != nil {
			return err
		}
		return nil
	}
	if e.config.Skips(cdc.OpUpdate) || e.config.NoChange && sameRow(t, old, after) {
		return nil
	}
	if err := e.start(out, t, at); err != nil {
		return err
	}
	if err := e.fill(t, t.row, after, old); err != nil {
		return err
	}
	before := sdk.Null
	if old.set && !old.keyOnly {
		if err := e.fill(t, t.oldRow, old, nil); err != nil {
			return err
		}
		before = sdk.Struct(t.oldRow)
	}
	key, err := e.fillKey(t, t.keyRow, after, t.row)
	if err != nil {
		return err
	}
	return e.event(out, t, cdc.OpUpdate, key, before, sdk.Struct(t.row), e.context)
}

// rekey appends what an update of the key becomes.
func (e *emitter) rekey(out *sdk.Batch, t *table, at lsn, old, after *tuple) error {
	if e.config.Skips(cdc.OpUpdate) {
		return nil
	}
	if err := e.start(out, t, at); err != nil {
		return err
	}
	if err := e.fill(t, t.oldRow, old, nil); err != nil {
		return err
	}
	if err := e.fill(t, t.row, after, old); err != nil {
		return err
	}
	oldKey, err := e.fillKey(t, t.oldKeyRow, old, t.oldRow)
	if err != nil {
		return err
	}
	newKey, err := e.fillKey(t, t.keyRow, after, t.row)
	if err != nil {
		return err
	}
	headers := e.keyHeader("__debezium.newkey", newKey)
	if err := e.event(out, t, cdc.OpDelete, oldKey, sdk.Struct(t.oldRow), sdk.Null, headers); err != nil {
		return err
	}
	if err := e.tombstone(out, t, oldKey, headers); err != nil {
		return err
	}
	return e.event(out, t, cdc.OpCreate, newKey, sdk.Null, sdk.Struct(t.row), e.keyHeader("__debezium.oldkey", oldKey))
}

// remove appends the event of a delete and its tombstone.
func (e *emitter) remove(out *sdk.Batch, t *table, at lsn, old *tuple) error {
	if e.config.Skips(cdc.OpDelete) {
		return nil
	}
	if err := e.start(out, t, at); err != nil {
		return err
	}
	if err := e.fill(t, t.oldRow, old, nil); err != nil {
		return err
	}
	key, err := e.fillKey(t, t.oldKeyRow, old, t.oldRow)
	if err != nil {
		return err
	}
	if err := e.event(out, t, cdc.OpDelete, key, sdk.Struct(t.oldRow), sdk.Null, e.context); err != nil {
		return err
	}
	return e.tombstone(out, t, key, e.context)
}

// truncate appends the event of a truncated table.
func (e *emitter) truncate(out *sdk.Batch, t *table, at lsn) error {
	if e.config.Skips(cdc.OpTruncate) {
		return nil
	}
	if err := e.start(out, t, at); err != nil {
		return err
	}
	return e.event(out, t, cdc.OpTruncate, sdk.Data{}, sdk.Null, sdk.Null, e.context)
}

// keyChanged reports whether an update has another key than before. Without an
// old row it cannot have.
func keyChanged(t *table, old, after *tuple) bool {
	if !old.set {
		return false
	}
	for i := range t.key {
		raw := t.key[i].raw
		if raw >= len(old.columns) || raw >= len(after.columns) {
			return false
		}
		a, b := old.columns[raw], after.columns[raw]
		if b.kind == colUnchanged || old.keyOnly && a.kind == colNull {
			continue
		}
		if a.kind != b.kind || !bytes.Equal(a.data, b.data) {
			return true
		}
	}
	return false
}

// sameRow reports whether no captured column changed, as far as the old row
// tells.
func sameRow(t *table, old, after *tuple) bool {
	if !old.set || old.keyOnly {
		return false
	}
	for i := range t.fields {
		a, b := old.columns[t.fields[i].raw], after.columns[t.fields[i].raw]
		if b.kind != colUnchanged && (a.kind != b.kind || !bytes.Equal(a.data, b.data)) {
			return false
		}
	}
	return true
}

// uuid7 makes a UUID that begins with the time.
func uuid7() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	binary.BigEndian.PutUint64(b[:8], uint64(time.Now().UnixMilli())<<16|uint64(b[6])<<8|uint64(b[7]))
	b[6] = b[6]&0x0f | 0x70
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
