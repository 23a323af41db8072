package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"os"

	"github.com/millrace-io/millrace/plugins/sdk"
)

// sink appends lines. A crash between a write and its commit repeats the lines in
// between: a file has nothing to know them by.
type sink struct {
	file string

	f *os.File
	w *bufio.Writer
}

// Define declares the keys; they are those of Kafka's FileStreamSink.
func (s *sink) Define(d *sdk.Def) {
	d.String(&s.file, "file", "File to append to; it is made when it is not there.", sdk.Default(""), sdk.Check(named))
}

// Open opens the file, and cuts off a line that a crash has left half written.
func (s *sink) Open(_ context.Context, _ *sdk.SinkTask) (err error) {
	if s.f, err = os.OpenFile(s.file, os.O_CREATE|os.O_RDWR, 0o644); err != nil {
		return sdk.FieldError("file", "sink.file", "cannot write %s: %w", s.file, err)
	}
	if err := s.repair(); err != nil {
		return sdk.FieldError("file", "sink.file", "cannot go on in %s: %w", s.file, err)
	}
	s.w = bufio.NewWriterSize(s.f, 64<<10)
	return nil
}

// repair moves to the end of the last whole line.
func (s *sink) repair() error {
	info, err := s.f.Stat()
	if err != nil {
		return err
	}
	end := info.Size()
	for tail := make([]byte, 4096); end > 0; {
		n := min(end, int64(len(tail)))
		if _, err := s.f.ReadAt(tail[:n], end-n); err != nil {
			return err
		}
		if i := bytes.LastIndexByte(tail[:n], '\n'); i >= 0 {
			end = end - n + int64(i) + 1
			break
		}
		end -= n
	}
	if err := s.f.Truncate(end); err != nil {
		return err
	}
	_, err = s.f.Seek(end, 0)
	return err
}

// Write buffers one line per record: the value as it is stored.
func (s *sink) Write(_ context.Context, records []sdk.Record) error {
	for i := range records {
		line := records[i].Value.Value.Bytes()
		if records[i].Value.Value.IsNull() {
			line = []byte("null")
		}
		// A bufio.Writer keeps its first error, so the last call tells.
		_, _ = s.w.Write(line)
		if err := s.w.WriteByte('\n'); err != nil {
			return sdk.Errorf(sdk.Unavailable, "sink.file", "cannot write %s: %w", s.file, err)
		}
	}
	return nil
}

// Flush makes what was written durable; only then its offsets are committed.
func (s *sink) Flush(context.Context) error {
	if err := errors.Join(s.w.Flush(), s.f.Sync()); err != nil {
		return sdk.Errorf(sdk.Internal, "sink.file", "cannot make %s durable: %w", s.file, err)
	}
	return nil
}

// RawValues takes values as they are stored: what is in the log is what the file
// shows.
func (s *sink) RawValues() bool { return true }

// Close closes the file; what was not flushed comes again.
func (s *sink) Close(context.Context) error {
	if s.f == nil {
		return nil
	}
	return s.f.Close()
}

// AlterOffsets takes any offsets: the file keeps none.
func (s *sink) AlterOffsets(context.Context, []sdk.Position) (bool, error) { return true, nil }
