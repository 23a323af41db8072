package main

import (
	"github.com/millrace-io/millrace/connectors/internal/cdc"
	"github.com/millrace-io/millrace/plugins/sdk"
)

// messageRecords makes the records of logical messages.
type messageRecords struct {
	table      table // stands in the source block, without schema and name
	key, value *sdk.Schema
	keyRow     [1]sdk.Value
	body       [2]sdk.Value
	fields     [5]sdk.Value
}

func newMessageRecords(c *config, source, block *sdk.Schema) *messageRecords {
	content := sdk.OptionalOf(sdk.KindBytes)
	if c.Binary != "bytes" {
		content = sdk.OptionalOf(sdk.KindString)
	}
	prefix := sdk.Field{Name: "prefix", Schema: sdk.OptionalOf(sdk.KindString)}
	message := &sdk.Schema{Kind: sdk.KindStruct, Name: schemaPrefix + "Message", Version: 1, Fields: []sdk.Field{prefix, {Name: "content", Schema: content}}}
	return &messageRecords{
		table: table{topic: c.Names().Named("message"), schemaValue: sdk.String(""), nameValue: sdk.String("")},
		key:   &sdk.Schema{Kind: sdk.KindStruct, Name: schemaPrefix + "MessageKey", Version: 1, Fields: []sdk.Field{prefix}},
		value: &sdk.Schema{Kind: sdk.KindStruct, Name: schemaPrefix + "MessageValue", Version: 1, Fields: []sdk.Field{
			{Name: "op", Schema: sdk.Of(sdk.KindString)},
			{Name: "ts_ms", Schema: sdk.OptionalOf(sdk.KindInt64)},
			{Name: "source", Schema: source},
			{Name: "transaction", Schema: block},
			{Name: "message", Schema: message},
		}},
	}
}

// data returns key and value of one message, valid until the next.
func (m *messageRecords) data(prefix string, content, ms, source, block sdk.Value) (key, value sdk.Data) {
	m.keyRow[0] = sdk.String(prefix)
	m.body[0], m.body[1] = sdk.String(prefix), content
	m.fields = [5]sdk.Value{sdk.String(cdc.OpMessage), ms, source, block, sdk.Struct(m.body[:])}
	return sdk.Data{Schema: m.key, Value: sdk.Struct(m.keyRow[:])}, sdk.Data{Schema: m.value, Value: sdk.Struct(m.fields[:])}
}
