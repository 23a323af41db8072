package convert

import (
	"math"
	"strconv"

	"github.com/millrace-io/millrace/plugins/sdk"
)

// plan is a schema prepared for encoding: names quoted, children resolved.
type plan struct {
	schema  *sdk.Schema
	text    []byte // {"schema":...,"payload": ; made on first use
	fields  []fieldPlan
	elem    *plan
	key     *plan
	decimal bool
	scale   int
	err     error // the schema itself is at fault
}

type fieldPlan struct {
	prefix []byte // {"name": or ,"name":
	plan   *plan
}

// maxPlans bounds the schemas kept prepared; all are forgotten beyond it.
const maxPlans = 4096

type encoder struct {
	base64  bool // decimals as base64 text, not as numbers
	keepNil bool // null stays null although the schema has a default
	plans   map[*sdk.Schema]*plan
	last    *plan
}

// plan returns the prepared form of a schema, which is immutable and shared by
// pointer.
func (e *encoder) plan(s *sdk.Schema) *plan {
	if e.last != nil && e.last.schema == s {
		return e.last
	}
	p, ok := e.plans[s]
	if !ok {
		if len(e.plans) >= maxPlans || e.plans == nil {
			e.plans = make(map[*sdk.Schema]*plan)
		}
		p = e.prepare(s)
		e.plans[s] = p
	}
	e.last = p
	return p
}

func (e *encoder) prepare(s *sdk.Schema) *plan {
	p := &plan{schema: s}
	switch s.Kind {
	case sdk.KindStruct:
		p.fields = make([]fieldPlan, len(s.Fields))
		for i, f := range s.Fields {
			open := byte(',')
			if i == 0 {
				open = '{'
			}
			prefix := append(appendQuoted([]byte{open}, f.Name), ':')
			p.fields[i] = fieldPlan{prefix, e.prepare(f.Schema)}
		}
	case sdk.KindArray:
		p.elem = e.prepare(s.Elem)
	case sdk.KindMap:
		p.key, p.elem = e.prepare(s.KeyElem), e.prepare(s.Elem)
	case sdk.KindBytes:
		if s.Name == sdk.DecimalName {
			p.decimal = true
			p.scale, p.err = decimalScale(s)
		}
	}
	return p
}

// envelope returns the envelope's text up to the payload.
func (e *encoder) envelope(p *plan) []byte {
	if p.text == nil {
		p.text = append(e.schema([]byte(`{"schema":`), p.schema, ""), `,"payload":`...)
	}
	return p.text
}

// value appends a value that has a schema.
func (e *encoder) value(dst []byte, p *plan, v sdk.Value) ([]byte, error) {
	if v.Kind() != p.schema.Kind {
		return e.otherKind(dst, p, v)
	}
	switch v.Kind() {
	case sdk.KindStruct:
		return e.structure(dst, p, v.Items())
	case sdk.KindString:
		return appendQuoted(dst, v.Str()), nil
	case sdk.KindInt8, sdk.KindInt16, sdk.KindInt32, sdk.KindInt64:
		return strconv.AppendInt(dst, v.Int(), 10), nil
	case sdk.KindBool:
		return strconv.AppendBool(dst, v.Bool()), nil
	case sdk.KindFloat32:
		return appendJSONFloat(dst, v.Float(), 32), nil
	case sdk.KindFloat64:
		return appendJSONFloat(dst, v.Float(), 64), nil
	case sdk.KindBytes:
		return e.bytes(dst, p, v.Bytes())
	case sdk.KindArray:
		return e.array(dst, p, v.Items())
	}
	return e.entries(dst, p, v.Entries())
}

// otherKind deals with null and with values that do not match their schema.
func (e *encoder) otherKind(dst []byte, p *plan, v sdk.Value) ([]byte, error) {
	s := p.schema
	switch {
	case !v.IsNull():
		return dst, dataError("invalid type for %s: the value is %s", s.Kind, v.Kind())
	case s.Default != nil && !e.keepNil && !s.Default.IsNull():
		return e.value(dst, p, *s.Default)
	case s.Optional:
		return append(dst, "null"...), nil
	}
	return dst, dataError("null value for field that is required and has no default value")
}

func (e *encoder) structure(dst []byte, p *plan, items []sdk.Value) ([]byte, error) {
	if len(items) != len(p.fields) {
		return dst, dataError("the struct has %d fields and its schema %d", len(items), len(p.fields))
	}
	if len(items) == 0 {
		return append(dst, "{}"...), nil
	}
	var err error
	for i := range items {
		f := &p.fields[i]
		dst = append(dst, f.prefix...)
		if dst, err = e.value(dst, f.plan, items[i]); err != nil {
			return dst, in(p.schema.Fields[i].Name, err)
		}
	}
	return append(dst, '}'), nil
}

