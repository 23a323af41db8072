package main

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress"

	"github.com/millrace-io/millrace/plugins/sdk"
)

// Limits of one Parquet object in memory.
const (
	pageBytes        = 64 << 10
	decimalPrecision = 38 // Connect's decimals have none; this is what readers take at most
)

// table is the encoder of Parquet: one schema, columns named as the fields.
type table struct {
	schema *sdk.Schema
	out    bytes.Buffer
	writer *parquet.Writer
	root   *column
	row    parquet.Row
	raw    int // bytes of the values so far, as an estimate
}

// column is a node of the schema with what writing its values needs.
type column struct {
	schema   *sdk.Schema
	optional bool
	children []*column // of a struct, in Parquet's order; the item of a list; key and value of a map
	fields   []int     // of a struct: which field of the value each child is
	leaf     int       // index of a leaf column
	first    int       // index of the first leaf below
	leaves   int       // number of leaves below
}

func newTable(c *config, r *sdk.Record) (encoder, error) {
	s := r.Value.Schema
	if s == nil || s.Kind != sdk.KindStruct {
		return nil, fmt.Errorf("%w: Parquet needs a value that is a struct with a schema; use a source or converter that has one, or the JsonFormat", errNotStored)
	}
	next := 0
	root, node, err := build(required(s), &next)
	if err != nil {
		return nil, err
	}
	t := &table{schema: s, root: root}
	options := []parquet.WriterOption{
		parquet.NewSchema("record", node), parquet.PageBufferSize(pageBytes), parquet.CreatedBy("millrace", "1", ""),
	}
	if codec := codecOf(c.parquetCodec); codec != nil {
		options = append(options, parquet.Compression(codec))
	}
	t.writer = parquet.NewWriter(&t.out, options...)
	return t, nil
}

// required is the schema without its optionality: a row is always there.
func required(s *sdk.Schema) *sdk.Schema {
	c := *s
	c.Optional = false
	return &c
}

func codecOf(name string) compress.Codec {
	switch name {
	case "snappy":
		return &parquet.Snappy
	case "gzip":
		return &parquet.Gzip
	case "zstd":
		return &parquet.Zstd
	}
	return nil
}

// fits keeps one schema per object.
func (t *table) fits(r *sdk.Record) bool { return t.schema.Equal(r.Value.Schema) }

func (t *table) size() int { return t.raw }

func (t *table) append(r *sdk.Record) error {
	t.row = t.row[:0]
	if err := t.write(t.root, r.Value.Value, level{}); err != nil {
		return err
	}
	// A row's values go column by column, also where lists interleave them.
	slices.SortStableFunc(t.row, func(a, b parquet.Value) int { return a.Column() - b.Column() })
	for _, v := range t.row {
		t.raw += 8 + len(bytesOf(v))
	}
	_, err := t.writer.WriteRows([]parquet.Row{t.row})
	return err
}

func bytesOf(v parquet.Value) []byte {
	if v.Kind() == parquet.ByteArray {
		return v.ByteArray()
	}
	return nil
}

func (t *table) finish() ([]byte, error) {
	if err := t.writer.Close(); err != nil {
		return nil, err
	}
	return t.out.Bytes(), nil
}

// build makes the columns of a schema, and the node that describes them.
func build(s *sdk.Schema, next *int) (*column, parquet.Node, error) {
	c := &column{schema: s, optional: s.Optional, first: *next}
	var node parquet.Node
	var err error
	switch s.Kind {
	case sdk.KindStruct:
		node, err = c.group(s, next)
	case sdk.KindArray:
		var item *column
		var of parquet.Node
		item, of, err = build(s.Elem, next)
		c.children, node = []*column{item}, nil
		if err == nil {
			node = parquet.List(of)
		}
	case sdk.KindMap:
		node, err = c.mapping(s, next)
	default:
		c.leaf = *next
		*next++
		node, err = leafNode(s)
	}
	if err != nil {
		return nil, nil, err
	}
	c.leaves = *next - c.first
	if c.optional {
		node = parquet.Optional(node)
	}
	return c, node, nil
}

// group makes a struct's columns. Parquet's library sorts fields by name, and
// numbers the leaves in that order.
func (c *column) group(s *sdk.Schema, next *int) (parquet.Node, error) {
	if len(s.Fields) == 0 {
		return nil, fmt.Errorf("%w: Parquet has no struct without fields", errNotStored)
	}
	group := make(parquet.Group, len(s.Fields))
	index := make(map[string]int, len(s.Fields))
	for i, f := range s.Fields {
		index[f.Name] = i
		group[f.Name] = nil
	}
	for _, name := range slices.Sorted(maps.Keys(group)) {
		child, node, err := build(s.Fields[index[name]].Schema, next)
		if err != nil {
			return nil, fmt.Errorf("field %q: %w", name, err)
		}
		group[name] = node
		c.children = append(c.children, child)
		c.fields = append(c.fields, index[name])
	}
	return group, nil
}

