package main

import (
	"fmt"
	"testing"

	"github.com/millrace-io/millrace/plugins/sdk"
	"github.com/millrace-io/millrace/plugins/sdk/sdktest"
)

func TestMain(m *testing.M) { sdktest.Main(m, plugin()) }

func TestReadmeHasTheKeys(t *testing.T) { sdktest.Keys(t, "README.md", "source", new(source).Define) }

func TestSource(t *testing.T) {
	sdktest.Source(t, sdktest.SourceCase{
		Class: "OrdersSource",
		Setup: func(*testing.T) (map[string]string, func(from, to int)) {
			return map[string]string{"topic": "orders", "interval.ms": "0"}, nil
		},
		Text: func(i int) string { return fmt.Sprintf(`{"id":%d,`, i+1) },
	})
}

// text writes an order's fields for comparison; it must not share memory.
func text(r *sdk.Record) string {
	s := ""
	for _, f := range r.Value.Value.Items() {
		s += fmt.Sprint(f.Int(), f.Float(), f.Str(), f.Bool(), f.IsNull(), ";")
	}
	return s
}

func TestTheSameSeedGivesTheSameOrders(t *testing.T) {
	a, b, c := &source{seed: 7}, &source{seed: 7}, &source{seed: 8}
	differ := 0
	for n := int64(1); n <= 100; n++ {
		x := text(a.order(n))
		if y := text(b.order(n)); x != y {
			t.Errorf("order %d is %s and %s", n, x, y)
		}
		if x != text(c.order(n)) {
			differ++
		}
	}
	if differ < 90 {
		t.Errorf("another seed changes %d of 100 orders", differ)
	}
}
