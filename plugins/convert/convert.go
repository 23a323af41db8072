// Package convert turns sdk values into the bytes that stand in the log and
// back. A converter is named by its Java class, so that configs written for
// Kafka Connect run unchanged, and its text is Connect's to the byte: floats,
// escapes, decimals and schemas come out as JsonConverter prints them.
//
// Two points differ from Connect on purpose. Reading is strict: a number that
// does not fit its type, or a text where a number is declared, is an error
// instead of a silently different value. And decoded strings and bytes share the
// memory of the input, which must therefore not change afterwards.
package convert

import (
	"fmt"
	"strings"

	"github.com/millrace-io/millrace/plugins/sdk"
)

// Side says what a converter is used for.
type Side uint8

// The sides.
const (
	Key Side = iota
	Value
	Header
)

// String returns the side's name as Connect's key converter.type has it.
func (s Side) String() string {
	switch s {
	case Key:
		return "key"
	case Value:
		return "value"
	}
	return "header"
}

// Converter encodes and decodes one side of records. It is used by one
// goroutine at a time.
type Converter interface {
	// Encode appends d to dst and returns it, or returns nil when d is null and
	// is stored as no bytes at all. Raw data is appended as it is.
	Encode(dst []byte, d sdk.Data) ([]byte, error)

	// Decode reads what Encode wrote; nil bytes are null. The result shares b.
	Decode(b []byte) (sdk.Data, error)
}

// SchemaDecoder is implemented by a converter that can read bytes without a
// schema of their own when the schema is known from elsewhere.
type SchemaDecoder interface {
	DecodeAs(schema *sdk.Schema, b []byte) (sdk.Data, error)
}

// Class describes one converter class for listings and documentation.
type Class struct {
	Name    string
	Aliases []string
	Type    string // "converter" or "header_converter"
	Define  func(*sdk.Def)
}

const (
	jsonClass   = "org.apache.kafka.connect.json.JsonConverter"
	stringClass = "org.apache.kafka.connect.storage.StringConverter"
	headerClass = "org.apache.kafka.connect.storage.SimpleHeaderConverter"
	numbers     = "org.apache.kafka.connect.converters."
)

// fixed lists the converters of one value in fixed bytes.
var fixed = []struct {
	name string
	kind sdk.Kind
}{
	{"ByteArrayConverter", sdk.KindBytes},
	{"BooleanConverter", sdk.KindBool},
	{"ShortConverter", sdk.KindInt16},
	{"IntegerConverter", sdk.KindInt32},
	{"LongConverter", sdk.KindInt64},
	{"FloatConverter", sdk.KindFloat32},
	{"DoubleConverter", sdk.KindFloat64},
}

// Classes returns every converter class, those for records first.
func Classes() []Class {
	classes := []Class{
		{jsonClass, []string{"JsonConverter", "Json", "json"}, "converter", defineJSON},
		{stringClass, []string{"StringConverter", "String", "string"}, "converter", defineString},
	}
	for _, f := range fixed {
		short := strings.TrimSuffix(f.name, "Converter")
		aliases := []string{f.name, short, strings.ToLower(short)}
		if f.kind == sdk.KindBytes {
			aliases = append(aliases, "bytes")
		}
		classes = append(classes, Class{numbers + f.name, aliases, "converter", defineNothing})
	}
	for _, c := range classes {
		c.Type = "header_converter"
		classes = append(classes, c)
	}
	return append(classes, Class{
		headerClass, []string{"SimpleHeaderConverter", "SimpleHeader", "simple"}, "header_converter", defineNothing,
	})
}

func defineNothing(*sdk.Def) {}

// New makes the converter of a class, named in full or by an alias. config holds
// its own keys, without the prefix.
func New(class string, side Side, config map[string]string) (Converter, error) {
	name := resolve(class)
	switch name {
	case jsonClass:
		return newJSON(side, config)
	case stringClass:
		return newString(config)
	case headerClass:
		if side != Header {
			return nil, sdk.Errorf(sdk.Invalid, "converter.side", "%s converts headers only, not a %s", headerClass, side)
		}
		return simpleHeader{}, nil
	}
	for _, f := range fixed {
		if numbers+f.name == name {
			return fixedConverter{kind: f.kind, schema: sdk.OptionalOf(f.kind)}, nil
		}
	}
	return nil, sdk.Errorf(sdk.Invalid, "converter.unknown", "unknown %s converter %q; known are %s", side, class, known())
}

func resolve(class string) string {
	for _, c := range Classes() {
		if c.Name == class {
			return c.Name
		}
		for _, a := range c.Aliases {
			if a == class {
				return c.Name
			}
		}
	}
	return ""
}

func known() string {
	var names []string
	for _, c := range Classes() {
		if c.Type == "converter" || c.Name == headerClass {
			names = append(names, c.Aliases[0])
		}
	}
	return strings.Join(names, ", ")
}

// dataError makes the error of a value that cannot be converted.
func dataError(format string, args ...any) *sdk.Error {
	return sdk.Errorf(sdk.Invalid, "record.conversion", format, args...)
}

// pathError is a dataError on its way up through fields.
type pathError struct {
	path string
	err  error
}

func (e *pathError) Error() string { return "field " + e.path + ": " + e.err.Error() }

func (e *pathError) Unwrap() error { return e.err }

// in adds the name of the field or item in which err was met.
func in(name string, err error) error {
	if p, ok := err.(*pathError); ok { //nolint:errorlint // only the outermost one grows
		if strings.HasPrefix(p.path, "[") {
			return &pathError{name + p.path, p.err}
		}
		return &pathError{name + "." + p.path, p.err}
	}
	return &pathError{name, err}
}

func inItem(i int, err error) error { return in(fmt.Sprintf("[%d]", i), err) }

// finish turns an inner error into the one a caller sees.
func finish(side Side, what string, err error) error {
	return sdk.Errorf(sdk.Invalid, "record.conversion", "%s %s: %w", what, side, err)
}
