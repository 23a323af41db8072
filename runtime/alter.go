package runtime

import (
	"context"
	"encoding/json"
	"slices"
	"strconv"
	"time"

	"github.com/millrace-io/millrace/logstore"
	"github.com/millrace-io/millrace/plugins/host"
	"github.com/millrace-io/millrace/plugins/sdk"
	"github.com/millrace-io/millrace/runtime/plan"
)

// The members of a sink's offsets, by Connect's names.
const (
	sinkTopic     = "kafka_topic"
	sinkPartition = "kafka_partition"
	sinkOffset    = "kafka_offset"
)

// Offsets returns a connector's offsets: a source's positions as it stores them,
// a sink's as {"kafka_topic","kafka_partition"} and {"kafka_offset"}.
func (w *Worker) Offsets(name string) ([]sdk.Position, error) {
	info, err := w.Info(name)
	if err != nil {
		return nil, err
	}
	if info.Type != "sink" {
		return storedPositions(w.offsets, name)
	}
	positions := []sdk.Position{}
	for tp, offset := range w.log.GroupOffsets(groupOf(name, info.Config)) {
		positions = append(positions, sdk.Position{
			Partition: map[string]any{sinkTopic: tp.Topic, sinkPartition: int64(tp.Partition)},
			Offset:    map[string]any{sinkOffset: offset},
		})
	}
	sortSinkPositions(positions)
	return positions, nil
}

func sortSinkPositions(p []sdk.Position) {
	key := func(p sdk.Position) string {
		topic, _ := p.Partition[sinkTopic].(string)
		n, _ := p.Partition[sinkPartition].(int64)
		return topic + "\x00" + strconv.FormatInt(n+1<<40, 10)
	}
	slices.SortFunc(p, func(a, b sdk.Position) int {
		if key(a) < key(b) {
			return -1
		}
		return 1
	})
}

// AlterOffsets sets offsets of a stopped connector; a nil Offset removes one.
// Positions not named stay. external says that the connector also changed
// offsets it keeps outside.
func (w *Worker) AlterOffsets(ctx context.Context, name string, positions []sdk.Position) (external bool, err error) {
	w.configMu.Lock()
	defer w.configMu.Unlock()
	info, err := w.mayAlter(ctx, name)
	if err != nil {
		return false, err
	}
	for i := range positions {
		if err := checkPosition(&positions[i]); err != nil {
			return false, err
		}
	}
	return w.alter(ctx, info, positions)
}

// ResetOffsets removes all offsets of a stopped connector.
func (w *Worker) ResetOffsets(ctx context.Context, name string) (external bool, err error) {
	w.configMu.Lock()
	defer w.configMu.Unlock()
	info, err := w.mayAlter(ctx, name)
	if err != nil {
		return false, err
	}
	positions, err := w.Offsets(name)
	if err != nil {
		return false, err
	}
	for i := range positions {
		positions[i].Offset = nil
	}
	return w.alter(ctx, info, positions)
}

// alter stores positions where the connector's type keeps them.
func (w *Worker) alter(ctx context.Context, info Info, positions []sdk.Position) (external bool, err error) {
	if info.Type == "sink" {
		return w.alterSink(ctx, info, positions)
	}
	return w.alterSource(ctx, info, positions)
}

// mayAlter refuses a connector that is not stopped. One that is about to be, it
// waits for: tasks end in order within the drain timeout.
func (w *Worker) mayAlter(ctx context.Context, name string) (Info, error) {
	deadline := time.Now().Add(w.o.DrainTimeout + time.Second)
	for {
		info, err := w.Info(name)
		if err != nil {
			return info, err
		}
		w.mu.Lock()
		c := w.connectors[name]
		stopped, busy := c.plan.Target == plan.Stopped, slices.ContainsFunc(c.plan.Tasks, func(t plan.Task) bool { return t.Phase != plan.Absent })
		w.mu.Unlock()
		switch {
		case stopped && !busy:
			return info, nil
		case !stopped || time.Now().After(deadline):
			return info, sdk.Errorf(sdk.Invalid, "connector.not_stopped",
				"Connectors must be in the STOPPED state before their offsets can be modified. This can be done for the specified connector by issuing a 'PUT' request to the '/connectors/%s/stop' endpoint", name)
		}
		select {
		case <-time.After(stopPoll):
		case <-ctx.Done():
			return info, ctx.Err()
		}
	}
}

