package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/millrace-io/millrace/api"
)

// quickstartPort is the worker's usual one; another is taken when it is in use.
const quickstartPort = "127.0.0.1:8083"

func quickstartCommand() *cobra.Command {
	var seconds int
	cmd := &cobra.Command{
		Use: "quickstart", Short: "Show records moving, with nothing else installed", Args: noArgs,
		Long: `Start a worker in a temporary directory with a stream of made-up orders that
goes through the log into a file of JSON lines, and show it moving. Ctrl-C ends
everything and leaves nothing behind.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			if seconds > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, time.Duration(seconds)*time.Second)
				defer cancel()
			}
			return quickstart(ctx, cmd.OutOrStdout())
		},
	}
	cmd.Flags().IntVar(&seconds, "seconds", 0, "end by itself after so long (0: only at Ctrl-C)")
	return cmd
}

func quickstart(ctx context.Context, out io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "millrace-quickstart-")
	if err != nil {
		return fmt.Errorf("make a temporary directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	s, err := loadSettings(workerCommand().Flags())
	if err != nil {
		return err
	}
	s.dataDir, s.listen, s.logLevel, s.journalMiB = filepath.Join(dir, "data"), freeAddress(ctx), "WARN", 16
	w, err := openWorker(ctx, s)
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- w.run(running) }()
	err = show(ctx, out, &api.Client{Base: w.address}, filepath.Join(dir, "orders.jsonl"))
	stop()
	return errors.Join(err, <-ended)
}

// freeAddress is the usual address, or one that the system picks when that is in
// use.
func freeAddress(ctx context.Context) string {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", quickstartPort)
	if err != nil {
		return "127.0.0.1:0"
	}
	if l.Close() != nil {
		return "127.0.0.1:0"
	}
	return quickstartPort
}

// show creates the sample pipeline and prints a line a second until ctx ends.
func show(ctx context.Context, out io.Writer, c *api.Client, file string) error {
	pipeline := []api.Create{
		{Name: "orders", Config: map[string]string{"connector.class": "OrdersSource", "topic": "orders", "interval.ms": "20"}},
		{Name: "orders-file", Config: map[string]string{"connector.class": "FileStreamSink", "topics": "orders", "file": file}},
	}
	for _, p := range pipeline {
		if err := c.Call(ctx, "POST", "/connectors", p, nil); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
	}
	if _, err := fmt.Fprintf(out, `A worker runs at %[1]s. Orders go through its log into
  %[2]s
Look at it from another terminal:
  curl -s %[1]s/connectors?expand=status
  curl -s %[1]s/connectors/orders-file/status
  curl -s '%[1]s/topics/orders/records?limit=3'
  tail -f %[2]s
Ctrl-C ends it and removes everything.

`, c.Base, file); err != nil {
		return err
	}
	return follow(ctx, out, c, file)
}

// follow prints what moves, and the newest line of the file.
func follow(ctx context.Context, out io.Writer, c *api.Client, file string) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			_, err := fmt.Fprintln(out, "\nstopping")
			return err
		case <-tick.C:
		}
		var source, sink api.Status
		err := errors.Join(
			c.Call(ctx, "GET", "/connectors/orders/status", nil, &source),
			c.Call(ctx, "GET", "/connectors/orders-file/status", nil, &sink))
		if ctx.Err() != nil {
			continue
		}
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(out, "orders %-9s %6d read   orders-file %-9s %6d written   lag %s   %s\n",
			source.Connector.State, read(source), sink.Connector.State, written(sink), lagText(sink), lastLine(file)); err != nil {
			return err
		}
	}
}

func read(s api.Status) (n int64) {
	for _, d := range s.Details {
		n += d.Records.Read
	}
	return n
}

func written(s api.Status) (n int64) {
	for _, d := range s.Details {
		n += d.Records.Written
	}
	return n
}

// lastLine returns the beginning of the newest whole line of a file.
func lastLine(file string) string {
	const most = 4096
	f, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return ""
	}
	at := max(0, info.Size()-most)
	b := make([]byte, min(info.Size(), most))
	if _, err := f.ReadAt(b, at); err != nil {
		return ""
	}
	return newest(string(b))
}

func newest(text string) string {
	text = strings.TrimRight(text, "\n")
	if i := strings.LastIndexByte(text, '\n'); i >= 0 {
		text = text[i+1:]
	}
	const shown = 70
	if len(text) > shown {
		text = text[:shown] + "..."
	}
	return plain(text)
}
