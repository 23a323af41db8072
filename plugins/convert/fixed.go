package convert

import (
	"encoding/binary"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/millrace-io/millrace/plugins/sdk"
)

// fixedConverter stores one number big-endian, one boolean as a byte, or bytes
// as they are.
type fixedConverter struct {
	kind   sdk.Kind
	schema *sdk.Schema
}

func (c fixedConverter) size() int {
	switch c.kind {
	case sdk.KindBool:
		return 1
	case sdk.KindInt16:
		return 2
	case sdk.KindInt32, sdk.KindFloat32:
		return 4
	}
	return 8
}

// Encode appends the value's fixed form.
func (c fixedConverter) Encode(dst []byte, d sdk.Data) ([]byte, error) {
	if d.Raw {
		return encodeRaw(dst, d)
	}
	if d.Schema != nil && d.Schema.Kind != c.kind {
		return nil, dataError("invalid schema type %s, the converter takes %s", d.Schema.Kind, c.kind)
	}
	if d.Value.IsNull() {
		return nil, nil
	}
	if d.Value.Kind() != c.kind {
		return nil, dataError("invalid type %s, the converter takes %s", d.Value.Kind(), c.kind)
	}
	switch c.kind {
	case sdk.KindBytes:
		return notNil(append(dst, d.Value.Bytes()...)), nil
	case sdk.KindBool:
		if d.Value.Bool() {
			return append(dst, 1), nil
		}
		return append(dst, 0), nil
	case sdk.KindInt16:
		return binary.BigEndian.AppendUint16(dst, uint16(d.Value.Int())), nil
	case sdk.KindInt32:
		return binary.BigEndian.AppendUint32(dst, uint32(d.Value.Int())), nil
	case sdk.KindInt64:
		return binary.BigEndian.AppendUint64(dst, uint64(d.Value.Int())), nil
	case sdk.KindFloat32:
		return binary.BigEndian.AppendUint32(dst, math.Float32bits(float32(d.Value.Float()))), nil
	}
	return binary.BigEndian.AppendUint64(dst, math.Float64bits(d.Value.Float())), nil
}

// Decode reads the fixed form; another length is an error.
func (c fixedConverter) Decode(b []byte) (sdk.Data, error) {
	d := sdk.Data{Schema: c.schema}
	if b == nil {
		return d, nil
	}
	if c.kind == sdk.KindBytes {
		d.Value = sdk.Bytes(b)
		return d, nil
	}
	if len(b) != c.size() {
		return sdk.Data{}, dataError("size of data received by the %s converter is not %d but %d", c.kind, c.size(), len(b))
	}
	switch c.kind {
	case sdk.KindBool:
		if b[0] > 1 {
			return sdk.Data{}, dataError("the byte 0x%02x is not a boolean", b[0])
		}
		d.Value = sdk.Bool(b[0] == 1)
	case sdk.KindInt16:
		d.Value = sdk.Int16(int16(binary.BigEndian.Uint16(b)))
	case sdk.KindInt32:
		d.Value = sdk.Int32(int32(binary.BigEndian.Uint32(b)))
	case sdk.KindInt64:
		d.Value = sdk.Int64(int64(binary.BigEndian.Uint64(b)))
	case sdk.KindFloat32:
		d.Value = sdk.Float32(math.Float32frombits(binary.BigEndian.Uint32(b)))
	default:
		d.Value = sdk.Float64(math.Float64frombits(binary.BigEndian.Uint64(b)))
	}
	return d, nil
}

type stringConfig struct{ encoding string }

func (c *stringConfig) define(d *sdk.Def) {
	d.String(&c.encoding, "converter.encoding", "The name of the character set to use for encoding strings as byte arrays; UTF-8 only.", sdk.Default("UTF-8"))
}

func defineString(d *sdk.Def) { new(stringConfig).define(d) }

// stringConverter stores the text form of anything.
type stringConverter struct{ schema *sdk.Schema }

func newString(config map[string]string) (stringConverter, error) {
	var c stringConfig
	var d sdk.Def
	c.define(&d)
	if err := d.Parse(config).Errors().OrNil(); err != nil {
		return stringConverter{}, err
	}
	if !strings.EqualFold(c.encoding, "UTF-8") && !strings.EqualFold(c.encoding, "UTF8") {
		return stringConverter{}, sdk.FieldError("converter.encoding", "config.invalid", "encoding %q is not supported, only UTF-8", c.encoding)
	}
	return stringConverter{sdk.OptionalOf(sdk.KindString)}, nil
}

// Encode appends the text form, that of Java's toString.
func (c stringConverter) Encode(dst []byte, d sdk.Data) ([]byte, error) {
	if d.Raw {
		return encodeRaw(dst, d)
	}
	if d.Value.IsNull() {
		return nil, nil
	}
	return notNil(appendJava(dst, d.Schema, d.Value)), nil
}

// Decode reads the bytes as text.
func (c stringConverter) Decode(b []byte) (sdk.Data, error) {
	d := sdk.Data{Schema: c.schema}
	switch {
	case b == nil:
	case utf8.Valid(b):
		d.Value = sdk.String(unsafeString(b))
	default:
		d.Value = sdk.String(strings.ToValidUTF8(string(b), "\uFFFD"))
	}
	return d, nil
}

// appendJava prints a value as Java's toString does; bytes as they are and
// temporal values in ISO form, where Java has nothing readable.
func appendJava(dst []byte, s *sdk.Schema, v sdk.Value) []byte {
	switch v.Kind() {
	case sdk.KindNull:
		return append(dst, "null"...)
	case sdk.KindBool:
		return strconv.AppendBool(dst, v.Bool())
	case sdk.KindFloat32:
		return appendFloat(dst, v.Float(), 32)
	case sdk.KindFloat64:
		return appendFloat(dst, v.Float(), 64)
	case sdk.KindString:
		return append(dst, v.Str()...)
	case sdk.KindBytes:
		if s != nil && s.Name == sdk.DecimalName {
			if scale, err := decimalScale(s); err == nil {
				return appendDecimal(dst, v.Bytes(), scale)
			}
		}
		return append(dst, v.Bytes()...)
	case sdk.KindArray:
		dst = append(dst, '[')
		for i, item := range v.Items() {
			if i > 0 {
				dst = append(dst, ", "...)
			}
			dst = appendJava(dst, elemOf(s), item)
		}
		return append(dst, ']')
	case sdk.KindMap:
		dst = append(dst, '{')
		for i, e := range v.Entries() {
			if i > 0 {
				dst = append(dst, ", "...)
			}
			dst = append(appendJava(dst, nil, e.Key), '=')
			dst = appendJava(dst, elemOf(s), e.Value)
		}
		return append(dst, '}')
	case sdk.KindStruct:
		return appendStruct(dst, s, v.Items())
	}
	if out, ok := appendTemporal(dst, s, v); ok {
		return out
	}
	return strconv.AppendInt(dst, v.Int(), 10)
}

func elemOf(s *sdk.Schema) *sdk.Schema {
	if s == nil {
		return nil
	}
	return s.Elem
}

// appendStruct prints Struct{a=1,b=x}, fields that are null left out.
func appendStruct(dst []byte, s *sdk.Schema, items []sdk.Value) []byte {
	dst = append(dst, "Struct{"...)
	first := true
	for i, item := range items {
		if item.IsNull() || s == nil || i >= len(s.Fields) {
			continue
		}
		if !first {
			dst = append(dst, ',')
		}
		first = false
		dst = append(append(dst, s.Fields[i].Name...), '=')
		dst = appendJava(dst, s.Fields[i].Schema, item)
	}
	return append(dst, '}')
}
