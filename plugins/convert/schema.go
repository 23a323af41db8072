package convert

import (
	"slices"
	"strconv"

	"github.com/millrace-io/millrace/plugins/sdk"
)

// AppendSchema appends the schema in the JSON form of Connect's envelopes: the
// members in Connect's order, those without a value left out.
func AppendSchema(dst []byte, s *sdk.Schema) []byte {
	e := encoder{base64: true}
	return e.schema(dst, s, "")
}

// schema appends a schema, as a struct's field when it has a name.
func (e *encoder) schema(dst []byte, s *sdk.Schema, field string) []byte {
	dst = append(dst, `{"type":"`...)
	dst = append(dst, s.Kind.String()...)
	dst = append(dst, '"')
	switch s.Kind {
	case sdk.KindStruct:
		dst = append(dst, `,"fields":[`...)
		for i, f := range s.Fields {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = e.schema(dst, f.Schema, f.Name)
		}
		dst = append(dst, ']')
	case sdk.KindArray:
		dst = e.schema(append(dst, `,"items":`...), s.Elem, "")
	case sdk.KindMap:
		dst = e.schema(append(dst, `,"keys":`...), s.KeyElem, "")
		dst = e.schema(append(dst, `,"values":`...), s.Elem, "")
	}
	dst = strconv.AppendBool(append(dst, `,"optional":`...), s.Optional)
	if s.Name != "" {
		dst = appendQuoted(append(dst, `,"name":`...), s.Name)
	}
	if s.Version != 0 {
		dst = strconv.AppendInt(append(dst, `,"version":`...), int64(s.Version), 10)
	}
	if s.Doc != "" {
		dst = appendQuoted(append(dst, `,"doc":`...), s.Doc)
	}
	if len(s.Params) > 0 {
		dst = appendParams(append(dst, `,"parameters":{`...), s.Params)
		dst = append(dst, '}')
	}
	if s.Default != nil {
		dst = append(dst, `,"default":`...)
		if out, err := e.value(dst, e.prepare(s), *s.Default); err == nil {
			dst = out
		} else {
			dst = append(dst, "null"...)
		}
	}
	if field != "" {
		dst = appendQuoted(append(dst, `,"field":`...), field)
	}
	return append(dst, '}')
}

// paramOrder is the order in which Connect and Debezium set the parameters they
// know; a schema here does not remember one. Others follow by name.
var paramOrder = []string{
	"allowed", "length", "scale", "connect.decimal.precision",
	"__debezium.source.column.type", "__debezium.source.column.length", "__debezium.source.column.scale",
	"__debezium.source.column.comment", "__debezium.source.column.name",
}

func appendParams(dst []byte, params map[string]string) []byte {
	names := make([]string, 0, len(params))
	for _, n := range paramOrder {
		if _, ok := params[n]; ok {
			names = append(names, n)
		}
	}
	known := len(names)
	for n := range params {
		if !slices.Contains(names[:known], n) {
			names = append(names, n)
		}
	}
	slices.Sort(names[known:])
	for i, n := range names {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(appendQuoted(dst, n), ':')
		dst = appendQuoted(dst, params[n])
	}
	return dst
}

// ParseSchema reads the JSON form of a schema.
func ParseSchema(b []byte) (*sdk.Schema, error) {
	p := parser{b: b}
	v, err := p.free()
	if err != nil {
		return nil, err
	}
	return schemaOf(v)
}

// schemaOf builds a schema from its parsed JSON; JSON null is no schema.
func schemaOf(v sdk.Value) (*sdk.Schema, error) {
	if v.IsNull() {
		return nil, nil
	}
	name, ok := v.Lookup("type")
	if !ok || name.Kind() != sdk.KindString {
		return nil, dataError("Schema must contain 'type' field")
	}
	s := &sdk.Schema{Kind: kindNamed(name.Str())}
	var err error
	switch s.Kind {
	case sdk.KindNull:
		return nil, dataError("Unknown schema type: %s", name.Str())
	case sdk.KindStruct:
		s.Fields, err = fieldsOf(v)
	case sdk.KindArray:
		s.Elem, err = partOf(v, "items")
	case sdk.KindMap:
		if s.KeyElem, err = partOf(v, "keys"); err == nil {
			s.Elem, err = partOf(v, "values")
		}
	}
	if err != nil {
		return nil, err
	}
	return s, attributes(s, v)
}

func kindNamed(name string) sdk.Kind {
	for k := sdk.KindBool; k <= sdk.KindStruct; k++ {
		if k.String() == name {
			return k
		}
	}
	return sdk.KindNull
}

func partOf(v sdk.Value, member string) (*sdk.Schema, error) {
	part, _ := v.Lookup(member)
	if part.IsNull() {
		return nil, dataError("the schema's %q member is missing", member)
	}
	return schemaOf(part)
}

func fieldsOf(v sdk.Value) ([]sdk.Field, error) {
	list, _ := v.Lookup("fields")
	if list.Kind() != sdk.KindArray {
		return nil, dataError("Struct schema's \"fields\" argument is not an array.")
	}
	fields := make([]sdk.Field, 0, len(list.Items()))
	for _, item := range list.Items() {
		name, ok := item.Lookup("field")
		if !ok || name.Kind() != sdk.KindString {
			return nil, dataError("Struct schema's field name not specified properly")
		}
		s, err := schemaOf(item)
		if err != nil {
			return nil, in(name.Str(), err)
		}
		if s == nil {
			return nil, dataError("the field %q has no schema", name.Str())
		}
		fields = append(fields, sdk.Field{Name: name.Str(), Schema: s})
	}
	return fields, nil
}

// attributes fills what every kind of schema may have.
func attributes(s *sdk.Schema, v sdk.Value) error {
	if optional, ok := v.Lookup("optional"); ok {
		s.Optional = optional.Bool()
	}
	if name, ok := v.Lookup("name"); ok {
		s.Name = name.Str()
	}
	if version, ok := v.Lookup("version"); ok {
		s.Version = int(version.Int())
	}
	if doc, ok := v.Lookup("doc"); ok {
		s.Doc = doc.Str()
	}
	if params, ok := v.Lookup("parameters"); ok && !params.IsNull() {
		if params.Kind() != sdk.KindMap {
			return dataError("Schema parameters must be an object.")
		}
		s.Params = make(map[string]string, len(params.Entries()))
		for _, e := range params.Entries() {
			if e.Value.Kind() != sdk.KindString {
				return dataError("Schema parameters must have string values.")
			}
			s.Params[e.Key.Str()] = e.Value.Str()
		}
	}
	if def, ok := v.Lookup("default"); ok && !def.IsNull() {
		// The default is read from its text again, now with the schema.
		e := encoder{base64: true}
		text, err := e.free(nil, def)
		if err != nil {
			return err
		}
		p := parser{b: text}
		value, err := p.typed(s)
		if err != nil {
			return in("default", err)
		}
		s.Default = &value
	}
	return nil
}
