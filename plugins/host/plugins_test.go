package host_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace-io/millrace/plugins/sdk"
	"github.com/millrace-io/millrace/plugins/serve"
)

// TestMain turns the test binary into a plugin when a worker has started it: the
// name it was started under says which one.
func TestMain(m *testing.M) {
	name := strings.TrimPrefix(filepath.Base(os.Args[0]), "millrace-")
	if other, ok := programs[name]; ok && other() {
		return
	}
	if serve.Started() {
		serve.Main(sdk.Plugin{Version: "1.2.3", Connectors: []sdk.Connector{
			{Class: "test.NumberSourceConnector", Doc: "Numbers.", Aliases: []string{"numbers"}, Source: func() sdk.Source { return &numbers{} }},
			{Class: "test.ListSinkConnector", Doc: "A list.", Sink: func() sdk.Sink { return &list{} }},
			{Class: "test.NullSinkConnector", Doc: "Nothing.", Sink: func() sdk.Sink { return &nothing{} }},
			{Class: "test.FlushSinkConnector", Doc: "A list that flushes.", Sink: func() sdk.Sink { return &flushList{} }},
		}})
		return
	}
	os.Exit(m.Run())
}

// numbers is a source of numbered records.
type numbers struct {
	topic  string
	size   int
	limit  int
	batch  int
	mode   string
	ackTo  string
	keyed  bool
	schema bool
	next   int
	task   *sdk.SourceTask

	mu      sync.Mutex
	retried int
	record  sdk.Record
}

var numberSchema = &sdk.Schema{Kind: sdk.KindStruct, Name: "number", Fields: []sdk.Field{
	{Name: "n", Schema: sdk.Of(sdk.KindInt64)}, {Name: "pad", Schema: sdk.OptionalOf(sdk.KindBytes)},
}}

func (s *numbers) Define(d *sdk.Def) {
	d.String(&s.topic, "topic", "Topic.", sdk.Required(), sdk.NonEmpty())
	d.Int(&s.size, "size", "Bytes of a value.", sdk.Default("100"))
	d.Int(&s.limit, "limit", "Records in all.", sdk.Default("1000"))
	d.Int(&s.batch, "batch", "Records per read.", sdk.Default("100"))
	d.String(&s.mode, "mode", "What goes wrong.", sdk.Default(""))
	d.String(&s.ackTo, "ack.to", "File for acknowledged numbers.", sdk.Default(""))
	d.Bool(&s.keyed, "keyed", "Whether records have keys.", sdk.Default("false"))
	d.Bool(&s.schema, "schema", "Whether values have a schema.", sdk.Default("false"))
}

func (s *numbers) Validate(context.Context) error {
	switch s.mode {
	case "hang.validate":
		select {}
	case "panic.validate":
		panic("validate")
	case "bad":
		return sdk.FieldErrors{sdk.FieldError("mode", "test.bad", "mode must not be bad")}
	}
	return nil
}

func (s *numbers) AlterOffsets(_ context.Context, ps []sdk.Position) (bool, error) {
	for _, p := range ps {
		if n, ok := p.Offset["n"].(int64); !ok || n < 0 {
			return false, sdk.FieldError("n", "test.offset", "n must be an integer of at least 0, not %v", p.Offset["n"])
		}
	}
	return true, nil
}

func (s *numbers) Open(ctx context.Context, t *sdk.SourceTask) error {
	s.task = t
	switch s.mode {
	case "log":
		t.Log.WarnContext(ctx, "hello from the source", slog.Int("rows", 12), slog.String("connector", "somebody else"))
		fmt.Fprintln(os.Stderr, "bare words\x1b[31m")
		fmt.Println("to standard output")
	case "fail.open":
		return &sdk.Error{Code: sdk.Conflict, Reason: "test.open", Key: "mode", Msg: "open was told to fail"}
	case "panic.open":
		panic("open")
	case "hang.open":
		<-ctx.Done()
		return ctx.Err()
	}
	if o := t.Offset(map[string]any{"s": "numbers"}); o != nil {
		s.next = int(o["n"].(int64))
	}
	return nil
}

