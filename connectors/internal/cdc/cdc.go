// Package cdc holds what the change data capture sources share: the envelope of
// a change event and its schemas, topic and schema names, which tables and
// columns are captured, record keys, masks, the heartbeat and transaction
// topics, and the bookkeeping of snapshots. It knows no database.
//
// The event format is Debezium's, member for member, because its consumers exist.
package cdc

import "github.com/millrace-io/millrace/plugins/sdk"

// TableID names a table: the schema (or database) it is in and its own name.
type TableID struct{ Schema, Name string }

// String returns schema.name, the form that filters match.
func (t TableID) String() string { return t.Schema + "." + t.Name }

// The operation codes of an envelope.
const (
	OpRead     = "r"
	OpCreate   = "c"
	OpUpdate   = "u"
	OpDelete   = "d"
	OpTruncate = "t"
	OpMessage  = "m"
)

// The markers of source.snapshot; a streamed event has none.
const (
	SnapshotFirst        = "first"
	SnapshotFirstInTable = "first_in_data_collection"
	SnapshotMiddle       = "true"
	SnapshotLastInTable  = "last_in_data_collection"
	SnapshotLast         = "last"
)

// The positions of the envelope's fields.
const (
	FieldBefore = iota
	FieldAfter
	FieldSource
	FieldTransaction
	FieldOp
	FieldTsMs
	FieldTsUs
	FieldTsNs
	EnvelopeFields // how many there are
)

// The positions of the fields that every source block begins with.
const (
	SourceVersion = iota
	SourceConnector
	SourceName
	SourceTsMs
	SourceSnapshot
	SourceDB
	SourceSequence
	SourceTsUs
	SourceTsNs
	SourceCommon // how many there are
)

func text() *sdk.Schema    { return sdk.Of(sdk.KindString) }
func optText() *sdk.Schema { return sdk.OptionalOf(sdk.KindString) }
func long() *sdk.Schema    { return sdk.Of(sdk.KindInt64) }
func optLong() *sdk.Schema { return sdk.OptionalOf(sdk.KindInt64) }

// SourceSchema makes the schema of a connector's source block: the common fields
// and then its own.
func SourceSchema(name string, own ...sdk.Field) *sdk.Schema {
	none := sdk.String("false")
	marker := &sdk.Schema{
		Kind: sdk.KindString, Optional: true, Name: "io.debezium.data.Enum", Version: 1, Default: &none,
		Params: map[string]string{"allowed": "true,first,first_in_data_collection,last_in_data_collection,last,false,incremental"},
	}
	fields := []sdk.Field{
		{Name: "version", Schema: text()},
		{Name: "connector", Schema: text()},
		{Name: "name", Schema: text()},
		{Name: "ts_ms", Schema: long()},
		{Name: "snapshot", Schema: marker},
		{Name: "db", Schema: text()},
		{Name: "sequence", Schema: optText()},
		{Name: "ts_us", Schema: optLong()},
		{Name: "ts_ns", Schema: optLong()},
	}
	return &sdk.Schema{Kind: sdk.KindStruct, Name: name, Version: 1, Fields: append(fields, own...)}
}

// TransactionBlock makes the schema of the envelope's transaction member.
func TransactionBlock() *sdk.Schema {
	return &sdk.Schema{Kind: sdk.KindStruct, Optional: true, Name: "event.block", Version: 1, Fields: []sdk.Field{
		{Name: "id", Schema: text()},
		{Name: "total_order", Schema: long()},
		{Name: "data_collection_order", Schema: long()},
	}}
}

// EnvelopeSchema makes the schema of a table's change events. row is the optional
// schema of before and after.
func EnvelopeSchema(name string, row, source, transaction *sdk.Schema) *sdk.Schema {
	return &sdk.Schema{Kind: sdk.KindStruct, Name: name + ".Envelope", Version: 2, Fields: []sdk.Field{
		{Name: "before", Schema: row},
		{Name: "after", Schema: row},
		{Name: "source", Schema: source},
		{Name: "transaction", Schema: transaction},
		{Name: "op", Schema: text()},
		{Name: "ts_ms", Schema: optLong()},
		{Name: "ts_us", Schema: optLong()},
		{Name: "ts_ns", Schema: optLong()},
	}}
}
