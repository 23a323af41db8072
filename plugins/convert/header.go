package convert

import (
	"math"
	"math/big"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/millrace-io/millrace/plugins/sdk"
)

// simpleHeader is Connect's default header converter: it writes text and guesses
// types when it reads, so that the header "007" comes back as the number 7.
type simpleHeader struct{}

// Encode appends the text form: strings verbatim, everything inside lists and
// maps as JSON.
func (simpleHeader) Encode(dst []byte, d sdk.Data) ([]byte, error) {
	if d.Raw {
		return encodeRaw(dst, d)
	}
	if d.Value.IsNull() {
		return nil, nil
	}
	if d.Value.Kind() == sdk.KindString {
		return notNil(append(dst, d.Value.Str()...)), nil
	}
	return appendHeader(dst, d.Schema, d.Value), nil
}

func appendHeader(dst []byte, s *sdk.Schema, v sdk.Value) []byte {
	switch v.Kind() {
	case sdk.KindString:
		return appendQuoted(dst, v.Str())
	case sdk.KindBytes:
		if s != nil && s.Name == sdk.DecimalName {
			return appendJava(dst, s, v)
		}
		b := appendBase64(nil, v.Bytes())
		return append(dst, b[1:len(b)-1]...)
	case sdk.KindArray:
		dst = append(dst, '[')
		for i, item := range v.Items() {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = appendHeader(dst, elemOf(s), item)
		}
		return append(dst, ']')
	case sdk.KindMap:
		dst = append(dst, '{')
		for i, e := range v.Entries() {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = append(appendHeader(dst, nil, e.Key), ':')
			dst = appendHeader(dst, elemOf(s), e.Value)
		}
		return append(dst, '}')
	case sdk.KindStruct:
		dst = append(dst, '{')
		for i, item := range v.Items() {
			if i > 0 {
				dst = append(dst, ',')
			}
			if s == nil || i >= len(s.Fields) {
				break
			}
			dst = append(appendQuoted(dst, s.Fields[i].Name), ':')
			dst = appendHeader(dst, s.Fields[i].Schema, item)
		}
		return append(dst, '}')
	}
	return appendJava(dst, s, v)
}

// Decode guesses the type of the text. Bytes that are no UTF-8 stay bytes.
func (simpleHeader) Decode(b []byte) (sdk.Data, error) {
	if b == nil {
		return sdk.Data{}, nil
	}
	if !utf8.Valid(b) {
		return sdk.Data{Schema: sdk.OptionalOf(sdk.KindBytes), Value: sdk.Bytes(b)}, nil
	}
	return guess(string(b)), nil
}

func guess(text string) sdk.Data {
	trimmed := strings.TrimSpace(text)
	switch trimmed {
	case "null":
		return sdk.Data{}
	case "true", "false":
		return sdk.Data{Schema: sdk.Of(sdk.KindBool), Value: sdk.Bool(trimmed == "true")}
	case "":
		return verbatim(text)
	}
	c := trimmed[0]
	switch {
	case c == '[' || c == '{':
		p := parser{b: []byte(trimmed)}
		v, err := p.free()
		if p.space(); err != nil || p.i < len(p.b) {
			return verbatim(text)
		}
		return nested(v)
	case c >= '0' && c <= '9':
		if d, ok := guessTemporal(trimmed); ok {
			return d
		}
		fallthrough
	case c == '-' || c == '+':
		if d, ok := guessNumber(trimmed); ok {
			return d
		}
	}
	return verbatim(text)
}

func verbatim(text string) sdk.Data {
	return sdk.Data{Schema: sdk.Of(sdk.KindString), Value: sdk.String(text)}
}

