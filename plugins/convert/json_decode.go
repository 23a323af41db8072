package convert

import (
	"encoding/base64"
	"math"
	"math/big"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
	"unsafe"

	"github.com/millrace-io/millrace/plugins/sdk"
)

// maxDepth bounds nesting, as Jackson does, so that a hostile text cannot
// exhaust the stack.
const maxDepth = 1000

// maxDecimalExponent bounds what a decimal's exponent may expand to.
const maxDecimalExponent = 100_000

// parser reads one JSON value from b. Text after it is not looked at.
type parser struct {
	b       []byte
	i       int
	depth   int
	keepNil bool // null stays null although the schema has a default
}

func (p *parser) errorf(format string, args ...any) error {
	return dataError("Converting byte[] to Kafka Connect data failed due to serialization error: "+format+" at byte %d", append(args, p.i)...)
}

func (p *parser) space() {
	for p.i < len(p.b) {
		switch p.b[p.i] {
		case ' ', '\t', '\n', '\r':
			p.i++
		default:
			return
		}
	}
}

// peek skips white space and returns the next byte, 0 at the end.
func (p *parser) peek() byte {
	p.space()
	if p.i >= len(p.b) {
		return 0
	}
	return p.b[p.i]
}

func (p *parser) unexpected(want string) error {
	if p.i >= len(p.b) {
		return p.errorf("the text ends where %s was expected", want)
	}
	r, _ := utf8.DecodeRune(p.b[p.i:])
	return p.errorf("unexpected character %q where %s was expected", r, want)
}

func (p *parser) expect(c byte) error {
	if p.peek() != c {
		return p.unexpected(strconv.QuoteRune(rune(c)))
	}
	p.i++
	return nil
}

func (p *parser) enter() error {
	if p.depth++; p.depth > maxDepth {
		return p.errorf("more than %d levels of nesting", maxDepth)
	}
	return nil
}

// literal consumes one of true, false and null.
func (p *parser) literal(word string) error {
	if !strings.HasPrefix(string(p.b[p.i:min(len(p.b), p.i+len(word))]), word) || !p.ends(p.i+len(word)) {
		end := p.i
		for end < len(p.b) && end < p.i+20 && !p.ends(end) {
			end++
		}
		return p.errorf("unrecognized token %q", p.b[p.i:end])
	}
	p.i += len(word)
	return nil
}

// ends reports whether a token may end before index i.
func (p *parser) ends(i int) bool {
	if i >= len(p.b) {
		return true
	}
	switch p.b[i] {
	case ' ', '\t', '\n', '\r', ',', ':', ']', '}', '[', '{', '"':
		return true
	}
	return false
}

// number consumes a number and returns its text and whether it is an integer.
func (p *parser) number() (text string, integral bool, err error) {
	start := p.i
	if p.i < len(p.b) && p.b[p.i] == '-' {
		p.i++
	}
	switch n := p.digits(); {
	case n == 0:
		return "", false, p.unexpected("a digit")
	case n > 1 && p.b[p.i-n] == '0':
		return "", false, p.errorf("invalid number: leading zeros are not allowed")
	}
	integral = true
	if p.i < len(p.b) && p.b[p.i] == '.' {
		integral = false
		p.i++
		if p.digits() == 0 {
			return "", false, p.unexpected("a digit")
		}
	}
	if p.i < len(p.b) && p.b[p.i]|0x20 == 'e' {
		integral = false
		p.i++
		if p.i < len(p.b) && (p.b[p.i] == '+' || p.b[p.i] == '-') {
			p.i++
		}
		if p.digits() == 0 {
			return "", false, p.unexpected("a digit")
		}
	}
	if !p.ends(p.i) {
		return "", false, p.unexpected("the end of the number")
	}
	return unsafeString(p.b[start:p.i]), integral, nil
}

func (p *parser) digits() int {
	start := p.i
	for p.i < len(p.b) && p.b[p.i] >= '0' && p.b[p.i] <= '9' {
		p.i++
	}
	return p.i - start
}

