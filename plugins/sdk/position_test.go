package sdk_test

import (
	"encoding/json"
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/millrace-io/millrace/plugins/sdk"
)

func TestPositionsKeepTheirTypes(t *testing.T) {
	for _, c := range []struct {
		name string
		in   sdk.Position
		text string
	}{
		{"integers and floats", sdk.Position{Partition: map[string]any{"b": int64(1), "a": 1.0}, Offset: map[string]any{"x": 1e300, "y": -2.5}}, `{"partition":{"a":1.0,"b":1},"offset":{"x":1e+300,"y":-2.5}}`},
		{"all kinds", sdk.Position{Partition: map[string]any{"s": "tür\n\"<&>", "n": nil, "t": true}, Offset: map[string]any{"big": int64(math.MaxInt64)}}, ``},
		{"no offset", sdk.Position{Partition: map[string]any{}}, `{"partition":{},"offset":null}`},
		{"nothing", sdk.Position{}, `{"partition":null,"offset":null}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, err := json.Marshal(c.in)
			if err != nil {
				t.Fatal(err)
			}
			if c.text != "" && string(b) != c.text {
				t.Errorf("wrote %s, want %s", b, c.text)
			}
			var out sdk.Position
			if err := json.Unmarshal(b, &out); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(out, c.in) {
				t.Errorf("read %#v, want %#v", out, c.in)
			}
		})
	}
}

func TestPositionsRefuseWhatTheyCannotKeep(t *testing.T) {
	for _, text := range []string{
		`{"partition":{"a":[1]}}`, `{"partition":{"a":{}}}`, `{"offset":{"a":9223372036854775808}}`, `{"partition":7}`, `{} {}`,
	} {
		var p sdk.Position
		if err := json.Unmarshal([]byte(text), &p); err == nil {
			t.Errorf("%s is accepted as %v", text, p)
		}
		if err := p.UnmarshalJSON([]byte(text)); err == nil {
			t.Errorf("%s is accepted as %v", text, p)
		}
	}
	for _, v := range []any{[]int{1}, math.NaN(), math.Inf(1), uint64(math.MaxUint64), struct{}{}, strings.Repeat("x", sdk.MaxPositionBytes)} {
		if b, err := json.Marshal(sdk.Position{Offset: map[string]any{"a": v}}); err == nil {
			t.Errorf("%v is written as %.100s", v, b)
		}
	}
}

func TestOffsetFindsThePartitionWhateverItsGoTypes(t *testing.T) {
	task := sdk.SourceTask{Offsets: []sdk.Position{
		{Partition: map[string]any{"db": "a", "shard": int64(1)}, Offset: map[string]any{"lsn": int64(10)}},
		{Partition: map[string]any{"db": "a", "shard": int64(2)}, Offset: map[string]any{"lsn": int64(20)}},
	}}
	if o := task.Offset(map[string]any{"db": "a", "shard": 2}); o["lsn"] != int64(20) {
		t.Errorf("got %v", o)
	}
	for _, p := range []map[string]any{nil, {"db": "a"}, {"db": "a", "shard": 2.0}, {"db": "a", "shard": []int{1}}, {"db": "a", "shart": 2}} {
		if o := task.Offset(p); o != nil {
			t.Errorf("%v finds %v", p, o)
		}
	}
}