func (s *numbers) Read(ctx context.Context, out *sdk.Batch) error {
	switch s.mode {
	case "fail.read":
		if s.next >= s.limit/2 {
			return sdk.Errorf(sdk.Invalid, "test.read", "read was told to fail at %d", s.next)
		}
	case "panic.read":
		if s.next >= s.limit/2 {
			panic(fmt.Sprint("read at ", s.next))
		}
	case "exit.read":
		if s.next >= s.limit/2 {
			go func() { panic("on a goroutine of its own") }()
			<-ctx.Done()
		}
	case "retry.read":
		if s.next >= s.limit/2 && s.retried < 2 {
			s.retried++
			return sdk.Retry(errors.New("not now"), 100*time.Millisecond)
		}
	}
	if s.next >= s.limit {
		<-ctx.Done()
		return ctx.Err()
	}
	if s.mode == "fast" {
		return s.fast(out)
	}
	pad := make([]byte, s.size)
	for range s.batch {
		if s.next >= s.limit {
			break
		}
		value := sdk.Data{Raw: true, Value: sdk.Bytes(append([]byte(strconv.Itoa(s.next)+" "), pad...))}
		if s.schema {
			value = sdk.Data{Schema: numberSchema, Value: sdk.Struct([]sdk.Value{sdk.Int64(int64(s.next)), sdk.Bytes(pad)})}
		}
		if s.mode == "poison" && s.next%10 == 3 {
			value = sdk.Data{Schema: sdk.Of(sdk.KindInt32), Value: sdk.String("not a number")}
		}
		r := sdk.Record{Topic: s.topic, Partition: sdk.PartitionByKey, Timestamp: int64(s.next), Value: value}
		if s.keyed {
			r.Key = sdk.Data{Raw: true, Value: sdk.Bytes([]byte("k" + strconv.Itoa(s.next%17)))}
		}
		if err := out.Append(&r); err != nil {
			return err
		}
		s.next++
	}
	return out.Position(sdk.Position{Partition: map[string]any{"s": "numbers"}, Offset: map[string]any{"n": int64(s.next)}})
}

// fast appends the same record over and over, so that a measurement is about
// the boundary.
func (s *numbers) fast(out *sdk.Batch) error {
	if s.record.Topic == "" {
		pad := make([]byte, s.size)
		s.record = sdk.Record{Topic: s.topic, Partition: sdk.PartitionByKey, Value: sdk.Data{Raw: true, Value: sdk.Bytes(pad)}}
		if s.schema {
			s.record.Value = sdk.Data{Schema: numberSchema, Value: sdk.Struct([]sdk.Value{sdk.Int64(1), sdk.Bytes(pad)})}
		}
		if s.keyed {
			s.record.Key = sdk.Data{Raw: true, Value: sdk.Bytes([]byte("key-12345678"))}
		}
	}
	for range s.batch {
		s.next++
		s.record.Timestamp = int64(s.next)
		if err := out.Append(&s.record); err != nil {
			return err
		}
	}
	return out.Position(sdk.Position{Partition: map[string]any{"s": "numbers"}, Offset: map[string]any{"n": int64(s.next)}})
}

