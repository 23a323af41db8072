// Command millrace-orders is the plugin with a source of made-up orders, for
// trying things out: the same seed gives the same orders, and each has a number.
package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/millrace-io/millrace/plugins/sdk"
	"github.com/millrace-io/millrace/plugins/serve"
)

func main() { serve.Main(plugin()) }

func plugin() sdk.Plugin {
	return sdk.Plugin{Version: "0.1.0", Connectors: []sdk.Connector{{
		Class: "OrdersSource", Doc: "Makes up a stream of orders, for trying things out.",
		Source: func() sdk.Source { return &source{} },
	}}}
}

// source makes one order per interval. Order n is a function of seed and n, so
// the stored sequence is all that a restart needs.
type source struct {
	topic    string
	interval time.Duration
	seed     int64
	limit    int64

	sequence int64
	due      time.Time
	record   sdk.Record
	fields   [6]sdk.Value
}

var (
	products  = [...]string{"bread", "flour", "oats", "barley", "rye", "spelt", "bran", "malt"}
	customers = [...]string{"Ada", "Grace", "Edsger", "Barbara", "Ken", "Frances", "Donald", "Radia"}
)

func keySchema() *sdk.Schema {
	return &sdk.Schema{Kind: sdk.KindStruct, Name: "orders.Key", Fields: []sdk.Field{{Name: "id", Schema: sdk.Of(sdk.KindInt64)}}}
}

func valueSchema() *sdk.Schema {
	return &sdk.Schema{Kind: sdk.KindStruct, Name: "orders.Value", Fields: []sdk.Field{
		{Name: "id", Schema: sdk.Of(sdk.KindInt64)},
		{Name: "customer", Schema: sdk.Of(sdk.KindString)},
		{Name: "product", Schema: sdk.Of(sdk.KindString)},
		{Name: "quantity", Schema: sdk.Of(sdk.KindInt32)},
		{Name: "price", Schema: sdk.Of(sdk.KindFloat64)},
		{Name: "gift", Schema: sdk.OptionalOf(sdk.KindBool)},
	}}
}

// Define declares the keys.
func (s *source) Define(d *sdk.Def) {
	d.Group("Orders")
	d.String(&s.topic, "topic", "Topic to write to.", sdk.Required(), sdk.NonEmpty())
	d.Millis(&s.interval, "interval.ms", "Pause between two orders; 0 for as fast as possible.", sdk.Default("200"), sdk.Between(0, 3_600_000), sdk.Low())
	d.Long(&s.seed, "seed", "Orders of the same seed are the same.", sdk.Default("1"), sdk.Low())
	d.Long(&s.limit, "limit", "Number of orders after which it is quiet; 0 for no end.", sdk.Default("0"), sdk.AtLeast(0), sdk.Low())
}

// partition names the source's one part.
func (s *source) partition() map[string]any { return map[string]any{"source": "orders"} }

// Open goes on after the stored sequence.
func (s *source) Open(_ context.Context, t *sdk.SourceTask) error {
	if n, ok := t.Offset(s.partition())["sequence"].(int64); ok {
		s.sequence = n
	}
	s.due = time.Now()
	s.record = sdk.Record{Topic: s.topic, Partition: sdk.PartitionByKey, Key: sdk.Data{Schema: keySchema()}, Value: sdk.Data{Schema: valueSchema()}}
	return nil
}

// readMost bounds one Read: enough to be fast, little enough to be prompt.
const readMost = 500

// Read makes the orders that are due.
func (s *source) Read(ctx context.Context, out *sdk.Batch) error {
	if s.limit > 0 && s.sequence >= s.limit {
		<-ctx.Done()
		return ctx.Err()
	}
	if wait := time.Until(s.due); wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	for range readMost {
		if s.limit > 0 && s.sequence >= s.limit {
			break
		}
		s.sequence++
		if err := out.Append(s.order(s.sequence)); err != nil {
			return err
		}
		if s.interval > 0 {
			if s.due = s.due.Add(s.interval); s.due.After(time.Now()) {
				break
			}
		}
	}
	return out.Position(sdk.Position{Partition: s.partition(), Offset: map[string]any{"sequence": s.sequence}})
}

// order makes order n; it is valid until the next call.
func (s *source) order(n int64) *sdk.Record {
	random := rand.New(rand.NewPCG(uint64(s.seed), uint64(n)))
	quantity := 1 + random.Int32N(9)
	gift := sdk.Null
	if random.IntN(4) == 0 {
		gift = sdk.Bool(true)
	}
	s.fields = [6]sdk.Value{
		sdk.Int64(n), sdk.String(customers[random.IntN(len(customers))]), sdk.String(products[random.IntN(len(products))]),
		sdk.Int32(quantity), sdk.Float64(float64(quantity) * float64(100+random.IntN(900)) / 100), gift,
	}
	s.record.Timestamp = time.Now().UnixMilli()
	s.record.Key.Value = sdk.Struct(s.fields[:1])
	s.record.Value.Value = sdk.Struct(s.fields[:])
	return &s.record
}

// Close has nothing to release.
func (s *source) Close(context.Context) error { return nil }

// AlterOffsets takes {"sequence": N} only.
func (s *source) AlterOffsets(_ context.Context, positions []sdk.Position) (bool, error) {
	for _, p := range positions {
		if n, ok := p.Offset["sequence"].(int64); p.Offset != nil && (!ok || n < 0) {
			return false, sdk.Errorf(sdk.Invalid, "offsets.invalid", "the offset of %v needs \"sequence\", a whole number from 0 on", fmt.Sprint(p.Partition))
		}
	}
	return true, nil
}
