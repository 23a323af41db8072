package convert

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/millrace-io/millrace/plugins/sdk"
)

// shownBytes is how much of an unreadable document an error prints.
const shownBytes = 200

// maxSchemas bounds the parsed schemas kept by their text.
const maxSchemas = 1000

type jsonConfig struct {
	schemas     bool
	cacheSize   int
	decimals    string
	replaceNull bool
	content     string
}

func (c *jsonConfig) define(d *sdk.Def) {
	d.Bool(&c.schemas, "schemas.enable", "Include schemas within each of the serialized values and keys.", sdk.Default("true"))
	d.Int(&c.cacheSize, "schemas.cache.size", "The maximum number of schemas that can be cached in this converter instance.",
		sdk.Default("1000"), sdk.AtLeast(0), sdk.Ignored("the cache has a fixed bound."))
	d.String(&c.decimals, "decimal.format", "How decimals are written: BASE64 text of the unscaled bytes, or NUMERIC.",
		sdk.Default("BASE64"), sdk.Low(), sdk.Check(func(s string) error {
			if !strings.EqualFold(s, "BASE64") && !strings.EqualFold(s, "NUMERIC") {
				return fmt.Errorf("String must be one of: BASE64, NUMERIC")
			}
			return nil
		}))
	d.Bool(&c.replaceNull, "replace.null.with.default", "Whether to replace fields that have a default value and that are null to the default value.",
		sdk.Default("true"), sdk.Low())
	d.String(&c.content, "schema.content", "With schemas.enable, sinks only: every message is a bare payload of this schema, in JSON form.", sdk.Default(""))
}

func defineJSON(d *sdk.Def) { new(jsonConfig).define(d) }

type jsonConverter struct {
	side    Side
	schemas bool
	content *sdk.Schema // set: bare payloads of this schema
	enc     encoder
	parsed  map[string]*sdk.Schema // by the schema's text
}

func newJSON(side Side, config map[string]string) (*jsonConverter, error) {
	var c jsonConfig
	var d sdk.Def
	c.define(&d)
	if err := d.Parse(config).Errors().OrNil(); err != nil {
		return nil, err
	}
	j := &jsonConverter{
		side: side, schemas: c.schemas, parsed: make(map[string]*sdk.Schema),
		enc: encoder{base64: strings.EqualFold(c.decimals, "BASE64"), keepNil: !c.replaceNull},
	}
	if c.schemas && c.content != "" {
		s, err := ParseSchema([]byte(c.content))
		if err != nil {
			return nil, sdk.FieldError("schema.content", "config.invalid", "schema.content is not a schema: %w", err)
		}
		j.content = s
	}
	return j, nil
}

// Encode appends the JSON text of d.
func (j *jsonConverter) Encode(dst []byte, d sdk.Data) ([]byte, error) {
	if d.Raw {
		return encodeRaw(dst, d)
	}
	var err error
	if d.Schema == nil {
		if d.Value.IsNull() {
			return nil, nil
		}
		if !j.schemas {
			dst, err = j.enc.free(dst, d.Value)
		} else if dst, err = j.enc.free(append(dst, `{"schema":null,"payload":`...), d.Value); err == nil {
			dst = append(dst, '}')
		}
	} else {
		p := j.enc.plan(d.Schema)
		if !j.schemas {
			dst, err = j.enc.value(dst, p, d.Value)
		} else if dst, err = j.enc.value(append(dst, j.enc.envelope(p)...), p, d.Value); err == nil {
			dst = append(dst, '}')
		}
	}
	if err != nil {
		return nil, finish(j.side, "encode", err)
	}
	return dst, nil
}

// encodeRaw appends bytes that are in their stored form already.
func encodeRaw(dst []byte, d sdk.Data) ([]byte, error) {
	if d.Value.IsNull() {
		return nil, nil
	}
	return notNil(append(dst, d.Value.Bytes()...)), nil
}

func notNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// Decode reads an envelope, or plain JSON when schemas are off.
func (j *jsonConverter) Decode(b []byte) (sdk.Data, error) {
	if b == nil {
		return sdk.Data{}, nil
	}
	switch {
	case !j.schemas:
		return j.DecodeAs(nil, b)
	case j.content != nil:
		return j.DecodeAs(j.content, b)
	}
	d, err := j.envelope(b)
	if err != nil {
		return sdk.Data{}, finish(j.side, "decode", err)
	}
	return d, nil
}

// DecodeAs reads plain JSON that is known to have a schema; nil reads it without
// one.
func (j *jsonConverter) DecodeAs(schema *sdk.Schema, b []byte) (sdk.Data, error) {
	p := parser{b: b, keepNil: j.enc.keepNil}
	if b == nil || p.peek() == 0 && p.i >= len(b) {
		return sdk.Data{}, nil
	}
	d := sdk.Data{Schema: schema}
	var err error
	if schema == nil {
		d.Value, err = p.free()
	} else {
		d.Value, err = p.typed(schema)
	}
	if err != nil {
		return sdk.Data{}, finish(j.side, "decode", err)
	}
	return d, nil
}

// envelope reads {"schema":...,"payload":...}, its members in any order.
func (j *jsonConverter) envelope(b []byte) (sdk.Data, error) {
	p := parser{b: b, keepNil: j.enc.keepNil}
	if p.peek() != '{' {
		if p.i < len(b) {
			if err := p.skip(); err != nil {
				return sdk.Data{}, err
			}
		}
		return sdk.Data{}, noEnvelope(b)
	}
	var schema, payload []byte
	others := false
	err := p.members(func(name string) error {
		p.space()
		start := p.i
		if err := p.skip(); err != nil {
			return err
		}
		switch name {
		case "schema":
			schema = b[start:p.i]
		case "payload":
			payload = b[start:p.i]
		default:
			others = true
		}
		return nil
	})
	if err != nil {
		return sdk.Data{}, err
	}
	if others || schema == nil || payload == nil {
		return sdk.Data{}, noEnvelope(b)
	}
	s, err := j.schemaOf(schema)
	if err != nil {
		return sdk.Data{}, err
	}
	d := sdk.Data{Schema: s}
	p = parser{b: payload, keepNil: j.enc.keepNil}
	if s == nil {
		d.Value, err = p.free()
	} else {
		d.Value, err = p.typed(s)
	}
	return d, err
}

func noEnvelope(b []byte) error {
	shown := b[:min(len(b), shownBytes)]
	for len(shown) > 0 && !utf8.Valid(shown) && len(shown) > shownBytes-4 {
		shown = shown[:len(shown)-1]
	}
	return dataError("JsonConverter with schemas.enable requires \"schema\" and \"payload\" fields and may not contain additional fields. "+
		"If you are trying to deserialize plain JSON data, set schemas.enable=false in your converter configuration. The data begins with %q", shown)
}

// schemaOf parses a schema's text once; equal texts share one schema.
func (j *jsonConverter) schemaOf(text []byte) (*sdk.Schema, error) {
	if s, ok := j.parsed[string(text)]; ok {
		return s, nil
	}
	s, err := ParseSchema(append([]byte(nil), text...))
	if err != nil {
		return nil, err
	}
	if len(j.parsed) >= maxSchemas {
		clear(j.parsed)
	}
	j.parsed[string(text)] = s
	return s, nil
}
