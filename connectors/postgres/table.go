package main

import (
	"regexp"
	"slices"
	"strings"

	"github.com/millrace-io/millrace/connectors/internal/cdc"
	"github.com/millrace-io/millrace/plugins/sdk"
)

// table is a relation prepared for making records: one field per captured column
// with the way to convert it. It belongs to one form of the table; another form
// makes a new one.
type table struct {
	id       cdc.TableID
	oid      uint32
	name     string // schema.table
	topic    string
	captured bool
	identity byte

	columns  []relationColumn
	fields   []field
	key      []keyField
	envelope *sdk.Schema
	keyType  *sdk.Schema
	catalog  *relation // what was known when it was made

	schemaValue, nameValue sdk.Value
	row, oldRow, keyRow    []sdk.Value // reused by each record
	oldKeyRow              []sdk.Value
	warned                 map[int]bool // columns whose failures were logged
	enums                  bool
}

// field is one member of the row.
type field struct {
	raw      int // index of the column in a tuple
	name     string
	convert  convert
	optional bool
	filled   bool // null is replaced although the field is optional
	fallback sdk.Value
	absent   sdk.Value
	mask     *cdc.Mask
	labels   []string // of an enum
	text     bool     // the value is a string, so a mask applies
	length   int      // of the column, 0 for unbounded
}

// keyField is one member of the key.
type keyField struct {
	field
	inRow int // the member of the row with the same value, or -1
	order keyOrder
}

// tableMaker makes tables.
type tableMaker struct {
	config *config
	types  *types
	names  cdc.Names
	source *sdk.Schema
	block  *sdk.Schema
}

// make prepares a relation as the stream describes it, with the attributes that
// only the catalog has. previous is the form before, whose attributes stand in
// for columns the catalog no longer has.
func (m *tableMaker) make(rel relationMessage, cat *relation, previous *table) *table {
	id := cdc.TableID{Schema: rel.schema, Name: rel.name}
	t := &table{
		id: id, oid: rel.id, name: id.String(), topic: m.names.Topic(id), captured: m.config.captures(id),
		identity: rel.replicaIdentity, columns: rel.columns, catalog: cat,
		schemaValue: sdk.String(rel.schema), nameValue: sdk.String(rel.name),
	}
	if !t.captured {
		return t
	}
	if cat == nil && previous != nil {
		t.catalog = previous.catalog
	}
	keyColumns := m.keyColumns(t)
	row := &sdk.Schema{Kind: sdk.KindStruct, Optional: true, Name: m.names.Schema(t.topic) + ".Value"}
	key := &sdk.Schema{Kind: sdk.KindStruct, Name: m.names.Schema(t.topic) + ".Key"}
	schemas := make([]*sdk.Schema, len(rel.columns))
	inRow := make([]int, len(rel.columns))
	converted := make([]field, len(rel.columns))
	orders := make([]keyOrder, len(rel.columns))
	for i, c := range rel.columns {
		inRow[i] = -1
		typ := m.types.column(c.oid, c.typmod)
		if !typ.known && !m.config.UnknownTypes && !slices.Contains(keyColumns, c.name) {
			continue
		}
		schemas[i], converted[i] = m.field(t, c, typ)
		converted[i].raw = i
		orders[i] = typ.comparer
		if !m.config.Capture.Column(id, c.name) {
			continue
		}
		inRow[i] = len(t.fields)
		t.fields = append(t.fields, converted[i])
		t.enums = t.enums || converted[i].labels != nil
		row.Fields = append(row.Fields, sdk.Field{Name: converted[i].name, Schema: schemas[i]})
	}
	for _, name := range keyColumns {
		i := slices.IndexFunc(rel.columns, func(c relationColumn) bool { return c.name == name })
		if i < 0 {
			continue // the catalog is of another time
		}
		t.key = append(t.key, keyField{field: converted[i], inRow: inRow[i], order: orders[i]})
		key.Fields = append(key.Fields, sdk.Field{Name: converted[i].name, Schema: keySchema(schemas[i])})
	}
	if len(t.key) > 0 {
		t.keyType = key
	}
	t.envelope = cdc.EnvelopeSchema(m.names.Schema(t.topic), row, m.source, m.block)
	t.row, t.oldRow = make([]sdk.Value, len(t.fields)), make([]sdk.Value, len(t.fields))
	t.keyRow, t.oldKeyRow = make([]sdk.Value, len(t.key)), make([]sdk.Value, len(t.key))
	return t
}