// text consumes a quoted text. The result shares b unless it has escapes.
func (p *parser) text() (string, error) {
	if p.peek() != '"' {
		return "", p.unexpected("double-quote")
	}
	p.i++
	start := p.i
	for p.i < len(p.b) {
		c := p.b[p.i]
		switch {
		case c == '"':
			s := p.b[start:p.i]
			p.i++
			return unsafeString(s), nil
		case c == '\\':
			return p.escaped(start)
		case c < 0x20:
			return "", p.errorf("illegal unquoted character (code %d) in a text", c)
		case c < utf8.RuneSelf:
			p.i++
		default:
			if err := p.rune(); err != nil {
				return "", err
			}
		}
	}
	return "", p.errorf("the text ends inside quotes")
}

func (p *parser) rune() error {
	r, size := utf8.DecodeRune(p.b[p.i:])
	if r == utf8.RuneError && size == 1 {
		return p.errorf("invalid UTF-8 byte 0x%02x", p.b[p.i])
	}
	p.i += size
	return nil
}

// escaped goes on with a text that has an escape at p.i.
func (p *parser) escaped(start int) (string, error) {
	out := append(make([]byte, 0, p.i-start+32), p.b[start:p.i]...)
	for p.i < len(p.b) {
		c := p.b[p.i]
		switch {
		case c == '"':
			p.i++
			return unsafeString(out), nil
		case c == '\\':
			var err error
			if out, err = p.escape(out); err != nil {
				return "", err
			}
		case c < 0x20:
			return "", p.errorf("illegal unquoted character (code %d) in a text", c)
		default:
			from := p.i
			if err := p.rune(); err != nil {
				return "", err
			}
			out = append(out, p.b[from:p.i]...)
		}
	}
	return "", p.errorf("the text ends inside quotes")
}

func (p *parser) escape(out []byte) ([]byte, error) {
	if p.i+1 >= len(p.b) {
		return nil, p.errorf("the text ends inside an escape")
	}
	c := p.b[p.i+1]
	p.i += 2
	switch c {
	case '"', '\\', '/':
		return append(out, c), nil
	case 'b':
		return append(out, '\b'), nil
	case 'f':
		return append(out, '\f'), nil
	case 'n':
		return append(out, '\n'), nil
	case 'r':
		return append(out, '\r'), nil
	case 't':
		return append(out, '\t'), nil
	case 'u':
		r, err := p.hex4()
		if err != nil {
			return nil, err
		}
		if utf16.IsSurrogate(r) {
			r = p.lowSurrogate(r)
		}
		return utf8.AppendRune(out, r), nil
	}
	return nil, p.errorf("unrecognized character escape %q", rune(c))
}

func (p *parser) hex4() (rune, error) {
	if p.i+4 > len(p.b) {
		return 0, p.errorf("the text ends inside an escape")
	}
	n, err := strconv.ParseUint(string(p.b[p.i:p.i+4]), 16, 32)
	if err != nil {
		return 0, p.errorf("four hexadecimal digits were expected")
	}
	p.i += 4
	return rune(n), nil
}

// lowSurrogate joins a high surrogate with the escape that follows.
func (p *parser) lowSurrogate(high rune) rune {
	if p.i+6 <= len(p.b) && p.b[p.i] == '\\' && p.b[p.i+1] == 'u' {
		if low, err := strconv.ParseUint(string(p.b[p.i+2:p.i+6]), 16, 32); err == nil {
			if r := utf16.DecodeRune(high, rune(low)); r != utf8.RuneError {
				p.i += 6
				return r
			}
		}
	}
	return utf8.RuneError
}

