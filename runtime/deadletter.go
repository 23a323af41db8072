package runtime

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/millrace-io/millrace/logstore"
	"github.com/millrace-io/millrace/logstore/recordbatch"
	"github.com/millrace-io/millrace/plugins/host"
)

// deadLetters turns references to bad records into records of the dead letter
// topic: the original bytes, out of the log, with the headers that say why.
type deadLetters struct {
	e       *taskEnv
	topic   string // "" means that bad records are only counted
	headers bool
}

// openDeadLetters creates the dead letter topic if there is one to be.
func openDeadLetters(ctx context.Context, e *taskEnv) (*deadLetters, error) {
	d := &deadLetters{
		e: e, topic: e.config["errors.deadletterqueue.topic.name"],
		headers: e.config["errors.deadletterqueue.context.headers.enable"] == "true",
	}
	if d.topic == "" || e.config["errors.tolerance"] != "all" {
		d.topic = ""
		return d, nil
	}
	if _, err := e.w.ensureTopic(ctx, d.topic, nil); err != nil {
		return nil, fmt.Errorf("dead letter topic: %w", err)
	}
	return d, nil
}

// batch builds the letters' records. Its Data is nil when they go nowhere.
func (d *deadLetters) batch(ctx context.Context, letters []host.DeadLetter) (logstore.Batch, error) {
	out := logstore.Batch{Topic: d.topic}
	var b recordbatch.Builder
	b.Reset()
	for _, l := range letters {
		if d.e.config["errors.log.enable"] == "true" {
			d.e.logger.Error("record is given up", "topic", l.Topic, "partition", l.Partition, "offset", l.Offset, "stage", l.Stage, "err", l.Message)
		}
		if d.topic == "" {
			continue
		}
		err := d.original(ctx, l, func(r *recordbatch.Record) error {
			if d.headers {
				r.Headers = append(r.Headers[:len(r.Headers):len(r.Headers)], d.context(l)...)
			}
			return b.Append(r)
		})
		if err != nil {
			return out, fmt.Errorf("dead letter for topic %q partition %d offset %d: %w", l.Topic, l.Partition, l.Offset, err)
		}
	}
	if b.Count() > 0 {
		out.Data = b.Bytes()
	}
	return out, nil
}

// original calls f with the record as it stands in the log.
func (d *deadLetters) original(ctx context.Context, l host.DeadLetter, f func(*recordbatch.Record) error) (err error) {
	r, err := d.e.w.log.OpenReader(l.Topic, l.Partition, l.Offset)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	got, err := r.Next(ctx, 1)
	if err != nil {
		return err
	}
	found := false
	err = eachRecord(got.Data, func(rec *recordbatch.Record) error {
		if rec.Offset != l.Offset {
			return nil
		}
		found = true
		return f(rec)
	})
	if err == nil && !found {
		return fmt.Errorf("the record is no longer in the log: %w", logstore.ErrNotFound)
	}
	return err
}

// context returns Connect's headers about an error, in its order (KIP-298).
func (d *deadLetters) context(l host.DeadLetter) []recordbatch.Header {
	text := func(name, value string) recordbatch.Header {
		return recordbatch.Header{Key: "__connect.errors." + name, Value: []byte(value)}
	}
	message := text("exception.message", l.Message)
	if l.Message == "" {
		message.Value = nil
	}
	return []recordbatch.Header{
		text("topic", l.Topic),
		text("partition", strconv.Itoa(int(l.Partition))),
		text("offset", strconv.FormatInt(l.Offset, 10)),
		text("connector.name", d.e.c.name),
		text("task.id", strconv.Itoa(d.e.id)),
		text("stage", l.Stage),
		text("class.name", l.Class),
		text("exception.class.name", l.ErrorClass),
		message,
		text("exception.stacktrace", l.ErrorClass+": "+l.Message+"\n"),
	}
}
