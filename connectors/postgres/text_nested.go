package main

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"math"
	"strconv"

	"github.com/millrace-io/millrace/plugins/sdk"
)

// arrayReader splits the text of a one-dimensional array into its elements.
type arrayReader struct {
	b     []byte
	delim byte
	err   error
}

// newArrayReader opens a literal; nested is true for more than one dimension,
// which the reader cannot split.
func newArrayReader(b []byte, delim byte) (r arrayReader, nested bool, err error) {
	if len(b) > 0 && b[0] == '[' { // bounds, as in [0:1]={a,b}
		i := bytes.IndexByte(b, '=')
		if i < 0 {
			return r, false, errSyntax
		}
		b = b[i+1:]
	}
	if len(b) < 2 || b[0] != '{' || b[len(b)-1] != '}' {
		return r, false, errSyntax
	}
	b = b[1 : len(b)-1]
	return arrayReader{b: b, delim: delim}, len(b) > 0 && b[0] == '{', nil
}

// next returns the next element, in the arena when it had escapes.
func (r *arrayReader) next(a *arena) (elem []byte, null, ok bool) {
	if len(r.b) == 0 || r.err != nil {
		return nil, false, false
	}
	if r.b[0] == '"' {
		return r.quoted(a), false, r.err == nil
	}
	i := bytes.IndexByte(r.b, r.delim)
	if i < 0 {
		elem, r.b = r.b, nil
	} else {
		elem, r.b = r.b[:i], r.b[i+1:]
	}
	return elem, string(elem) == "NULL", true
}