func unsafeString(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// free reads a value without schema.
func (p *parser) free() (sdk.Value, error) {
	switch c := p.peek(); {
	case c == '{':
		return p.freeObject()
	case c == '[':
		return p.freeArray()
	case c == '"':
		s, err := p.text()
		return sdk.String(s), err
	case c == 't':
		return sdk.Bool(true), p.literal("true")
	case c == 'f':
		return sdk.Bool(false), p.literal("false")
	case c == 'n':
		return sdk.Null, p.literal("null")
	case c == '-' || c >= '0' && c <= '9':
		return p.freeNumber()
	case c > ' ' && c < utf8.RuneSelf && c != ',' && c != ':' && c != ']' && c != '}' && c != '\'':
		return sdk.Null, p.literal("\x00")
	}
	return sdk.Null, p.unexpected("a JSON value")
}

func (p *parser) freeNumber() (sdk.Value, error) {
	text, integral, err := p.number()
	if err != nil {
		return sdk.Null, err
	}
	if integral {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return sdk.Null, dataError("the integer %s does not fit into 64 bits", shorten(text))
		}
		return sdk.Int64(n), nil
	}
	f, _ := strconv.ParseFloat(text, 64) // out of range: an infinity, as Connect has it
	return sdk.Float64(f), nil
}

func (p *parser) freeArray() (sdk.Value, error) {
	items := []sdk.Value{}
	err := p.elements(func(int) error {
		v, err := p.free()
		items = append(items, v)
		return err
	})
	return sdk.Array(items), err
}

func (p *parser) freeObject() (sdk.Value, error) {
	var m mapBuilder
	err := p.members(func(name string) error {
		v, err := p.free()
		m.put(name, v)
		return err
	})
	return sdk.Map(m.entries), err
}

// mapBuilder collects members; of two with one name the last value wins.
type mapBuilder struct {
	entries []sdk.Entry
	index   map[string]int // made when there are many
}

const manyMembers = 16

func (m *mapBuilder) put(name string, v sdk.Value) {
	if m.entries == nil {
		m.entries = make([]sdk.Entry, 0, 4)
	}
	if i := m.find(name); i >= 0 {
		m.entries[i].Value = v
		return
	}
	if m.index != nil {
		m.index[name] = len(m.entries)
	}
	m.entries = append(m.entries, sdk.Entry{Key: sdk.String(name), Value: v})
}

func (m *mapBuilder) find(name string) int {
	if len(m.entries) < manyMembers {
		for i := range m.entries {
			if m.entries[i].Key.Str() == name {
				return i
			}
		}
		return -1
	}
	if m.index == nil {
		m.index = make(map[string]int, 2*manyMembers)
		for i := range m.entries {
			m.index[m.entries[i].Key.Str()] = i
		}
	}
	if i, ok := m.index[name]; ok {
		return i
	}
	return -1
}

// elements reads an array and calls read for each element.
func (p *parser) elements(read func(i int) error) error {
	if err := p.enter(); err != nil {
		return err
	}
	p.i++
	if p.peek() == ']' {
		p.i++
		p.depth--
		return nil
	}
	for i := 0; ; i++ {
		if err := read(i); err != nil {
			return err
		}
		if p.peek() == ',' {
			p.i++
			continue
		}
		p.depth--
		return p.expect(']')
	}
}

// members reads an object and calls read at each member's value.
func (p *parser) members(read func(name string) error) error {
	if err := p.enter(); err != nil {
		return err
	}
	p.i++
	if p.peek() == '}' {
		p.i++
		p.depth--
		return nil
	}
	for {
		name, err := p.text()
		if err != nil {
			return err
		}
		if err := p.expect(':'); err != nil {
			return err
		}
		if err := read(name); err != nil {
			return err
		}
		if p.peek() == ',' {
			p.i++
			continue
		}
		p.depth--
		return p.expect('}')
	}
}

// skip passes over a value, checking its syntax.
func (p *parser) skip() error {
	switch c := p.peek(); {
	case c == '{':
		return p.members(func(string) error { return p.skip() })
	case c == '[':
		return p.elements(func(int) error { return p.skip() })
	case c == '"':
		_, err := p.text()
		return err
	case c == '-' || c >= '0' && c <= '9':
		_, _, err := p.number()
		return err
	}
	_, err := p.free()
	return err
}