func guessTemporal(text string) (sdk.Data, bool) {
	layout, schema := "", &sdk.Schema{Kind: sdk.KindInt32, Version: 1}
	switch len(text) {
	case len(dateLayout):
		layout, schema.Name = dateLayout, sdk.DateName
	case len(timeLayout):
		layout, schema.Name = timeLayout, sdk.TimeName
	case len(timestampLayout):
		layout, schema.Name, schema.Kind = timestampLayout, sdk.TimestampName, sdk.KindInt64
	default:
		return sdk.Data{}, false
	}
	t, err := time.Parse(layout, text)
	if err != nil {
		return sdk.Data{}, false
	}
	switch schema.Name {
	case sdk.DateName:
		return sdk.Data{Schema: schema, Value: sdk.Int32(int32(t.Unix() / 86400))}, true
	case sdk.TimeName:
		ms := t.Hour()*3600_000 + t.Minute()*60_000 + t.Second()*1000 + t.Nanosecond()/1e6
		return sdk.Data{Schema: schema, Value: sdk.Int32(int32(ms))}, true
	}
	return sdk.Data{Schema: schema, Value: sdk.Int64(t.UnixMilli())}, true
}

// guessNumber takes the grammar of Java's BigDecimal and picks the smallest type.
func guessNumber(text string) (sdk.Data, bool) {
	unsigned := strings.TrimPrefix(text, "+")
	if len(unsigned) == len(text) {
		unsigned = strings.TrimPrefix(text, "-")
	}
	digits, fraction := scanNumber(unsigned)
	if digits == 0 || unsigned[0] == '.' {
		return sdk.Data{}, false
	}
	text = strings.TrimPrefix(text, "+")
	if e := strings.IndexAny(text, "eE"); e >= 0 {
		if n, err := strconv.Atoi(text[e+1:]); err != nil || n > maxDecimalExponent || n < -maxDecimalExponent {
			return sdk.Data{}, false
		}
	}
	if n, ok := unscaled(text, 0); ok && !fraction || ok && strings.ContainsAny(text, "eE") {
		if n.IsInt64() {
			return smallest(n.Int64()), true
		}
		return bigHeader(text, n)
	}
	if f, err := strconv.ParseFloat(text, 32); err == nil && !math.IsInf(f, 0) {
		return sdk.Data{Schema: sdk.Of(sdk.KindFloat32), Value: sdk.Float32(float32(f))}, true
	}
	if f, err := strconv.ParseFloat(text, 64); err == nil && !math.IsInf(f, 0) {
		return sdk.Data{Schema: sdk.Of(sdk.KindFloat64), Value: sdk.Float64(f)}, true
	}
	return sdk.Data{}, false
}

// bigHeader keeps a whole number beyond 64 bits as a decimal, in the scale that
// its text has.
func bigHeader(text string, n *big.Int) (sdk.Data, bool) {
	scale := 0
	if e := strings.IndexAny(text, "eE"); e >= 0 {
		exponent, _ := strconv.Atoi(text[e+1:])
		_, fraction, _ := strings.Cut(text[:e], ".")
		scale = len(fraction) - exponent
		n, _ = unscaled(text, scale)
	}
	return sdk.Data{Schema: sdk.DecimalSchema(scale), Value: sdk.Bytes(bigBytes(n))}, true
}

// scanNumber reports the number of digits of a well-formed number without sign,
// 0 for anything else, and whether it has a fraction.
func scanNumber(s string) (digits int, fraction bool) {
	i := 0
	for ; i < len(s) && s[i] >= '0' && s[i] <= '9'; i++ {
		digits++
	}
	if i < len(s) && s[i] == '.' {
		for i++; i < len(s) && s[i] >= '0' && s[i] <= '9'; i++ {
			digits++
			fraction = true
		}
	}
	if digits > 0 && i < len(s) && s[i]|0x20 == 'e' {
		i++
		if i < len(s) && (s[i] == '-' || s[i] == '+') {
			i++
		}
		if i == len(s) {
			return 0, false
		}
		for i < len(s) && s[i] >= '0' && s[i] <= '9' {
			i++
		}
	}
	if i < len(s) {
		return 0, false
	}
	return digits, fraction
}

