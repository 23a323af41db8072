package sdk

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
)

// MaxPositionBytes bounds the JSON of one position: it is kept in memory and in
// the log for every part of a source, and is meant to be a handful of numbers.
const MaxPositionBytes = 64 << 10

// MarshalJSON writes the members in the order of their names, and a float64
// always with a point or an exponent, so that it is read as a float64 again.
func (p Position) MarshalJSON() ([]byte, error) {
	b, err := appendObject([]byte(`{"partition":`), p.Partition)
	if err != nil {
		return nil, fmt.Errorf("source partition: %w", err)
	}
	b = append(b, `,"offset":`...)
	if b, err = appendObject(b, p.Offset); err != nil {
		return nil, fmt.Errorf("source offset: %w", err)
	}
	b = append(b, '}')
	if len(b) > MaxPositionBytes {
		return nil, fmt.Errorf("source position has %d bytes, at most %d are allowed", len(b), MaxPositionBytes)
	}
	return b, nil
}

// UnmarshalJSON reads integers as int64, other numbers as float64, and refuses
// nested values and integers beyond int64.
func (p *Position) UnmarshalJSON(b []byte) error {
	var raw struct{ Partition, Offset map[string]any }
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := d.Decode(&raw); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("more than one JSON value")
	}
	for _, m := range []map[string]any{raw.Partition, raw.Offset} {
		for k, v := range m {
			w, err := scalar(v)
			if err != nil {
				return fmt.Errorf("member %q: %w", k, err)
			}
			m[k] = w
		}
	}
	p.Partition, p.Offset = raw.Partition, raw.Offset
	return nil
}

// SamePartition reports whether both positions are about the same part of a
// source. Integers of different Go types are the same when their numbers are.
func (p Position) SamePartition(q Position) bool { return samePartition(p.Partition, q.Partition) }

func samePartition(a, b map[string]any) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		w, ok := b[k]
		if !ok {
			return false
		}
		if v, err := scalar(v); err != nil || v != mustScalar(w) {
			return false
		}
	}
	return true
}

// mustScalar is scalar for a comparison; what is no scalar equals nothing.
func mustScalar(v any) any {
	w, err := scalar(v)
	if err != nil {
		return err
	}
	return w
}

// scalar turns a member's value into one of the types of a position.
func scalar(v any) (any, error) {
	switch v := v.(type) {
	case nil, bool, string, int64, float64:
		return v, nil
	case int:
		return int64(v), nil
	case int32:
		return int64(v), nil
	case uint32:
		return int64(v), nil
	case uint64:
		if v > math.MaxInt64 {
			return nil, fmt.Errorf("%d does not fit a 64-bit integer", v)
		}
		return int64(v), nil
	case json.Number:
		if strings.ContainsAny(string(v), ".eE") {
			return v.Float64()
		}
		n, err := v.Int64()
		if err != nil {
			return nil, fmt.Errorf("%s does not fit a 64-bit integer", v)
		}
		return n, nil
	}
	return nil, fmt.Errorf("a %T is not a string, a number, a boolean or null", v)
}

func appendObject(b []byte, m map[string]any) ([]byte, error) {
	if m == nil {
		return append(b, "null"...), nil
	}
	b = append(b, '{')
	for i, k := range slices.Sorted(maps.Keys(m)) {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(appendText(b, k), ':')
		v, err := scalar(m[k])
		if err != nil {
			return nil, fmt.Errorf("member %q: %w", k, err)
		}
		if b, err = appendScalar(b, v); err != nil {
			return nil, fmt.Errorf("member %q: %w", k, err)
		}
	}
	return append(b, '}'), nil
}

func appendScalar(b []byte, v any) ([]byte, error) {
	switch v := v.(type) {
	case bool:
		return strconv.AppendBool(b, v), nil
	case string:
		return appendText(b, v), nil
	case int64:
		return strconv.AppendInt(b, v, 10), nil
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, fmt.Errorf("%v cannot be written as JSON", v)
		}
		start := len(b)
		b = strconv.AppendFloat(b, v, 'g', -1, 64)
		if !bytes.ContainsAny(b[start:], ".e") {
			b = append(b, ".0"...)
		}
		return b, nil
	}
	return append(b, "null"...), nil
}

// appendText writes a JSON string.
func appendText(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c == '"' || c == '\\' || c >= 0x7f {
			quoted, err := json.Marshal(s)
			if err != nil {
				panic(err) // a string can always be marshalled
			}
			return append(b, quoted...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}