// typed reads a value of a schema.
func (p *parser) typed(s *sdk.Schema) (sdk.Value, error) {
	c := p.peek()
	if c == 'n' {
		if err := p.literal("null"); err != nil {
			return sdk.Null, err
		}
		return p.absent(s)
	}
	switch s.Kind {
	case sdk.KindStruct:
		return p.structure(s)
	case sdk.KindArray:
		return p.array(s)
	case sdk.KindMap:
		return p.mapping(s)
	case sdk.KindString:
		if c != '"' {
			return sdk.Null, p.mismatch(s)
		}
		t, err := p.text()
		return sdk.String(t), err
	case sdk.KindBytes:
		return p.bytes(s)
	case sdk.KindBool:
		if c == 't' {
			return sdk.Bool(true), p.literal("true")
		}
		if c == 'f' {
			return sdk.Bool(false), p.literal("false")
		}
		return sdk.Null, p.mismatch(s)
	case sdk.KindFloat32, sdk.KindFloat64:
		return p.float(s)
	}
	return p.integer(s)
}

// absent is the value of a null or missing member.
func (p *parser) absent(s *sdk.Schema) (sdk.Value, error) {
	switch {
	case s.Default != nil && !p.keepNil:
		return *s.Default, nil
	case s.Optional:
		return sdk.Null, nil
	}
	return sdk.Null, dataError("Invalid null value for required %s field", strings.ToUpper(s.Kind.String()))
}

func (p *parser) found() string {
	switch c := p.peek(); {
	case c == '{':
		return "OBJECT"
	case c == '[':
		return "ARRAY"
	case c == '"':
		return "STRING"
	case c == 't' || c == 'f':
		return "BOOLEAN"
	case c == '-' || c >= '0' && c <= '9':
		return "NUMBER"
	}
	return "no value"
}

func (p *parser) mismatch(s *sdk.Schema) error {
	found := p.found()
	if err := p.skip(); err != nil {
		return err
	}
	switch s.Name {
	case sdk.DecimalName:
		return dataError("Invalid type for Decimal, underlying representation should be numeric or bytes but was %s", found)
	case sdk.DateName, sdk.TimeName:
		return dataError("Invalid type for %s, underlying representation should be integer but was %s", simpleName(s.Name), found)
	case sdk.TimestampName:
		return dataError("Invalid type for Timestamp, underlying representation should be integral but was %s", found)
	}
	return dataError("the schema says %s, but the value is %s", s.Kind, found)
}

func simpleName(name string) string { return name[strings.LastIndexByte(name, '.')+1:] }