func (c *column) mapping(s *sdk.Schema, next *int) (parquet.Node, error) {
	keySchema := s.KeyElem
	if keySchema.Optional || keySchema.Kind == sdk.KindStruct || keySchema.Kind == sdk.KindArray || keySchema.Kind == sdk.KindMap {
		return nil, fmt.Errorf("%w: Parquet has no map whose keys are optional or nested", errNotStored)
	}
	k, keyNode, err := build(keySchema, next)
	if err != nil {
		return nil, err
	}
	v, valueNode, err := build(s.Elem, next)
	if err != nil {
		return nil, err
	}
	c.children = []*column{k, v}
	return parquet.Map(keyNode, valueNode), nil
}

// leafNode maps a primitive schema, with the logical types that readers know.
func leafNode(s *sdk.Schema) (parquet.Node, error) {
	switch s.Name {
	case sdk.DecimalName:
		scale, err := strconv.Atoi(s.Params["scale"])
		if err != nil || scale < 0 || scale > decimalPrecision {
			return parquet.Leaf(parquet.ByteArrayType), nil //nolint:nilerr // a scale that Parquet has not: the plain bytes stay
		}
		return parquet.Decimal(scale, decimalPrecision, parquet.ByteArrayType), nil
	case sdk.DateName, "io.debezium.time.Date":
		return parquet.Date(), nil
	case sdk.TimestampName, "io.debezium.time.Timestamp":
		return parquet.Timestamp(parquet.Millisecond), nil
	case "io.debezium.time.MicroTimestamp":
		return parquet.Timestamp(parquet.Microsecond), nil
	}
	switch s.Kind {
	case sdk.KindBool:
		return parquet.Leaf(parquet.BooleanType), nil
	case sdk.KindInt8:
		return parquet.Int(8), nil
	case sdk.KindInt16:
		return parquet.Int(16), nil
	case sdk.KindInt32:
		return parquet.Int(32), nil
	case sdk.KindInt64:
		return parquet.Int(64), nil
	case sdk.KindFloat32:
		return parquet.Leaf(parquet.FloatType), nil
	case sdk.KindFloat64:
		return parquet.Leaf(parquet.DoubleType), nil
	case sdk.KindString:
		return parquet.String(), nil
	case sdk.KindBytes:
		return parquet.Leaf(parquet.ByteArrayType), nil
	}
	return nil, fmt.Errorf("%w: Parquet has no type for %s", errNotStored, s.Kind)
}

// level is where a value stands: see the Dremel paper (Melnik et al., VLDB 2010)
// for repetition and definition levels.
type level struct {
	repetition, definition int
	depth                  int // repeated nodes above
}

var errRequired = errors.New("a required field is null")

// write appends the values of one node to the row.
func (t *table) write(c *column, v sdk.Value, l level) error {
	if v.IsNull() {
		if !c.optional {
			return fmt.Errorf("%w: %w", errNotStored, errRequired)
		}
		t.nulls(c, l)
		return nil
	}
	if c.optional {
		l.definition++
	}
	switch c.schema.Kind {
	case sdk.KindStruct:
		items := v.Items()
		for i, child := range c.children {
			if err := t.write(child, items[c.fields[i]], l); err != nil {
				return fmt.Errorf("field %q: %w", c.schema.Fields[c.fields[i]].Name, err)
			}
		}
		return nil
	case sdk.KindArray:
		return t.repeat(c, l, len(v.Items()), func(i int, l level) error { return t.write(c.children[0], v.Items()[i], l) })
	case sdk.KindMap:
		return t.repeat(c, l, len(v.Entries()), func(i int, l level) error {
			if err := t.write(c.children[0], v.Entries()[i].Key, l); err != nil {
				return err
			}
			return t.write(c.children[1], v.Entries()[i].Value, l)
		})
	}
	t.row = append(t.row, leafValue(c.schema, v).Level(l.repetition, l.definition, c.leaf))
	return nil
}

// repeat writes the items of a list or map; an empty one is a null one level up.
func (t *table) repeat(c *column, l level, n int, item func(int, level) error) error {
	if n == 0 {
		for i := range c.leaves {
			t.row = append(t.row, parquet.NullValue().Level(l.repetition, l.definition, c.first+i))
		}
		return nil
	}
	l.definition++
	l.depth++
	for i := range n {
		if i > 0 {
			l.repetition = l.depth
		}
		if err := item(i, l); err != nil {
			return err
		}
	}
	return nil
}

func (t *table) nulls(c *column, l level) {
	for i := range c.leaves {
		t.row = append(t.row, parquet.NullValue().Level(l.repetition, l.definition, c.first+i))
	}
}

func leafValue(s *sdk.Schema, v sdk.Value) parquet.Value {
	switch s.Kind {
	case sdk.KindBool:
		return parquet.BooleanValue(v.Bool())
	case sdk.KindInt8, sdk.KindInt16, sdk.KindInt32:
		return parquet.Int32Value(int32(v.Int()))
	case sdk.KindInt64:
		return parquet.Int64Value(v.Int())
	case sdk.KindFloat32:
		return parquet.FloatValue(float32(v.Float()))
	case sdk.KindFloat64:
		return parquet.DoubleValue(v.Float())
	case sdk.KindString:
		return parquet.ByteArrayValue([]byte(v.Str()))
	}
	return parquet.ByteArrayValue(v.Bytes())
}
