package runtime

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/millrace-io/millrace/plugins/sdk"
)

// offsetKey is the key of a source position in the offsets table, in Connect's
// form: ["connector",{partition}], members sorted.
func offsetKey(connector string, partition map[string]any) (string, error) {
	b, err := json.Marshal([]any{connector, partition})
	if err != nil {
		return "", fmt.Errorf("encode the source partition of %q: %w", connector, err)
	}
	return string(b), nil
}

// offsetEntries encodes positions as changes of the offsets table.
func offsetEntries(connector string, positions []sdk.Position) ([]entry, error) {
	entries := make([]entry, len(positions))
	for i, p := range positions {
		key, err := offsetKey(connector, p.Partition)
		if err != nil {
			return nil, err
		}
		entries[i].key = key
		if p.Offset == nil {
			continue
		}
		if entries[i].value, err = json.Marshal(p.Offset); err != nil {
			return nil, fmt.Errorf("encode the source offset of %q: %w", connector, err)
		}
	}
	return entries, nil
}

// storedPositions reads a connector's positions out of the offsets table, sorted
// by partition.
func storedPositions(t *table, connector string) ([]sdk.Position, error) {
	name, err := json.Marshal(connector)
	if err != nil {
		return nil, err
	}
	start := "[" + string(name) + ","
	var keys []string
	rows := t.snapshot()
	for k := range rows {
		if strings.HasPrefix(k, start) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	positions := make([]sdk.Position, len(keys))
	for i, k := range keys {
		if positions[i].Partition, err = decodeObject([]byte(k[len(start) : len(k)-1])); err != nil {
			return nil, fmt.Errorf("offsets table, key %s: %w", k, err)
		}
		if positions[i].Offset, err = decodeObject(rows[k]); err != nil {
			return nil, fmt.Errorf("offsets table, value of %s: %w", k, err)
		}
	}
	return positions, nil
}

// decodeObject reads a JSON object of primitives as Connect's offset converter
// does: integers become int64, other numbers float64.
func decodeObject(b []byte) (map[string]any, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var m map[string]any
	if err := d.Decode(&m); err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("more than one JSON value")
	}
	return m, normalize(m)
}

// normalize turns the numbers of a decoded object into int64 and float64 and
// refuses what an offset cannot hold.
func normalize(m map[string]any) error {
	for k, v := range m {
		switch v := v.(type) {
		case nil, string, bool, int64, float64:
		case json.Number:
			if i, err := v.Int64(); err == nil {
				m[k] = i
				continue
			}
			f, err := v.Float64()
			if err != nil || !strings.ContainsAny(v.String(), ".eE") {
				return fmt.Errorf("%q holds the number %s, which fits neither 64-bit integers nor floats", k, v)
			}
			m[k] = f
		default:
			return fmt.Errorf("%q holds a nested value; only text, numbers, true, false and null are allowed", k)
		}
	}
	return nil
}