func (p *parser) integer(s *sdk.Schema) (sdk.Value, error) {
	if p.found() != "NUMBER" {
		return sdk.Null, p.mismatch(s)
	}
	start := p.i
	text, integral, err := p.number()
	if err != nil {
		return sdk.Null, err
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if !integral {
		if isTemporal(s.Name) {
			p.i = start
			return sdk.Null, p.mismatch(s)
		}
		n, err = wholeNumber(text)
	}
	low, high := intRange(s.Kind)
	if err != nil || n < low || n > high {
		if s.Name == sdk.DateName || s.Name == sdk.TimeName {
			p.i = start
			return sdk.Null, p.mismatch(s)
		}
		return sdk.Null, dataError("the number %s does not fit type %s", shorten(text), s.Kind)
	}
	if s.Name == sdk.TimeName && (n < 0 || n > 86_400_000) {
		return sdk.Null, dataError("Time values must use number of milliseconds greater than 0 and less than 86400000")
	}
	return intOf(s.Kind, n), nil
}

func isTemporal(name string) bool {
	return name == sdk.DateName || name == sdk.TimeName || name == sdk.TimestampName
}

// wholeNumber accepts 1.0 and 1e3, but not 1.5.
func wholeNumber(text string) (int64, error) {
	f, err := strconv.ParseFloat(text, 64)
	if err != nil || f != math.Trunc(f) || math.Abs(f) > 1<<53 {
		return 0, dataError("no whole number")
	}
	return int64(f), nil
}

func intRange(k sdk.Kind) (low, high int64) {
	switch k {
	case sdk.KindInt8:
		return math.MinInt8, math.MaxInt8
	case sdk.KindInt16:
		return math.MinInt16, math.MaxInt16
	case sdk.KindInt32:
		return math.MinInt32, math.MaxInt32
	}
	return math.MinInt64, math.MaxInt64
}

func intOf(k sdk.Kind, n int64) sdk.Value {
	switch k {
	case sdk.KindInt8:
		return sdk.Int8(int8(n))
	case sdk.KindInt16:
		return sdk.Int16(int16(n))
	case sdk.KindInt32:
		return sdk.Int32(int32(n))
	}
	return sdk.Int64(n)
}

// float reads a number, or one of the texts that stand for what JSON lacks.
func (p *parser) float(s *sdk.Schema) (sdk.Value, error) {
	bits := 64
	if s.Kind == sdk.KindFloat32 {
		bits = 32
	}
	var f float64
	switch p.found() {
	case "NUMBER":
		text, _, err := p.number()
		if err != nil {
			return sdk.Null, err
		}
		if f, err = strconv.ParseFloat(text, bits); err != nil {
			return sdk.Null, dataError("the number %s does not fit type %s", shorten(text), s.Kind)
		}
	case "STRING":
		start := p.i
		text, err := p.text()
		if err != nil {
			return sdk.Null, err
		}
		switch text {
		case "NaN":
			f = math.NaN()
		case "Infinity":
			f = math.Inf(1)
		case "-Infinity":
			f = math.Inf(-1)
		default:
			p.i = start
			return sdk.Null, p.mismatch(s)
		}
	default:
		return sdk.Null, p.mismatch(s)
	}
	if bits == 32 {
		return sdk.Float32(float32(f)), nil
	}
	return sdk.Float64(f), nil
}

// bytes reads base64 text; a decimal may also be a number.
func (p *parser) bytes(s *sdk.Schema) (sdk.Value, error) {
	decimal := s.Name == sdk.DecimalName
	found := p.found()
	if decimal && found == "NUMBER" {
		return p.decimal(s)
	}
	if found != "STRING" {
		return sdk.Null, p.mismatch(s)
	}
	if decimal {
		if _, err := decimalScale(s); err != nil {
			return sdk.Null, err
		}
	}
	text, err := p.text()
	if err != nil {
		return sdk.Null, err
	}
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		what := "Invalid bytes field"
		if decimal {
			what = "Invalid bytes for Decimal field"
		}
		return sdk.Null, dataError("%s: %v", what, err)
	}
	return sdk.Bytes(b), nil
}

// decimal reads a number that must be exact at the schema's scale.
func (p *parser) decimal(s *sdk.Schema) (sdk.Value, error) {
	scale, err := decimalScale(s)
	if err != nil {
		return sdk.Null, err
	}
	text, _, err := p.number()
	if err != nil {
		return sdk.Null, err
	}
	n, ok := unscaled(text, scale)
	if !ok {
		return sdk.Null, dataError("the number %s does not fit a decimal of scale %d", shorten(text), scale)
	}
	return sdk.Bytes(bigBytes(n)), nil
}

// unscaled returns the decimal number text times 10^scale, if that is whole.
func unscaled(text string, scale int) (*big.Int, bool) {
	mantissa, exponent := text, 0
	if e := strings.IndexAny(text, "eE"); e >= 0 {
		var err error
		if exponent, err = strconv.Atoi(text[e+1:]); err != nil {
			return nil, false
		}
		mantissa = text[:e]
	}
	whole, fraction, _ := strings.Cut(mantissa, ".")
	n, ok := new(big.Int).SetString(whole+fraction, 10)
	if !ok {
		return nil, false
	}
	shift := exponent - len(fraction) + scale
	if shift > maxDecimalExponent || shift < -maxDecimalExponent {
		return n, n.Sign() == 0
	}
	power := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(max(shift, -shift))), nil)
	if shift >= 0 {
		return n.Mul(n, power), true
	}
	rest := new(big.Int)
	n.QuoRem(n, power, rest)
	return n, rest.Sign() == 0
}