// keySchema is a field's schema without what is told about its column.
func keySchema(s *sdk.Schema) *sdk.Schema {
	k := *s
	k.Params = make(map[string]string)
	for name, v := range s.Params {
		if !strings.HasPrefix(name, columnParam) {
			k.Params[name] = v
		}
	}
	if len(k.Params) == 0 {
		k.Params = nil
	}
	return &k
}

// columnParam begins the parameters that tell of a column's type.
const columnParam = "__debezium.source.column."

// keyColumns decides on the record key: the user's rule, the primary key, the
// columns of a unique index, or none. Where the server sends other identity
// columns than the primary key's, those are the key: nothing is made up.
func (m *tableMaker) keyColumns(t *table) []string {
	has := func(columns []string) bool {
		for _, c := range columns {
			if !slices.ContainsFunc(t.columns, func(r relationColumn) bool { return r.name == c }) {
				return false
			}
		}
		return len(columns) > 0
	}
	var flagged []string
	for _, c := range t.columns {
		if c.identity {
			flagged = append(flagged, c.name)
		}
	}
	if columns := cdc.KeyColumns(m.config.Keys, t.id); has(columns) {
		if t.identity == 'f' || len(flagged) == 0 || subset(columns, flagged) {
			return columns
		}
		return flagged // deletes would not have the others
	}
	primary := t.catalog.primaryKey()
	switch {
	case has(primary):
		if t.identity == 'i' && len(flagged) > 0 && !subset(primary, flagged) {
			return flagged
		}
		return primary
	case t.identity == 'i', t.identity == 'd' && t.catalog == nil:
		return flagged
	case has(t.catalog.uniqueKey()):
		return t.catalog.uniqueKey()
	}
	return nil
}

func subset(columns, of []string) bool {
	for _, c := range columns {
		if !slices.Contains(of, c) {
			return false
		}
	}
	return true
}

// field makes the schema and the conversion of a column.
func (m *tableMaker) field(t *table, c relationColumn, typ columnType) (*sdk.Schema, field) {
	attr := t.catalog.attribute(c.name)
	if attr != nil && attr.oid != c.oid {
		attr = nil // a column of another time
	}
	s := *typ.schema
	primary := slices.Contains(t.catalog.primaryKey(), c.name)
	s.Optional = !primary && (attr == nil || !attr.notNull && !m.domainNotNull(c.oid)) || typ.always
	params := make(map[string]string)
	for k, v := range s.Params {
		params[k] = v
	}
	typeName, length, scale := m.types.declaredType(c.oid, c.typmod)
	if m.config.Propagates(t.id, c.name, m.config.database, m.types.byOID[c.oid].name) {
		params[columnParam+"type"], params[columnParam+"length"], params[columnParam+"name"] = typeName, length, c.name
		if scale != "" {
			params[columnParam+"scale"] = scale
		}
	}
	f := field{
		name: m.names.Field(c.name), convert: typ.convert, optional: s.Optional, fallback: typ.fallback, absent: typ.absent,
		text: s.Kind == sdk.KindString,
	}
	info, mod := m.types.resolve(c.oid, c.typmod)
	f.filled = typ.always && attr != nil && attr.notNull && !typ.fallback.IsNull()
	if info.kind == 'e' {
		f.labels = info.labels
	}
	if (info.oid == oidVarchar || info.oid == oidBpchar) && mod > 4 {
		f.length = int(mod - 4)
	}
	if mask := cdc.MaskFor(m.config.Masks, t.id, c.name); mask != nil && f.text {
		name, value := mask.Param()
		params[name] = value
		f.mask = mask
	}
	if len(params) > 0 {
		s.Params = params
	}
	if attr != nil && typ.defaults && attr.fallback != "" {
		if s.Default = m.constant(attr.fallback, typ, c); s.Default != nil {
			f.fallback = *s.Default
		}
	}
	return &s, f
}

