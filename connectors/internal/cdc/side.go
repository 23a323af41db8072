package cdc

import (
	"slices"

	"github.com/millrace-io/millrace/plugins/sdk"
)

// Heartbeat is the record that keeps the stored position moving.
type Heartbeat struct {
	topic      string
	key, value *sdk.Schema
	name       sdk.Value
}

// NewHeartbeat makes the heartbeat of a connector for a topic.
func NewHeartbeat(topic, prefix string) *Heartbeat {
	return &Heartbeat{
		topic: topic, name: sdk.String(prefix),
		key: &sdk.Schema{Kind: sdk.KindStruct, Name: "io.debezium.connector.common.ServerNameKey", Version: 1, Fields: []sdk.Field{
			{Name: "serverName", Schema: text()},
		}},
		value: &sdk.Schema{Kind: sdk.KindStruct, Name: "io.debezium.connector.common.Heartbeat", Version: 1, Fields: []sdk.Field{
			{Name: "ts_ms", Schema: long()},
		}},
	}
}

// Record makes one heartbeat.
func (h *Heartbeat) Record(ms int64) *sdk.Record {
	return &sdk.Record{
		Topic: h.topic, Partition: 0, Timestamp: sdk.NoTimestamp,
		Key:   sdk.Data{Schema: h.key, Value: sdk.Struct([]sdk.Value{h.name})},
		Value: sdk.Data{Schema: h.value, Value: sdk.Struct([]sdk.Value{sdk.Int64(ms)})},
	}
}

// Transactions counts the events of the open transaction and makes the records
// of the transaction topic. A nil one does nothing.
type Transactions struct {
	topic      string
	key, value *sdk.Schema

	id     string
	total  int64
	tables []tableCount
}

type tableCount struct {
	name  string
	count int64
}

// NewTransactions makes the records for a topic.
func NewTransactions(topic string) *Transactions {
	collection := &sdk.Schema{Kind: sdk.KindStruct, Optional: true, Name: "event.collection", Version: 1, Fields: []sdk.Field{
		{Name: "data_collection", Schema: text()},
		{Name: "event_count", Schema: long()},
	}}
	return &Transactions{
		topic: topic,
		key: &sdk.Schema{Kind: sdk.KindStruct, Name: "io.debezium.connector.common.TransactionMetadataKey", Version: 1, Fields: []sdk.Field{
			{Name: "id", Schema: text()},
		}},
		value: &sdk.Schema{Kind: sdk.KindStruct, Name: "io.debezium.connector.common.TransactionMetadataValue", Version: 1, Fields: []sdk.Field{
			{Name: "status", Schema: text()},
			{Name: "id", Schema: text()},
			{Name: "event_count", Schema: optLong()},
			{Name: "data_collections", Schema: &sdk.Schema{Kind: sdk.KindArray, Optional: true, Elem: collection}},
			{Name: "ts_ms", Schema: long()},
		}},
	}
}

// Open reports whether a transaction with events is open.
func (t *Transactions) Open() bool { return t != nil && t.id != "" }

// Begin opens a transaction and returns its BEGIN record.
func (t *Transactions) Begin(id, shown string, ms int64) *sdk.Record {
	t.id, t.total, t.tables = id, 0, t.tables[:0]
	return t.record("BEGIN", shown, ms)
}

// Count counts one event of a table and returns its two orders.
func (t *Transactions) Count(table string) (total, inTable int64) {
	t.total++
	i := slices.IndexFunc(t.tables, func(c tableCount) bool { return c.name == table })
	if i < 0 {
		i = len(t.tables)
		t.tables = append(t.tables, tableCount{name: table})
	}
	t.tables[i].count++
	return t.total, t.tables[i].count
}

// End closes the transaction and returns its END record.
func (t *Transactions) End(shown string, ms int64) *sdk.Record {
	r := t.record("END", shown, ms)
	t.id = ""
	return r
}

func (t *Transactions) record(status, shown string, ms int64) *sdk.Record {
	fields := []sdk.Value{sdk.String(status), sdk.String(shown), sdk.Null, sdk.Null, sdk.Int64(ms)}
	if status == "END" {
		items := make([]sdk.Value, len(t.tables))
		for i, c := range t.tables {
			items[i] = sdk.Struct([]sdk.Value{sdk.String(c.name), sdk.Int64(c.count)})
		}
		fields[2], fields[3] = sdk.Int64(t.total), sdk.Array(items)
	}
	return &sdk.Record{
		Topic: t.topic, Partition: sdk.PartitionByKey, Timestamp: sdk.NoTimestamp,
		Key:   sdk.Data{Schema: t.key, Value: sdk.Struct([]sdk.Value{sdk.String(shown)})},
		Value: sdk.Data{Schema: t.value, Value: sdk.Struct(fields)},
	}
}

// The offset keys that the counters are stored under.
const (
	transactionID    = "transaction_id"
	transactionOrder = "transaction_data_collection_order_"
)

// Store adds the open transaction's counters to an offset.
func (t *Transactions) Store(offset map[string]any) {
	if !t.Open() {
		return
	}
	offset[transactionID] = t.id
	for _, c := range t.tables {
		offset[transactionOrder+c.name] = c.count
	}
}

// Restore takes the counters of a transaction that was cut out of an offset.
func (t *Transactions) Restore(offset map[string]any) {
	if t == nil {
		return
	}
	id, _ := offset[transactionID].(string)
	t.id, t.total, t.tables = id, 0, nil
	var names []string
	for k := range offset {
		if len(k) > len(transactionOrder) && k[:len(transactionOrder)] == transactionOrder {
			names = append(names, k)
		}
	}
	slices.Sort(names)
	for _, k := range names {
		n := Int(offset, k)
		t.tables = append(t.tables, tableCount{k[len(transactionOrder):], n})
		t.total += n
	}
}

// ContextHeaders returns the constant headers of row events.
func ContextHeaders(prefix, task, connector, run string) []sdk.Header {
	schema := text()
	header := func(name, value string) sdk.Header {
		return sdk.Header{Key: "__debezium.context." + name, Data: sdk.Data{Schema: schema, Value: sdk.String(value)}}
	}
	return []sdk.Header{
		header("connectorLogicalName", prefix), header("taskId", task), header("connectorName", connector), header("runId", run),
	}
}

// Int reads a number from an offset, whichever way it was stored.
func Int(offset map[string]any, key string) int64 {
	switch n := offset[key].(type) {
	case int64:
		return n
	case float64:
		return int64(n)
	case int:
		return int64(n)
	}
	return 0
}

// Text reads a string from an offset.
func Text(offset map[string]any, key string) string {
	s, _ := offset[key].(string)
	return s
}

// Flag reads a boolean from an offset.
func Flag(offset map[string]any, key string) bool {
	b, _ := offset[key].(bool)
	return b
}