func smallest(n int64) sdk.Data {
	k := sdk.KindInt64
	switch {
	case n == int64(int8(n)):
		k = sdk.KindInt8
	case n == int64(int16(n)):
		k = sdk.KindInt16
	case n == int64(int32(n)):
		k = sdk.KindInt32
	}
	return sdk.Data{Schema: sdk.Of(k), Value: intOf(k, n)}
}

// nested gives a parsed list or map its narrowest types: one element schema where
// all agree, none where they exclude each other.
func nested(v sdk.Value) sdk.Data {
	switch v.Kind() {
	case sdk.KindInt64:
		return smallest(v.Int())
	case sdk.KindFloat64:
		if f := v.Float(); f == float64(float32(f)) {
			return sdk.Data{Schema: sdk.Of(sdk.KindFloat32), Value: sdk.Float32(float32(f))}
		}
		return sdk.Data{Schema: sdk.Of(sdk.KindFloat64), Value: v}
	case sdk.KindArray:
		parts := make([]sdk.Data, len(v.Items()))
		for i, item := range v.Items() {
			parts[i] = nested(item)
		}
		elem := unify(parts)
		items := make([]sdk.Value, len(parts))
		for i := range parts {
			items[i] = parts[i].Value
		}
		return typedUnless(elem == nil, &sdk.Schema{Kind: sdk.KindArray, Elem: elem}, sdk.Array(items))
	case sdk.KindMap:
		parts := make([]sdk.Data, len(v.Entries()))
		for i, e := range v.Entries() {
			parts[i] = nested(e.Value)
		}
		elem := unify(parts)
		entries := make([]sdk.Entry, len(parts))
		for i, e := range v.Entries() {
			entries[i] = sdk.Entry{Key: e.Key, Value: parts[i].Value}
		}
		s := &sdk.Schema{Kind: sdk.KindMap, KeyElem: sdk.Of(sdk.KindString), Elem: elem}
		return typedUnless(elem == nil, s, sdk.Map(entries))
	case sdk.KindNull:
		return sdk.Data{}
	}
	return sdk.Data{Schema: sdk.Of(v.Kind()), Value: v}
}

// typedUnless leaves the schema away where no element type is known: a schema
// here always has one.
func typedUnless(untyped bool, s *sdk.Schema, v sdk.Value) sdk.Data {
	if untyped {
		return sdk.Data{Value: v}
	}
	return sdk.Data{Schema: s, Value: v}
}

// unify widens all values to one numeric type, or reports nil when the types
// exclude each other.
func unify(parts []sdk.Data) *sdk.Schema {
	var common *sdk.Schema
	optional := false
	for _, p := range parts {
		switch {
		case p.Value.IsNull():
			optional = true
		case p.Schema == nil:
			return nil
		case common == nil:
			common = p.Schema
		case common.Equal(p.Schema):
		case isNumber(common.Kind) && isNumber(p.Schema.Kind):
			common = sdk.Of(max(common.Kind, p.Schema.Kind))
		default:
			return nil
		}
	}
	if common == nil {
		return nil
	}
	for i := range parts {
		parts[i].Value = widen(common.Kind, parts[i].Value)
	}
	if optional {
		return common.AsOptional()
	}
	return common
}

func isNumber(k sdk.Kind) bool { return k >= sdk.KindInt8 && k <= sdk.KindFloat64 }

func widen(k sdk.Kind, v sdk.Value) sdk.Value {
	if v.Kind() == k || !isNumber(v.Kind()) {
		return v
	}
	f := v.Float()
	if v.Kind() < sdk.KindFloat32 {
		f = float64(v.Int())
	}
	switch k {
	case sdk.KindFloat32:
		return sdk.Float32(float32(f))
	case sdk.KindFloat64:
		return sdk.Float64(f)
	}
	return intOf(k, v.Int())
}