func (s *numbers) Acknowledged(_ context.Context, ps []sdk.Position) error {
	if s.ackTo == "" {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return os.WriteFile(s.ackTo, []byte(fmt.Sprint(ps[len(ps)-1].Offset["n"])), 0o600)
}

func (s *numbers) Close(context.Context) error {
	if s.mode == "fail.close" {
		return errors.New("close was told to fail")
	}
	return nil
}

// list is a sink that appends to a file: "topic partition offset value".
type list struct {
	file string
	mode string
	task *sdk.SinkTask
	out  *os.File
	n    int
	at   map[sdk.TopicPartition]int64
}

func (s *list) Define(d *sdk.Def) {
	d.String(&s.file, "file", "File.", sdk.Required())
	d.String(&s.mode, "mode", "What goes wrong.", sdk.Default(""))
}

func (s *list) Open(_ context.Context, t *sdk.SinkTask) (err error) {
	s.task, s.at = t, make(map[sdk.TopicPartition]int64)
	s.out, err = os.OpenFile(s.file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	return err
}

func (s *list) OpenPartitions(_ context.Context, ps []sdk.AssignedPartition) error {
	for _, p := range ps {
		fmt.Fprintf(s.out, "open %s %d\n", p.Topic, p.Partition)
	}
	return nil
}

func (s *list) ClosePartitions(_ context.Context, ps []sdk.TopicPartition) error {
	for _, p := range ps {
		fmt.Fprintf(s.out, "close %s %d\n", p.Topic, p.Partition)
	}
	return nil
}

func (s *list) Write(ctx context.Context, records []sdk.Record) error {
	s.n++
	switch {
	case s.mode == "retry" && s.n%3 == 1 && len(records) > 0:
		return sdk.Retry(errors.New("target is busy"), 100*time.Millisecond)
	case s.mode == "rewind" && len(records) > 0 && s.n < 4:
		defer s.task.Rewind(sdk.TopicPartition{Topic: records[0].Topic, Partition: records[0].Partition}, records[0].Offset)
	case s.mode == "busy" && s.n == 1:
		return sdk.Retry(errors.New("target is busy"), 500*time.Millisecond)
	case s.mode == "slow" && len(records) > 0:
		time.Sleep(200 * time.Millisecond)
	case s.mode == "block":
		<-ctx.Done()
		return ctx.Err()
	case s.mode == "panic" && len(records) > 0:
		panic("write")
	}
	for i := range records {
		r := &records[i]
		if s.mode == "report" && r.Offset%5 == 2 {
			receipt, err := s.task.Report(r, fmt.Errorf("offset %d is not wanted", r.Offset))
			if err != nil {
				return err
			}
			if r.Offset%10 == 7 {
				if err := receipt.Wait(ctx); err != nil {
					return err
				}
			}
			continue
		}
		text := r.Value.Value.Str()
		if r.Value.Raw || r.Value.Value.Kind() == sdk.KindBytes {
			text = string(r.Value.Value.Bytes())
		}
		if r.Value.Schema != nil && r.Value.Value.Kind() == sdk.KindStruct {
			text = fmt.Sprint(r.Value.Schema.Name, " ", r.Value.Value.Items()[0].Int())
		}
		text, _, _ = strings.Cut(text, "\x00")
		fmt.Fprintf(s.out, "%s %d %d %s\n", r.Topic, r.Partition, r.Offset, text)
	}
	return nil
}

func (s *list) Close(context.Context) error {
	if s.out == nil {
		return nil
	}
	if s.mode == "slow" {
		time.Sleep(300 * time.Millisecond)
	}
	fmt.Fprintln(s.out, "closed")
	return s.out.Close()
}

// nothing is a sink that is always done.
type nothing struct{}

func (*nothing) Define(*sdk.Def)                           {}
func (*nothing) Open(context.Context, *sdk.SinkTask) error { return nil }
func (*nothing) Write(context.Context, []sdk.Record) error { return nil }
func (*nothing) Close(context.Context) error               { return nil }

// flushList is a list that buffers.
type flushList struct {
	list
	held []string
}

func (s *flushList) Write(_ context.Context, records []sdk.Record) error {
	for _, r := range records {
		s.held = append(s.held, fmt.Sprintf("%s %d %d", r.Topic, r.Partition, r.Offset))
	}
	return nil
}

func (s *flushList) Flush(context.Context) error {
	for _, l := range s.held {
		fmt.Fprintln(s.out, l)
	}
	s.held = nil
	return nil
}

func (s *flushList) RawValues() bool { return true }