func (e *encoder) bytes(dst []byte, p *plan, b []byte) ([]byte, error) {
	if p.err != nil {
		return dst, p.err
	}
	if p.decimal && !e.base64 {
		return appendDecimal(dst, b, p.scale), nil
	}
	return appendBase64(dst, b), nil
}

func (e *encoder) array(dst []byte, p *plan, items []sdk.Value) ([]byte, error) {
	dst = append(dst, '[')
	var err error
	for i := range items {
		if i > 0 {
			dst = append(dst, ',')
		}
		if dst, err = e.value(dst, p.elem, items[i]); err != nil {
			return dst, inItem(i, err)
		}
	}
	return append(dst, ']'), nil
}

// entries appends a map: an object when the schema's keys are strings, pairs
// otherwise.
func (e *encoder) entries(dst []byte, p *plan, entries []sdk.Entry) ([]byte, error) {
	object := p.key.schema.Kind == sdk.KindString
	open, end := byte('['), byte(']')
	if object {
		open, end = '{', '}'
	}
	dst = append(dst, open)
	var err error
	for i := range entries {
		if i > 0 {
			dst = append(dst, ',')
		}
		if object {
			if entries[i].Key.Kind() != sdk.KindString {
				return dst, dataError("a map with string keys has a key of type %s", entries[i].Key.Kind())
			}
			dst = append(appendQuoted(dst, entries[i].Key.Str()), ':')
		} else {
			dst = append(dst, '[')
			if dst, err = e.value(dst, p.key, entries[i].Key); err != nil {
				return dst, in("key", err)
			}
			dst = append(dst, ',')
		}
		if dst, err = e.value(dst, p.elem, entries[i].Value); err != nil {
			return dst, in("value", err)
		}
		if !object {
			dst = append(dst, ']')
		}
	}
	return append(dst, end), nil
}

// free appends a value without schema.
func (e *encoder) free(dst []byte, v sdk.Value) ([]byte, error) {
	switch v.Kind() {
	case sdk.KindNull:
		return append(dst, "null"...), nil
	case sdk.KindBool:
		return strconv.AppendBool(dst, v.Bool()), nil
	case sdk.KindInt8, sdk.KindInt16, sdk.KindInt32, sdk.KindInt64:
		return strconv.AppendInt(dst, v.Int(), 10), nil
	case sdk.KindFloat32:
		return appendJSONFloat(dst, v.Float(), 32), nil
	case sdk.KindFloat64:
		return appendJSONFloat(dst, v.Float(), 64), nil
	case sdk.KindString:
		return appendQuoted(dst, v.Str()), nil
	case sdk.KindBytes:
		return appendBase64(dst, v.Bytes()), nil
	case sdk.KindArray:
		return e.freeArray(dst, v.Items())
	case sdk.KindMap:
		return e.freeMap(dst, v.Entries())
	}
	return dst, dataError("a struct needs a schema")
}

func (e *encoder) freeArray(dst []byte, items []sdk.Value) ([]byte, error) {
	dst = append(dst, '[')
	var err error
	for i := range items {
		if i > 0 {
			dst = append(dst, ',')
		}
		if dst, err = e.free(dst, items[i]); err != nil {
			return dst, inItem(i, err)
		}
	}
	return append(dst, ']'), nil
}

func (e *encoder) freeMap(dst []byte, entries []sdk.Entry) ([]byte, error) {
	object := true
	for i := range entries {
		object = object && entries[i].Key.Kind() == sdk.KindString
	}
	open, end := byte('['), byte(']')
	if object {
		open, end = '{', '}'
	}
	dst = append(dst, open)
	var err error
	for i := range entries {
		if i > 0 {
			dst = append(dst, ',')
		}
		if !object {
			dst = append(dst, '[')
		}
		if dst, err = e.free(dst, entries[i].Key); err != nil {
			return dst, err
		}
		if object {
			dst = append(dst, ':')
		} else {
			dst = append(dst, ',')
		}
		if dst, err = e.free(dst, entries[i].Value); err != nil {
			return dst, err
		}
		if !object {
			dst = append(dst, ']')
		}
	}
	return append(dst, end), nil
}

// appendJSONFloat prints what JSON has no number for as text, as Connect does.
func appendJSONFloat(dst []byte, f float64, bits int) []byte {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		dst = append(dst, '"')
		return append(appendFloat(dst, f, bits), '"')
	}
	return appendFloat(dst, f, bits)
}