func (m *tableMaker) domainNotNull(oid uint32) bool {
	info := m.types.byOID[oid]
	return info.kind == 'd' && info.notNull
}

// constantDefault matches the default expressions that are one value, perhaps
// with a cast: 7, 'text'::text, '-3'::integer, true, B'1010'::"bit".
var constantDefault = regexp.MustCompile(`^(?s)\(?(-?[0-9][0-9.]*|[BE]?'(?:[^']|'')*'|true|false)\)?(?:::[^'(]+(?:\([0-9, ]*\))?[^'()]*)*$`)

// constant evaluates a default that is a constant, nil for others.
func (m *tableMaker) constant(expr string, typ columnType, c relationColumn) *sdk.Value {
	match := constantDefault.FindStringSubmatch(expr)
	if match == nil {
		return nil
	}
	text := match[1]
	switch {
	case strings.HasPrefix(text, "'"), strings.HasPrefix(text, "B'"):
		text = strings.ReplaceAll(strings.Trim(strings.TrimPrefix(text, "B"), "'"), "''", "'")
		if strings.HasSuffix(match[1], "'''") || strings.HasPrefix(strings.TrimPrefix(match[1], "B"), "'''") {
			inner := strings.TrimPrefix(match[1], "B")
			text = strings.ReplaceAll(inner[1:len(inner)-1], "''", "'")
		}
	case strings.HasPrefix(text, "E'"):
		return nil
	case text == "true":
		text = "t"
	case text == "false":
		text = "f"
	}
	if info, _ := m.types.resolve(c.oid, c.typmod); info.oid == oidNumeric && isSpecial([]byte(text)) || specialOf([]byte(text)) != finite {
		return nil
	}
	v, err := typ.convert([]byte(text), new(arena))
	if err != nil {
		return nil
	}
	return &v
}

// value converts one column of a tuple.
func (f *field) value(c rawColumn, a *arena) (sdk.Value, error) {
	var v sdk.Value
	switch c.kind {
	case colText:
		var err error
		if v, err = f.convert(c.data, a); err != nil {
			return sdk.Null, err
		}
	case colUnchanged:
		v = f.absent
	}
	if f.mask != nil {
		if s, null := f.mask.Apply(v.Str(), v.IsNull(), f.length); null {
			v = sdk.Null
		} else {
			v = sdk.String(s)
		}
	}
	if v.IsNull() && (!f.optional || f.filled) {
		v = f.fallback
	}
	return v, nil
}

// hasEnums reports whether a row may hold a label that is not known yet.
func (t *table) hasEnums() bool { return t.enums }

// labelsKnown reports whether the enum columns of a tuple hold known labels only.
func (t *table) labelsKnown(tup *tuple) bool {
	if !tup.set {
		return true
	}
	for i := range t.fields {
		f := &t.fields[i]
		if f.labels == nil || f.raw >= len(tup.columns) || tup.columns[f.raw].kind != colText {
			continue
		}
		if !slices.Contains(f.labels, str(tup.columns[f.raw].data)) {
			return false
		}
	}
	return true
}

// description is the relation message that the table was made of.
func (t *table) description() relationMessage {
	return relationMessage{id: t.oid, schema: t.id.Schema, name: t.id.Name, replicaIdentity: t.identity, columns: t.columns}
}