// stopPoll is how often mayAlter looks whether the tasks have ended.
const stopPoll = 10 * time.Millisecond

// checkPosition refuses values that an offset cannot hold.
func checkPosition(p *sdk.Position) error {
	if p.Partition == nil {
		return sdk.Errorf(sdk.Invalid, "offsets.invalid", "an entry of offsets has no partition")
	}
	for _, m := range []map[string]any{p.Partition, p.Offset} {
		if err := normalize(m); err != nil {
			return sdk.Errorf(sdk.Invalid, "offsets.invalid", "an entry of offsets is refused: %w", err)
		}
	}
	return nil
}

// ask lets the connector refuse offsets.
func (w *Worker) ask(ctx context.Context, info Info, positions []sdk.Position) (external bool, err error) {
	class, err := w.findClass(ctx, info.Config["connector.class"])
	if err != nil {
		return false, err
	}
	err = w.pool.Do(ctx, class, func(p *host.Process) error {
		external, err = p.AlterOffsets(ctx, class.Name, info.Config, positions)
		return err
	})
	if err != nil && sdk.CodeOf(err) == sdk.Internal {
		err = &sdk.Error{Code: sdk.Invalid, Reason: "offsets.refused", Err: err}
	}
	return external, err
}

func (w *Worker) alterSource(ctx context.Context, info Info, positions []sdk.Position) (bool, error) {
	external, err := w.ask(ctx, info, positions)
	if err != nil {
		return false, err
	}
	changes, err := offsetEntries(info.Name, positions)
	if err != nil || len(changes) == 0 {
		return external, err
	}
	return external, storeError(w.offsets.put(ctx, w.writer, changes...))
}

func (w *Worker) alterSink(ctx context.Context, info Info, positions []sdk.Position) (bool, error) {
	group := groupOf(info.Name, info.Config)
	moves := make(map[logstore.TopicPartition]int64)
	for _, p := range positions {
		tp, offset, err := w.sinkMove(p)
		if err != nil {
			return false, err
		}
		moves[tp] = offset
	}
	external, err := w.ask(ctx, info, positions)
	if err != nil {
		return false, err
	}
	u := &logstore.Unit{}
	for tp, offset := range moves {
		u.Offsets = append(u.Offsets, logstore.GroupOffset{Group: group, TopicPartition: tp, Offset: offset})
	}
	if len(u.Offsets) == 0 {
		return external, nil
	}
	_, err = logstore.Append(ctx, w.writer, u)
	return external, storeError(err)
}

// sinkMove reads one entry of a sink's offsets. An offset of -1 forgets.
func (w *Worker) sinkMove(p sdk.Position) (logstore.TopicPartition, int64, error) {
	tp := logstore.TopicPartition{}
	refuse := func(format string, args ...any) (logstore.TopicPartition, int64, error) {
		return tp, 0, sdk.Errorf(sdk.Invalid, "offsets.invalid", format, args...)
	}
	topic, ok := p.Partition[sinkTopic].(string)
	if !ok {
		return refuse("the partition of a sink's offset needs %q, the name of a topic", sinkTopic)
	}
	n, ok := wholeNumber(p.Partition[sinkPartition])
	if !ok || n < 0 || n > logstore.MaxPartitions {
		return refuse("the partition of a sink's offset needs %q, the number of a partition", sinkPartition)
	}
	tp = logstore.TopicPartition{Topic: topic, Partition: int32(n)}
	offset := int64(-1)
	if p.Offset != nil {
		if offset, ok = wholeNumber(p.Offset[sinkOffset]); !ok || offset < 0 {
			return refuse("the offset of topic %q partition %d needs %q, a whole number that is not negative", topic, n, sinkOffset)
		}
	}
	t, exists := w.log.Catalog().Lookup(topic)
	if offset >= 0 && (!exists || tp.Partition >= t.Config.Partitions) {
		return refuse("topic %q has no partition %d in this log", topic, n)
	}
	return tp, offset, nil
}

// wholeNumber reads a number or a text of one, as Connect does.
func wholeNumber(v any) (int64, bool) {
	switch v := v.(type) {
	case int64:
		return v, true
	case string:
		n, err := strconv.ParseInt(v, 10, 64)
		return n, err == nil
	case json.Number:
		n, err := v.Int64()
		return n, err == nil
	}
	return 0, false
}
