package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/millrace-io/millrace/plugins/sdk"
)

// Limits of the source.
const (
	pollPause = 100 * time.Millisecond // between looks at a file that has not grown
	readBytes = 64 << 10               // read at a time
	maxLine   = 64 << 20               // record.max.bytes; a longer line is an error rather than memory without end
)

// source reads whole lines. Its offset is the byte after the last line that is in
// the log.
type source struct {
	file, topic string
	batchSize   int

	f        *os.File
	position int64  // of the next line's first byte
	buf      []byte // bytes from position on
	scanned  int    // of buf, without the end of a line
}

// named refuses what Kafka takes for standard input and output.
func named(file string) error {
	if file == "" {
		return errors.New("a plugin has no standard input and output of its own; name a file")
	}
	return nil
}

// Define declares the keys; they are those of Kafka's FileStreamSource.
func (s *source) Define(d *sdk.Def) {
	d.String(&s.file, "file", "File to read.", sdk.Default(""), sdk.Check(named))
	d.String(&s.topic, "topic", "Topic to write to.", sdk.Required(), sdk.NonEmpty())
	d.Int(&s.batchSize, "batch.size", "Most lines read at a time.", sdk.Default("2000"), sdk.AtLeast(1), sdk.Low())
}

func (s *source) partition() map[string]any { return map[string]any{"filename": s.file} }

// Open goes on at the stored position. A file that is not there yet is waited
// for.
func (s *source) Open(_ context.Context, t *sdk.SourceTask) error {
	s.position, _ = t.Offset(s.partition())["position"].(int64)
	return nil
}

// Read appends the lines that have come, and their end as the position.
func (s *source) Read(ctx context.Context, out *sdk.Batch) error {
	for {
		if n, err := s.lines(out); n > 0 || err != nil {
			return err
		}
		more, err := s.fill()
		if err != nil {
			return err
		}
		if more {
			continue
		}
		select {
		case <-time.After(pollPause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// fill reads more of the file and reports whether there was more.
func (s *source) fill() (bool, error) {
	if s.f == nil {
		f, err := os.Open(s.file)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		if err != nil {
			return false, sdk.FieldError("file", "source.file", "cannot read %s: %w", s.file, err)
		}
		s.f = f
	}
	at := len(s.buf)
	if at > maxLine {
		return false, sdk.Errorf(sdk.Invalid, "source.line_too_long", "%s has a line longer than %d bytes at byte %d", s.file, maxLine, s.position)
	}
	s.buf = slices.Grow(s.buf, readBytes)[:at+readBytes]
	n, err := s.f.ReadAt(s.buf[at:], s.position+int64(at))
	s.buf = s.buf[:at+n]
	if err != nil && !errors.Is(err, io.EOF) {
		return false, sdk.Retry(fmt.Errorf("read %s: %w", s.file, err), 0)
	}
	return n > 0, nil
}

// lines appends the whole lines of the buffer.
func (s *source) lines(out *sdk.Batch) (n int, err error) {
	used := 0
	for n < s.batchSize {
		end := bytes.IndexByte(s.buf[max(used, s.scanned):], '\n')
		if end < 0 {
			s.scanned = len(s.buf)
			break
		}
		end += max(used, s.scanned) - used
		line := bytes.TrimSuffix(s.buf[used:used+end], []byte("\r"))
		err := out.Append(&sdk.Record{
			Topic: s.topic, Partition: sdk.PartitionByKey, Timestamp: time.Now().UnixMilli(),
			Value: sdk.Data{Schema: lineSchema, Value: sdk.String(string(line))},
		})
		if err != nil {
			return n, err
		}
		used += end + 1
		n++
	}
	if n == 0 {
		return 0, nil
	}
	s.position += int64(used)
	s.scanned = max(0, s.scanned-used)
	s.buf = append(s.buf[:0], s.buf[used:]...)
	return n, out.Position(sdk.Position{Partition: s.partition(), Offset: map[string]any{"position": s.position}})
}

var lineSchema = sdk.Of(sdk.KindString)

// Close closes the file.
func (s *source) Close(context.Context) error {
	if s.f == nil {
		return nil
	}
	return s.f.Close()
}

// AlterOffsets takes {"filename": ...} with {"position": N} only.
func (s *source) AlterOffsets(_ context.Context, positions []sdk.Position) (bool, error) {
	for _, p := range positions {
		if _, ok := p.Partition["filename"].(string); !ok {
			return false, sdk.Errorf(sdk.Invalid, "offsets.invalid", "the partition of a file's offset needs \"filename\", a text")
		}
		if n, ok := p.Offset["position"].(int64); p.Offset != nil && (!ok || n < 0) {
			return false, sdk.Errorf(sdk.Invalid, "offsets.invalid", "the offset of a file needs \"position\", a whole number of bytes from 0 on")
		}
	}
	return true, nil
}