func (r *arrayReader) quoted(a *arena) []byte {
	b := r.b[1:]
	end := bytes.IndexAny(b, `"\`)
	if end >= 0 && b[end] == '"' {
		r.after(b[end+1:])
		return b[:end]
	}
	out := a.room(len(b))
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '\\':
			if i++; i < len(b) {
				out = append(out, b[i])
			}
		case '"':
			r.after(b[i+1:])
			return a.keep(out)
		default:
			out = append(out, b[i])
		}
	}
	r.err = errSyntax
	return nil
}

// after goes on behind an element.
func (r *arrayReader) after(b []byte) {
	switch {
	case len(b) == 0:
		r.b = nil
	case b[0] == r.delim:
		r.b = b[1:]
	default:
		r.err = errSyntax
	}
}

// countElements is the number of elements of a one-dimensional array.
func (r arrayReader) count() int {
	n := 0
	if len(r.b) > 0 {
		n = 1
	}
	quoted := false
	for i := 0; i < len(r.b); i++ {
		switch c := r.b[i]; {
		case c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case c == r.delim && !quoted:
			n++
		}
	}
	return n
}

// convertArray converts each element. More dimensions than one do not fit the
// schema: an array of texts then holds the inner literals, others fail.
func convertArray(elem convert, delim byte) convert {
	return func(b []byte, a *arena) (sdk.Value, error) {
		r, nested, err := newArrayReader(b, delim)
		if err != nil {
			return sdk.Null, err
		}
		if nested {
			return sdk.Null, errNested
		}
		items := a.array(r.count())
		for i := range items {
			text, null, ok := r.next(a)
			if !ok {
				return sdk.Null, errSyntax
			}
			if null {
				continue
			}
			if items[i], err = elem(text, a); err != nil {
				return sdk.Null, err
			}
		}
		return sdk.Array(items), r.err
	}
}

var errNested = errorText("an array of more than one dimension does not fit the schema; cast the column to text in a view or exclude it")

type errorText string

func (e errorText) Error() string { return string(e) }

// hstorePairs calls f for each pair of "k"=>"v", "n"=>NULL.
func hstorePairs(b []byte, a *arena, f func(key, value []byte, null bool)) error {
	r := arrayReader{b: b}
	for len(r.b) > 0 {
		key, err := hstoreText(&r, a)
		if err != nil || !bytes.HasPrefix(r.b, []byte("=>")) {
			return errSyntax
		}
		r.b = r.b[2:]
		if bytes.HasPrefix(r.b, []byte("NULL")) {
			r.b = r.b[4:]
			f(key, nil, true)
		} else {
			value, err := hstoreText(&r, a)
			if err != nil {
				return err
			}
			f(key, value, false)
		}
		r.b = bytes.TrimPrefix(r.b, []byte(", "))
	}
	return nil
}

func hstoreText(r *arrayReader, a *arena) ([]byte, error) {
	if len(r.b) == 0 || r.b[0] != '"' {
		return nil, errSyntax
	}
	b := r.b[1:]
	out := a.room(len(b))
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '\\':
			if i++; i < len(b) {
				out = append(out, b[i])
			}
		case '"':
			r.b = b[i+1:]
			return a.keep(out), nil
		default:
			out = append(out, b[i])
		}
	}
	return nil, errSyntax
}

func convertHstoreMap(b []byte, a *arena) (sdk.Value, error) {
	var entries []sdk.Entry
	err := hstorePairs(b, a, func(k, v []byte, null bool) {
		e := sdk.Entry{Key: sdk.String(str(k))}
		if !null {
			e.Value = sdk.String(str(v))
		}
		entries = append(entries, e)
	})
	return sdk.Map(entries), err
}

func convertHstoreJSON(b []byte, a *arena) (sdk.Value, error) {
	out := []byte{'{'}
	err := hstorePairs(b, a, func(k, v []byte, null bool) {
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = append(appendJSONText(out, k), ':')
		if null {
			out = append(out, "null"...)
		} else {
			out = appendJSONText(out, v)
		}
	})
	return sdk.String(str(append(out, '}'))), err
}

// appendJSONText quotes a text for JSON.
func appendJSONText(dst, s []byte) []byte {
	const digits = "0123456789abcdef"
	dst = append(dst, '"')
	for _, c := range s {
		switch {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c == '\n':
			dst = append(dst, '\\', 'n')
		case c == '\t':
			dst = append(dst, '\\', 't')
		case c == '\r':
			dst = append(dst, '\\', 'r')
		case c < 0x20:
			dst = append(dst, '\\', 'u', '0', '0', digits[c>>4], digits[c&15])
		default:
			dst = append(dst, c)
		}
	}
	return append(dst, '"')
}

// numbersIn reads every number of a geometric text into the arena's bytes as
// little-endian doubles, and returns how many there are.
func numbersIn(b []byte, into []byte) ([]byte, int, error) {
	n := 0
	for i := 0; i < len(b); {
		c := b[i]
		if c == '(' || c == ')' || c == ',' || c == '[' || c == ']' || c == '<' || c == '>' || c == '{' || c == '}' {
			i++
			continue
		}
		end := i
		for end < len(b) && !bytes.ContainsRune([]byte("(),[]<>{}"), rune(b[end])) {
			end++
		}
		f, err := strconv.ParseFloat(str(b[i:end]), 64)
		if err != nil {
			return into, n, errSyntax
		}
		if math.IsNaN(f) {
			f = math.Float64frombits(0x7ff8000000000000) // the only NaN that Java has
		}
		into = binary.LittleEndian.AppendUint64(into, math.Float64bits(f))
		n++
		i = end
	}
	return into, n, nil
}

func doubleAt(b []byte, i int) float64 {
	return math.Float64frombits(binary.LittleEndian.Uint64(b[i*8:]))
}

// Well-known binary: byte order, then the geometry's type.
const (
	wkbPoint   = 1
	wkbLine    = 2
	wkbPolygon = 3
)

func wkbHead(dst []byte, kind uint32) []byte {
	return binary.LittleEndian.AppendUint32(append(dst, 1), kind)
}

func convertPoint(b []byte, a *arena) (sdk.Value, error) {
	out := wkbHead(a.room(64), wkbPoint)
	out, n, err := numbersIn(b, out)
	if err != nil || n != 2 {
		return sdk.Null, errSyntax
	}
	out = a.keep(out)
	v := a.array(4)
	v[0], v[1] = sdk.Float64(doubleAt(out[5:], 0)), sdk.Float64(doubleAt(out[5:], 1))
	v[2] = sdk.Bytes(out)
	return sdk.Struct(v), nil
}

func convertLine(b []byte, a *arena) (sdk.Value, error) {
	out, n, err := numbersIn(b, a.room(32))
	if err != nil || n != 3 {
		return sdk.Null, errSyntax
	}
	v := a.array(3)
	for i := range v {
		v[i] = sdk.Float64(doubleAt(out, i))
	}
	return sdk.Struct(v), nil
}

func convertCircle(b []byte, a *arena) (sdk.Value, error) {
	out, n, err := numbersIn(b, wkbHead(a.room(64), wkbPoint))
	if err != nil || n != 3 {
		return sdk.Null, errSyntax
	}
	out = a.keep(out)
	center := a.array(4)
	center[0], center[1] = sdk.Float64(doubleAt(out[5:], 0)), sdk.Float64(doubleAt(out[5:], 1))
	center[2] = sdk.Bytes(out[:21])
	v := a.array(2)
	v[0], v[1] = sdk.Struct(center), sdk.Float64(doubleAt(out[5:], 2))
	return sdk.Struct(v), nil
}

// convertShape makes the geometry of a box, lseg, path or polygon.
func convertShape(kind string) convert {
	return func(b []byte, a *arena) (sdk.Value, error) {
		points, n, err := numbersIn(b, nil)
		if err != nil || n < 2 || n%2 != 0 || kind == "box" && n != 4 {
			return sdk.Null, errSyntax
		}
		closed := kind == "polygon" || kind == "box" || kind == "path" && b[0] == '('
		if kind == "box" {
			x1, y1, x2, y2 := points[0:8], points[8:16], points[16:24], points[24:32]
			points = bytes.Join([][]byte{x1, y1, x2, y1, x2, y2, x1, y2}, nil)
		}
		ring := kind == "polygon" || kind == "box"
		if ring {
			points = append(points, points[:16]...)
		}
		var out []byte
		if ring {
			out = binary.LittleEndian.AppendUint32(wkbHead(nil, wkbPolygon), 1)
		} else {
			out = wkbHead(nil, wkbLine)
		}
		out = binary.LittleEndian.AppendUint32(out, uint32(len(points)/16))
		v := a.array(3)
		v[0] = sdk.Bytes(append(out, points...))
		extensions := []sdk.Entry{{Key: sdk.String("type"), Value: sdk.String(kind)}}
		if kind == "path" {
			extensions = append(extensions, sdk.Entry{Key: sdk.String("closed"), Value: sdk.String(strconv.FormatBool(closed))})
		}
		v[2] = sdk.Map(extensions)
		return sdk.Struct(v), nil
	}
}

// convertEWKB takes PostGIS's hex text; the SRID stays inside and is given beside.
func convertEWKB(b []byte, a *arena) (sdk.Value, error) {
	out := a.room(len(b) / 2)[:len(b)/2]
	if _, err := hex.Decode(out, b); err != nil || len(out) < 5 {
		return sdk.Null, errSyntax
	}
	out = a.keep(out)
	v := a.array(2)
	v[0] = sdk.Bytes(out)
	order := binary.ByteOrder(binary.BigEndian)
	if out[0] == 1 {
		order = binary.LittleEndian
	}
	const hasSRID = 0x20000000
	if order.Uint32(out[1:])&hasSRID != 0 && len(out) >= 9 {
		v[1] = sdk.Int32(int32(order.Uint32(out[5:])))
	}
	return sdk.Struct(v), nil
}

// convertVector reads pgvector's [1,2,3].
func convertVector(elem convert) convert {
	return func(b []byte, a *arena) (sdk.Value, error) {
		if len(b) < 2 || b[0] != '[' || b[len(b)-1] != ']' {
			return sdk.Null, errSyntax
		}
		r := arrayReader{b: b[1 : len(b)-1], delim: ','}
		items := a.array(r.count())
		for i := range items {
			text, _, ok := r.next(a)
			if !ok {
				return sdk.Null, errSyntax
			}
			var err error
			if items[i], err = elem(text, a); err != nil {
				return sdk.Null, err
			}
		}
		return sdk.Array(items), nil
	}
}

// convertSparse reads pgvector's {1:1.5,3:2}/5.
func convertSparse(b []byte, a *arena) (sdk.Value, error) {
	i := bytes.LastIndexByte(b, '/')
	if i < 2 || b[0] != '{' {
		return sdk.Null, errSyntax
	}
	dimensions, err := parseInt(b[i+1:])
	if err != nil {
		return sdk.Null, err
	}
	if dimensions > math.MaxInt16 {
		return sdk.Null, errRange
	}
	var entries []sdk.Entry
	r := arrayReader{b: b[1 : i-1], delim: ','}
	for len(r.b) > 0 {
		pair, _, _ := r.next(a)
		k, v, ok := bytes.Cut(pair, []byte{':'})
		index, err := parseInt(k)
		f, err2 := strconv.ParseFloat(str(v), 64)
		if !ok || err != nil || err2 != nil {
			return sdk.Null, errSyntax
		}
		entries = append(entries, sdk.Entry{Key: sdk.Int16(int16(index)), Value: sdk.Float64(f)})
	}
	v := a.array(2)
	v[0], v[1] = sdk.Int16(int16(dimensions)), sdk.Map(entries)
	return sdk.Struct(v), nil
}
