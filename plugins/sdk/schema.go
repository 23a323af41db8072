package sdk

import (
	"maps"
	"slices"
	"strconv"
)

// Schema describes a value, with Connect's type system: a kind, optionality, a
// name and version, parameters and a default. A Schema is immutable once it is
// used and is shared by pointer: make it once per table, not per record.
type Schema struct {
	Kind     Kind // never KindNull
	Optional bool
	Name     string // the semantic (logical) name, "" when there is none
	Version  int    // 0 when there is none
	Doc      string
	Params   map[string]string
	Default  *Value
	Fields   []Field // of a struct, in order
	Elem     *Schema // of an array's items and of a map's values
	KeyElem  *Schema // of a map's keys
}

// Field is one named field of a struct schema.
type Field struct {
	Name   string
	Schema *Schema
}

// The logical names that Kafka Connect defines.
const (
	DecimalName   = "org.apache.kafka.connect.data.Decimal"   // bytes; parameter "scale"
	DateName      = "org.apache.kafka.connect.data.Date"      // int32, days since 1970
	TimeName      = "org.apache.kafka.connect.data.Time"      // int32, ms since midnight
	TimestampName = "org.apache.kafka.connect.data.Timestamp" // int64, ms since 1970 UTC
)

// Of returns a required schema of a kind without name.
func Of(k Kind) *Schema { return &Schema{Kind: k} }

// OptionalOf returns an optional schema of a kind without name.
func OptionalOf(k Kind) *Schema { return &Schema{Kind: k, Optional: true} }

// DecimalSchema returns the schema of a decimal with that scale.
func DecimalSchema(scale int) *Schema {
	return &Schema{Kind: KindBytes, Name: DecimalName, Version: 1, Params: map[string]string{"scale": strconv.Itoa(scale)}}
}

// AsOptional returns the schema itself when it is optional, or an optional copy.
func (s *Schema) AsOptional() *Schema {
	if s.Optional {
		return s
	}
	c := *s
	c.Optional = true
	return &c
}

// FieldIndex returns the position of a struct's field, or -1.
func (s *Schema) FieldIndex(name string) int {
	return slices.IndexFunc(s.Fields, func(f Field) bool { return f.Name == name })
}

// Equal reports whether two schemas describe the same in every respect. Two nil
// schemas are equal.
func (s *Schema) Equal(t *Schema) bool {
	if s == t {
		return true
	}
	if s == nil || t == nil {
		return false
	}
	if s.Kind != t.Kind || s.Optional != t.Optional || s.Name != t.Name || s.Version != t.Version || s.Doc != t.Doc {
		return false
	}
	if !maps.Equal(s.Params, t.Params) || !equalDefaults(s.Default, t.Default) {
		return false
	}
	return s.Elem.Equal(t.Elem) && s.KeyElem.Equal(t.KeyElem) && slices.EqualFunc(s.Fields, t.Fields,
		func(a, b Field) bool { return a.Name == b.Name && a.Schema.Equal(b.Schema) })
}

func equalDefaults(a, b *Value) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Equal(*b)
}
