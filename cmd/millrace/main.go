// Command millrace is the worker and its command line in one binary:
//
//	millrace worker        hosts connectors and serves the REST API
//	millrace quickstart    shows records moving, with nothing else installed
//	millrace connectors    lists, creates and steers connectors of a worker
//	millrace topics        looks into the worker's log
//	millrace plugins       tells which connector classes there are
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/millrace-io/millrace/api"
)

// version is set by the release build.
var version = "0.1.0"

// Exit codes, which scripts may rely on.
const (
	exitFailure  = 1   // the command could not do it
	exitUsage    = 2   // wrong arguments or flags
	exitRefused  = 3   // the worker refuses to start so: unsafe, locked, or a newer version's data
	exitNotFound = 4   // what was named does not exist
	exitInvalid  = 5   // the config is refused
	exitStorage  = 74  // the log has stopped after a storage error
	exitKilled   = 143 // a second signal cut the drain short
)

// codedError is an error with the exit code it ends the program with.
type codedError struct {
	code int
	err  error
}

func (e *codedError) Error() string { return e.err.Error() }
func (e *codedError) Unwrap() error { return e.err }

func main() {
	os.Exit(execute(context.Background(), os.Args[1:]))
}

// execute is main without the process around it.
func execute(ctx context.Context, args []string) int {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	cmd := newCommand()
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintln(os.Stderr, "millrace: "+err.Error())
	return exitCode(err)
}

func exitCode(err error) int {
	if e, ok := errors.AsType[*codedError](err); ok {
		return e.code
	}
	if e, ok := errors.AsType[*api.Error](err); ok {
		switch e.Status {
		case 404:
			return exitNotFound
		case 400:
			return exitInvalid
		}
	}
	return exitFailure
}

// newCommand is the whole command line.
func newCommand() *cobra.Command {
	root := &cobra.Command{
		Use: "millrace", Short: "Connectors, and the log between them, in one worker",
		SilenceUsage: true, SilenceErrors: true, Version: version,
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return &codedError{exitUsage, fmt.Errorf("%w; see `%s --help`", err, c.CommandPath())}
	})
	c := &client{}
	c.flags(root.PersistentFlags())
	root.AddCommand(workerCommand(), quickstartCommand(), connectorsCommand(c), topicsCommand(c), pluginsCommand(c), versionCommand())
	return root
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "millrace", version)
			return err
		},
	}
}

// noArgs, oneArg and someArgs check the number of arguments with our exit code.
func noArgs(c *cobra.Command, args []string) error { return usage(cobra.NoArgs(c, args), c) }

func oneArg(c *cobra.Command, args []string) error { return usage(cobra.ExactArgs(1)(c, args), c) }

func someArgs(c *cobra.Command, args []string) error {
	return usage(cobra.MinimumNArgs(1)(c, args), c)
}

func usage(err error, c *cobra.Command) error {
	if err == nil {
		return nil
	}
	return &codedError{exitUsage, fmt.Errorf("%w; usage: %s", err, c.UseLine())}
}
