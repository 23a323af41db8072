package convert_test

import (
	"bufio"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/millrace-io/millrace/plugins/convert"
	"github.com/millrace-io/millrace/plugins/sdk"
)

func mustNew(t testing.TB, class string, side convert.Side, config map[string]string) convert.Converter {
	t.Helper()
	c, err := convert.New(class, side, config)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// goldenLines are what a real Kafka Connect answered.
func goldenLines(t *testing.T, prefix string) []string {
	t.Helper()
	f, err := os.Open("testdata/converters.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var lines []string
	s := bufio.NewScanner(f)
	for s.Scan() {
		if rest, ok := strings.CutPrefix(s.Text(), prefix); ok {
			lines = append(lines, rest)
		}
	}
	if len(lines) == 0 {
		t.Fatalf("no golden lines begin with %q", prefix)
	}
	return lines
}

// stricter are golden lines where Connect silently changes the value and we
// report an error, because the contract says so.
var stricter = map[string]bool{
	"123456789012345678901234567890": true,
}

func TestReadLikeConnect(t *testing.T) {
	for _, line := range goldenLines(t, "read  ") {
		input, want, _ := strings.Cut(line, " -> ")
		label, doc, ok := strings.Cut(input, "  ")
		if !ok {
			label, doc, _ = strings.Cut(input, " ")
		}
		config := map[string]string{}
		switch {
		case label == "off" || label == "schemaless" || strings.HasSuffix(label, "schemas off"):
			config["schemas.enable"] = "false"
		case strings.HasPrefix(label, "default opt, replace off"):
			config["replace.null.with.default"] = "false"
		}
		if strings.HasPrefix(label, "schema.content") && label != "schema.content empty" {
			config["schema.content"] = `{"type":"int32"}`
		}
		in := []byte(strings.TrimPrefix(doc, " "))
		switch doc {
		case "null bytes", "bytes":
			in = nil
		case "no bytes":
			in = []byte{}
		case "bad utf-8":
			in = []byte("\"a\xff\"")
		}
		if strings.HasPrefix(label, "off null bytes") || strings.HasSuffix(input, "null bytes") {
			in = nil
		}
		d, err := mustNew(t, "JsonConverter", convert.Value, config).Decode(in)
		got := describe(d)
		if err != nil {
			got = "ERROR"
		}
		lenient := label == "leniency" || label == "bad default" || label == "schema.content" || stricter[doc]
		switch {
		case strings.HasPrefix(want, "ERROR"):
			if err == nil {
				t.Errorf("%s: got %s, want %.80s", input, got, want)
			}
		case err != nil && lenient:
		case doc == `{"schema":{"type":"bytes","name":"org.apache.kafka.connect.data.Decimal","version":1,"parameters":{"scale":"2"}},"payload":2}`:
			want = strings.Replace(want, "(2)", "(2.00)", 1) // one scale per schema here
			fallthrough
		case err != nil && strings.HasSuffix(want, "BigDecimal(2.005)"):
			if err == nil && got != want {
				t.Errorf("%s: got %s, want %s", input, got, want)
			}
		case !sameWords(got, want) && !strings.Contains(want, "9.9999998E10"): // Java before 19 prints a float too long
			t.Errorf("%s: got %s (%v), want %s", input, got, err, want)
		}
	}
}

// sameWords compares two descriptions whose maps may be in different order.
func sameWords(a, b string) bool {
	split := func(s string) []string {
		words := strings.FieldsFunc(s, func(r rune) bool { return r == ' ' || r == '{' || r == '}' })
		slices.Sort(words)
		return words
	}
	return slices.Equal(split(a), split(b))
}

func TestReadStrictlyWhereConnectGuesses(t *testing.T) {
	c := mustNew(t, "JsonConverter", convert.Key, nil)
	for _, doc := range []string{
		`{"schema":{"type":"int32"},"payload":"12"}`,
		`{"schema":{"type":"int8"},"payload":300}`,
		`{"schema":{"type":"int32"},"payload":1.9}`,
		`{"schema":{"type":"boolean"},"payload":0}`,
		`{"schema":{"type":"string"},"payload":true}`,
		`{"schema":{"type":"float"},"payload":1e39}`,
	} {
		d, err := c.Decode([]byte(doc))
		if sdk.CodeOf(err) != sdk.Invalid {
			t.Errorf("%s gave %s, %v", doc, describe(d), err)
		}
	}
	_, err := c.Decode([]byte(`{"a":1}`))
	if err == nil || !strings.Contains(err.Error(), "key") || !strings.Contains(err.Error(), `{\"a\":1}`) {
		t.Errorf("the error names neither side nor data: %v", err)
	}
}

// describe prints data as the golden file does.
func describe(d sdk.Data) string {
	if d.Schema == nil {
		if d.Value.IsNull() {
			return "no schema null"
		}
		return "no schema " + java(nil, d.Value)
	}
	names := map[sdk.Kind]string{
		sdk.KindInt8: "INT8", sdk.KindInt16: "INT16", sdk.KindInt32: "INT32", sdk.KindInt64: "INT64", sdk.KindFloat32: "FLOAT32",
		sdk.KindFloat64: "FLOAT64", sdk.KindBool: "BOOLEAN", sdk.KindString: "STRING", sdk.KindBytes: "BYTES",
		sdk.KindStruct: "STRUCT", sdk.KindMap: "MAP", sdk.KindArray: "ARRAY",
	}
	s := names[d.Schema.Kind]
	if d.Schema.Optional {
		s += "?"
	}
	if d.Schema.Name != "" {
		s += " " + d.Schema.Name
	}
	return s + " " + java(d.Schema, d.Value)
}

func java(s *sdk.Schema, v sdk.Value) string {
	name := ""
	if s != nil {
		name = s.Name
	}
	switch name {
	case sdk.DateName:
		return javaDate(time.Unix(v.Int()*86400, 0))
	case sdk.TimeName, sdk.TimestampName:
		return javaDate(time.UnixMilli(v.Int()))
	case sdk.DecimalName:
		c, _ := convert.New("string", convert.Value, nil)
		b, _ := c.Encode(nil, sdk.Data{Schema: s, Value: v})
		return "BigDecimal(" + string(b) + ")"
	}
	c, _ := convert.New("string", convert.Value, nil)
	b, _ := c.Encode(nil, sdk.Data{Schema: s, Value: v})
	class := map[sdk.Kind]string{
		sdk.KindInt8: "Byte", sdk.KindInt16: "Short", sdk.KindInt32: "Integer", sdk.KindInt64: "Long", sdk.KindFloat32: "Float",
		sdk.KindFloat64: "Double", sdk.KindBool: "Boolean", sdk.KindString: "String", sdk.KindStruct: "Struct",
	}
	switch v.Kind() {
	case sdk.KindNull:
		return "null"
	case sdk.KindArray:
		text := "List["
		for _, item := range v.Items() {
			text += java(nil, item) + " "
		}
		return text + "]"
	case sdk.KindMap:
		var parts []string
		for _, e := range v.Entries() {
			parts = append(parts, java(nil, e.Key)+"="+java(nil, e.Value)+" ")
		}
		slices.Sort(parts)
		return "Map{" + strings.Join(parts, "") + "}"
	}
	return class[v.Kind()] + "(" + string(b) + ")"
}

func javaDate(t time.Time) string {
	layout := "2006-01-02T15:04:05Z"
	if t.UnixMilli()%1000 != 0 {
		layout = "2006-01-02T15:04:05.000Z"
	}
	text := t.UTC().Format(layout)
	if len(strings.SplitN(text, "-", 2)[0]) > 4 {
		text = "+" + text
	}
	return "Date(" + text + ")"
}

// five is what the golden struct's third field defaults to.
var five = sdk.Int32(5)

var writeCases = map[string]sdk.Data{
	"struct": {
		Schema: &sdk.Schema{Kind: sdk.KindStruct, Name: "N", Version: 3, Doc: "d", Params: map[string]string{"p": "q"}, Fields: []sdk.Field{
			{Name: "i", Schema: sdk.Of(sdk.KindInt32)},
			{Name: "o", Schema: sdk.OptionalOf(sdk.KindString)},
			{Name: "d", Schema: &sdk.Schema{Kind: sdk.KindInt32, Optional: true, Default: &five}},
		}},
		Value: sdk.Struct([]sdk.Value{sdk.Int32(1), sdk.Null, sdk.Null}),
	},
	"null, null":      {},
	"opt string null": {Schema: sdk.OptionalOf(sdk.KindString)},
	"string null":     {Schema: sdk.Of(sdk.KindString)},
	"schemaless map": {Value: sdk.Map([]sdk.Entry{
		{Key: sdk.String("a"), Value: sdk.Int32(1)},
		{Key: sdk.String("b"), Value: sdk.Array([]sdk.Value{sdk.Int32(1), sdk.Int32(2)})},
	})},
	"schemaless map int keys": {Value: sdk.Map([]sdk.Entry{{Key: sdk.Int32(1), Value: sdk.Int32(2)}})},
	"schemaless bytes":        {Value: sdk.Bytes([]byte{1, 2})},
	"float nan":               {Schema: sdk.Of(sdk.KindFloat64), Value: sdk.Float64(math.NaN())},
	"float inf":               {Schema: sdk.Of(sdk.KindFloat32), Value: sdk.Float32(float32(math.Inf(1)))},
	"float 1":                 {Schema: sdk.Of(sdk.KindFloat32), Value: sdk.Float32(1)},
	"double 1e21":             {Schema: sdk.Of(sdk.KindFloat64), Value: sdk.Float64(1e21)},
	"wrong class":             {Schema: sdk.Of(sdk.KindInt32), Value: sdk.String("x")},
	"int8":                    {Schema: sdk.Of(sdk.KindInt8), Value: sdk.Int8(-1)},
	"unicode":                 {Schema: sdk.Of(sdk.KindString), Value: sdk.String("é中😀\u2028/\x01")},
	"map string keys":         {Schema: mapOf(sdk.Of(sdk.KindString)), Value: oneEntry(sdk.String("a"), 1)},
	"map int keys":            {Schema: mapOf(sdk.Of(sdk.KindInt32)), Value: oneEntry(sdk.Int32(1), 2)},
	"map optional string keys": {
		Schema: mapOf(sdk.OptionalOf(sdk.KindString)), Value: oneEntry(sdk.String("a"), 1),
	},
	"decimal":              {Schema: sdk.DecimalSchema(2), Value: sdk.Bytes([]byte{0, 0xc8})},
	"decimal numeric":      {Schema: sdk.DecimalSchema(2), Value: sdk.Bytes([]byte{0, 0xc8})},
	"decimal numeric 1E+3": {Schema: sdk.DecimalSchema(-3), Value: sdk.Bytes([]byte{1})},
	"date":                 {Schema: &sdk.Schema{Kind: sdk.KindInt32, Name: sdk.DateName, Version: 1}, Value: sdk.Int32(1)},
	"time":                 {Schema: &sdk.Schema{Kind: sdk.KindInt32, Name: sdk.TimeName, Version: 1}, Value: sdk.Int32(1000)},
	"timestamp":            {Schema: &sdk.Schema{Kind: sdk.KindInt64, Name: sdk.TimestampName, Version: 1}, Value: sdk.Int64(1000)},
	"bytes":                {Schema: sdk.Of(sdk.KindBytes), Value: sdk.Bytes([]byte{0, 0xff, 1})},
	"array null required": {
		Schema: &sdk.Schema{Kind: sdk.KindArray, Elem: sdk.Of(sdk.KindInt32)}, Value: sdk.Array([]sdk.Value{sdk.Null}),
	},
}

func mapOf(key *sdk.Schema) *sdk.Schema {
	return &sdk.Schema{Kind: sdk.KindMap, KeyElem: key, Elem: sdk.Of(sdk.KindInt32)}
}

func oneEntry(key sdk.Value, n int32) sdk.Value {
	return sdk.Map([]sdk.Entry{{Key: key, Value: sdk.Int32(n)}})
}

func TestWriteLikeConnect(t *testing.T) {
	matched := 0
	for _, line := range goldenLines(t, "write ") {
		name, want, _ := strings.Cut(line, " -> ")
		d, ok := writeCases[name]
		if !ok {
			continue // Java objects that have no counterpart here
		}
		matched++
		config := map[string]string{}
		if !strings.HasPrefix(want, `{"schema"`) {
			config["schemas.enable"] = "false"
		}
		if strings.Contains(want, `"d":null`) {
			config["replace.null.with.default"] = "false"
		}
		if strings.HasPrefix(name, "decimal numeric") {
			config["decimal.format"] = "numeric"
		}
		b, err := mustNew(t, "org.apache.kafka.connect.json.JsonConverter", convert.Value, config).Encode(nil, d)
		got := string(b)
		switch {
		case err != nil:
			got = "ERROR"
			want, _, _ = strings.Cut(want, " ")
		case b == nil:
			got = "no bytes"
		}
		if got != want {
			t.Errorf("%s:\n got %s (%v)\nwant %s", name, got, err, want)
		}
	}
	if matched < len(writeCases) {
		t.Errorf("only %d golden lines met %d cases", matched, len(writeCases))
	}
}

func TestHeadersLikeConnect(t *testing.T) {
	c := mustNew(t, "org.apache.kafka.connect.storage.SimpleHeaderConverter", convert.Header, nil)
	for _, line := range goldenLines(t, "header '") {
		text, want, _ := strings.Cut(line, "' -> ")
		d, err := c.Decode([]byte(text))
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		got := describe(d)
		if text == "null" && got == "no schema null" {
			continue
		}
		// A list without element type has no schema here.
		want = strings.Replace(want, "ARRAY List[Byte(1) String(a) ]", "no schema List[Byte(1) String(a) ]", 1)
		want = strings.Replace(want, "ARRAY List[]", "no schema List[]", 1)
		if got != want {
			t.Errorf("%q: got %s, want %s", text, got, want)
		}
	}
	for value, want := range map[string]string{"a\"b": "a\"b", "": ""} {
		if b, _ := c.Encode(nil, sdk.Data{Value: sdk.String(value)}); string(b) != want || b == nil {
			t.Errorf("%q is written as %q", value, b)
		}
	}
	list := sdk.Data{Value: sdk.Array([]sdk.Value{sdk.String("a"), sdk.Int32(1)})}
	if b, _ := c.Encode(nil, list); string(b) != `["a",1]` {
		t.Errorf("a list is written as %s", b)
	}
}

func TestFloatsAsJavaPrintsThem(t *testing.T) {
	for want, f := range map[string]float64{
		"1.0": 1, "0.001": 0.001, "9.99E-4": 0.000999, "1.0E7": 1e7, "9999999.0": 9999999, "4.9E-324": 5e-324, "1.7976931348623157E308": math.MaxFloat64,
		"1.0E23": 1e23, "-0.0": math.Copysign(0, -1), "0.1": 0.1, "1.0E-5": 1e-5, "123456.789": 123456.789, "-1.5E10": -1.5e10,
	} {
		b, err := mustNew(t, "string", convert.Value, nil).Encode(nil, sdk.Data{Value: sdk.Float64(f)})
		if err != nil || string(b) != want {
			t.Errorf("%v is printed as %s, want %s", f, b, want)
		}
	}
	b, _ := mustNew(t, "string", convert.Value, nil).Encode(nil, sdk.Data{Value: sdk.Float32(3.4e38)})
	if string(b) != "3.4E38" {
		t.Errorf("float32: %s", b)
	}
}

func TestFixedConverters(t *testing.T) {
	for class, v := range map[string]sdk.Value{
		"org.apache.kafka.connect.converters.LongConverter":    sdk.Int64(-2),
		"org.apache.kafka.connect.converters.IntegerConverter": sdk.Int32(7),
		"ShortConverter": sdk.Int16(-7), "DoubleConverter": sdk.Float64(1.5), "FloatConverter": sdk.Float32(-1.5),
		"BooleanConverter": sdk.Bool(true), "org.apache.kafka.connect.converters.ByteArrayConverter": sdk.Bytes([]byte{1, 0}),
	} {
		c := mustNew(t, class, convert.Value, nil)
		b, err := c.Encode([]byte("x"), sdk.Data{Value: v})
		if err != nil {
			t.Fatal(class, err)
		}
		d, err := c.Decode(b[1:])
		if err != nil || !d.Value.Equal(v) || !d.Schema.Optional {
			t.Errorf("%s: %v came back as %s, %v", class, v, describe(d), err)
		}
		if b, err := c.Encode(nil, sdk.Data{}); b != nil || err != nil {
			t.Errorf("%s: null became %v, %v", class, b, err)
		}
		if v.Kind() != sdk.KindBytes {
			if _, err := c.Decode([]byte{1, 2, 3}); err == nil {
				t.Errorf("%s takes three bytes", class)
			}
		}
		if _, err := c.Encode(nil, sdk.Data{Value: sdk.String("no")}); err == nil {
			t.Errorf("%s takes a string", class)
		}
	}
}

func TestUnknownClassIsInvalid(t *testing.T) {
	_, err := convert.New("io.confluent.connect.avro.AvroConverter", convert.Value, nil)
	if sdk.CodeOf(err) != sdk.Invalid || !strings.Contains(err.Error(), "AvroConverter") {
		t.Errorf("got %v", err)
	}
	if _, err := convert.New("json", convert.Value, map[string]string{"schemas.enable": "maybe"}); sdk.CodeOf(err) != sdk.Internal && err == nil {
		t.Error("a wrong config is accepted")
	}
	for _, c := range convert.Classes() {
		side := convert.Value
		if c.Type == "header_converter" {
			side = convert.Header
		}
		for _, name := range append(c.Aliases, c.Name) {
			if _, err := convert.New(name, side, nil); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

func TestSchemaRoundTrip(t *testing.T) {
	for name, d := range writeCases {
		if d.Schema == nil {
			continue
		}
		b := convert.AppendSchema(nil, d.Schema)
		s, err := convert.ParseSchema(b)
		if err != nil || !s.Equal(d.Schema) {
			t.Errorf("%s: %s came back as %s, %v", name, b, convert.AppendSchema(nil, s), err)
		}
	}
}

func TestDeepNestingIsRefused(t *testing.T) {
	c := mustNew(t, "json", convert.Value, map[string]string{"schemas.enable": "false"})
	if _, err := c.Decode([]byte(strings.Repeat("[", 100_000))); sdk.CodeOf(err) != sdk.Invalid {
		t.Errorf("got %v", err)
	}
	if _, err := c.Decode([]byte(strings.Repeat("[", 1000) + strings.Repeat("]", 1000))); err != nil {
		t.Errorf("1000 levels: %v", err)
	}
}

// wideRow is a change event of twelve columns, with its envelope around it.
func wideRow() sdk.Data {
	row := &sdk.Schema{Kind: sdk.KindStruct, Optional: true, Name: "t.Value"}
	values := []sdk.Value{}
	for i := range 12 {
		k := []sdk.Kind{sdk.KindInt64, sdk.KindString, sdk.KindInt32}[i%3]
		row.Fields = append(row.Fields, sdk.Field{Name: "column_" + strconv.Itoa(i), Schema: sdk.OptionalOf(k)})
		values = append(values, []sdk.Value{sdk.Int64(int64(i) * 1e12), sdk.String("some text of a row"), sdk.Int32(int32(i))}[i%3])
	}
	envelope := &sdk.Schema{Kind: sdk.KindStruct, Name: "t.Envelope", Fields: []sdk.Field{
		{Name: "before", Schema: row}, {Name: "after", Schema: row}, {Name: "op", Schema: sdk.Of(sdk.KindString)},
	}}
	return sdk.Data{Schema: envelope, Value: sdk.Struct([]sdk.Value{sdk.Null, sdk.Struct(values), sdk.String("c")})}
}

func TestEncodeDoesNotAllocate(t *testing.T) {
	for _, schemas := range []string{"true", "false"} {
		c := mustNew(t, "json", convert.Value, map[string]string{"schemas.enable": schemas})
		d, buf := wideRow(), make([]byte, 0, 1<<16)
		if n := testing.AllocsPerRun(100, func() { buf, _ = c.Encode(buf[:0], d) }); n != 0 {
			t.Errorf("schemas.enable=%s: %v allocations a record", schemas, n)
		}
	}
}

func BenchmarkEncode(b *testing.B) {
	for _, schemas := range []string{"true", "false"} {
		b.Run("schemas="+schemas, func(b *testing.B) {
			c := mustNew(b, "json", convert.Value, map[string]string{"schemas.enable": schemas})
			d, buf := wideRow(), []byte(nil)
			b.ReportAllocs()
			for b.Loop() {
				buf, _ = c.Encode(buf[:0], d)
			}
			b.SetBytes(int64(len(buf)))
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	for _, schemas := range []string{"true", "false"} {
		b.Run("schemas="+schemas, func(b *testing.B) {
			c := mustNew(b, "json", convert.Value, map[string]string{"schemas.enable": schemas})
			buf, _ := c.Encode(nil, wideRow())
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.Decode(buf); err != nil {
					b.Fatal(err)
				}
			}
			b.SetBytes(int64(len(buf)))
		})
	}
}

func FuzzDecode(f *testing.F) {
	for _, seed := range []string{`{"schema":{"type":"int32"},"payload":1}`, `{"a":[1,"\u00e9",null,1.5e3]}`, `[[1,2]]`, `"x"`, `12`, `{a}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, class := range []string{"json", "string", "bytes", "long", "boolean", "simple"} {
			for _, schemas := range []string{"true", "false"} {
				c := mustNew(t, class, convert.Header, map[string]string{"schemas.enable": schemas})
				d, err := c.Decode(b)
				if err != nil {
					continue
				}
				out, err := c.Encode(nil, d)
				if err != nil {
					t.Fatalf("%s: decoded %s cannot be encoded: %v", class, describe(d), err)
				}
				again, err := c.Decode(out)
				if err != nil {
					t.Fatalf("%s: %q was written as %q, which is not read: %v", class, b, out, err)
				}
				if class == "json" && !again.Value.Equal(d.Value) && !strings.Contains(fmt.Sprint(string(out)), "Infinity") {
					t.Fatalf("%q came back as %s, then %s", b, describe(d), describe(again))
				}
			}
		}
	})
}