func (p *parser) array(s *sdk.Schema) (sdk.Value, error) {
	if p.found() != "ARRAY" {
		return sdk.Null, p.mismatch(s)
	}
	items := []sdk.Value{}
	err := p.elements(func(i int) error {
		v, err := p.typed(s.Elem)
		if err != nil {
			return inItem(i, err)
		}
		items = append(items, v)
		return nil
	})
	return sdk.Array(items), err
}

func (p *parser) structure(s *sdk.Schema) (sdk.Value, error) {
	if found := p.found(); found != "OBJECT" {
		if err := p.skip(); err != nil {
			return sdk.Null, err
		}
		return sdk.Null, dataError("Structs should be encoded as JSON objects, but found %s", found)
	}
	fields := make([]sdk.Value, len(s.Fields))
	seen := make([]bool, len(s.Fields))
	next := 0 // members mostly come in the schema's order
	err := p.members(func(name string) error {
		i := next
		if i >= len(s.Fields) || s.Fields[i].Name != name {
			if i = s.FieldIndex(name); i < 0 {
				return p.skip()
			}
		}
		next = i + 1
		v, err := p.typed(s.Fields[i].Schema)
		if err != nil {
			return in(name, err)
		}
		fields[i], seen[i] = v, true
		return nil
	})
	if err != nil {
		return sdk.Null, err
	}
	for i, ok := range seen {
		if ok {
			continue
		}
		if fields[i], err = p.absent(s.Fields[i].Schema); err != nil {
			return sdk.Null, in(s.Fields[i].Name, err)
		}
	}
	return sdk.Struct(fields), nil
}

func (p *parser) mapping(s *sdk.Schema) (sdk.Value, error) {
	found := p.found()
	if s.KeyElem.Kind == sdk.KindString {
		if found != "OBJECT" {
			if err := p.skip(); err != nil {
				return sdk.Null, err
			}
			return sdk.Null, dataError("Maps with string fields should be encoded as JSON objects, but found %s", found)
		}
		var m mapBuilder
		err := p.members(func(name string) error {
			v, err := p.typed(s.Elem)
			if err != nil {
				return in(name, err)
			}
			m.put(name, v)
			return nil
		})
		return sdk.Map(m.entries), err
	}
	if found != "ARRAY" {
		if err := p.skip(); err != nil {
			return sdk.Null, err
		}
		return sdk.Null, dataError("Maps with non-string fields should be encoded as JSON array of tuples, but found %s", found)
	}
	var entries []sdk.Entry
	err := p.elements(func(i int) error {
		e, err := p.pair(s)
		if err != nil {
			return inItem(i, err)
		}
		entries = append(entries, e)
		return nil
	})
	return sdk.Map(entries), err
}

// pair reads [key,value].
func (p *parser) pair(s *sdk.Schema) (sdk.Entry, error) {
	var e sdk.Entry
	if found := p.found(); found != "ARRAY" {
		return e, dataError("Found invalid map entry instead of array tuple: %s", found)
	}
	n := 0
	err := p.elements(func(i int) (err error) {
		n++
		switch i {
		case 0:
			e.Key, err = p.typed(s.KeyElem)
		case 1:
			e.Value, err = p.typed(s.Elem)
		default:
			err = p.skip()
		}
		return err
	})
	if err == nil && n != 2 {
		err = dataError("Found invalid map entry, expected length 2 but found :%d", n)
	}
	return e, err
}

// shorten keeps an error readable when a value is long.
func shorten(text string) string {
	const most = 60
	if len(text) > most {
		return text[:most] + "..."
	}
	return text
}
