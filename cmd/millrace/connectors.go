package main

import (
	"bytes"
	"fmt"
	"io"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/millrace-io/millrace/api"
)

func connectorsCommand(c *client) *cobra.Command {
	cmd := &cobra.Command{Use: "connectors", Aliases: []string{"connector"}, Short: "List, create and steer connectors", Args: noArgs}
	cmd.AddCommand(
		c.listCommand(), c.getCommand(), c.createCommand(), c.applyCommand(), c.validateCommand(), c.statusCommand(), c.restartCommand(), c.offsetsCommand(),
		c.simple("delete", "Delete connectors; their offsets stay", "DELETE", ""),
		c.simple("pause", "Pause connectors; tasks keep what they hold", "PUT", "pause"),
		c.simple("resume", "Let paused or stopped connectors go on", "PUT", "resume"),
		c.simple("stop", "Stop connectors; their processes end", "PUT", "stop"),
	)
	return cmd
}

// complete offers the names of live connectors.
func (c *client) complete(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var names []string
	if err := c.call(cmd, "GET", "/connectors", nil, &names); err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return slices.DeleteFunc(names, func(n string) bool { return slices.Contains(args, n) }), cobra.ShellCompDirectiveNoFileComp
}

// simple is a command that makes one request for each connector named.
func (c *client) simple(verb, short, method, below string) *cobra.Command {
	return &cobra.Command{
		Use: verb + " NAME...", Short: short, ValidArgsFunction: c.complete,
		Args: someArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, name := range args {
				path := api.ConnectorPath(name)
				if below != "" {
					path = api.ConnectorPath(name, below)
				}
				if err := c.call(cmd, method, path, nil, nil); err != nil {
					return err
				}
				if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", plain(name), done(verb)); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// done is the past of a verb.
func done(verb string) string {
	switch verb {
	case "stop":
		return "stopped"
	case "apply":
		return "applied"
	}
	return strings.TrimSuffix(verb, "e") + "ed"
}

func (c *client) listCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List connectors with their state", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var all map[string]struct {
				Status api.Status `json:"status"`
			}
			if err := c.call(cmd, "GET", "/connectors?expand=status", nil, &all); err != nil {
				return err
			}
			return c.show(cmd, all, func(w io.Writer) {
				row(w, "NAME", "TYPE", "STATE", "TASKS", "LAG", "CONDITION")
				for _, name := range sortedNames(all) {
					s := all[name].Status
					row(w, name, s.Type, s.Connector.State, tasksText(s), lagText(s), conditionText(s))
				}
			})
		},
	}
}

func sortedNames[V any](m map[string]V) []string {
	names := make([]string, 0, len(m))
	for n := range m {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

func tasksText(s api.Status) string {
	running := 0
	for _, t := range s.Tasks {
		if t.State == "RUNNING" {
			running++
		}
	}
	return fmt.Sprintf("%d/%d", running, len(s.Tasks))
}

func lagText(s api.Status) string {
	if s.Type != "sink" {
		return "-"
	}
	var n int64
	for _, l := range s.Lag {
		n += l.Records
	}
	return fmt.Sprint(n)
}

func conditionText(s api.Status) string {
	if s.Condition == nil {
		return ""
	}
	return s.Condition.Code
}

func (c *client) getCommand() *cobra.Command {
	return &cobra.Command{
		Use: "get NAME", Short: "Print a connector's config", Args: oneArg, ValidArgsFunction: c.complete,
		RunE: func(cmd *cobra.Command, args []string) error {
			var config map[string]string
			if err := c.call(cmd, "GET", api.ConnectorPath(args[0], "config"), nil, &config); err != nil {
				return err
			}
			return c.show(cmd, config, func(w io.Writer) {
				for _, k := range sortedNames(config) {
					row(w, k, config[k])
				}
			})
		},
	}
}

// readConfig reads a connector's config from a file, or from standard input for
// "-": JSON in either shape that the REST API takes, or properties.
func readConfig(cmd *cobra.Command, file string) (name string, config map[string]string, err error) {
	var b []byte
	if file == "-" {
		b, err = io.ReadAll(cmd.InOrStdin())
	} else {
		b, err = os.ReadFile(file)
	}
	if err != nil {
		return "", nil, fmt.Errorf("read the config: %w", err)
	}
	if config, err = parseConfig(bytes.TrimSpace(b)); err != nil {
		return "", nil, &codedError{exitInvalid, fmt.Errorf("%s: %w", file, err)}
	}
	if config["name"] == "" {
		return "", nil, &codedError{exitInvalid, fmt.Errorf("%s has no name; add \"name\"", file)}
	}
	return config["name"], config, nil
}

func (c *client) createCommand() *cobra.Command {
	var state string
	cmd := &cobra.Command{
		Use: "create FILE", Short: "Create a connector from a file (- reads standard input)", Args: oneArg,
		RunE: func(cmd *cobra.Command, args []string) error {
			name, config, err := readConfig(cmd, args[0])
			if err != nil {
				return err
			}
			if err := c.warn(cmd, config); err != nil {
				return err
			}
			var out api.Connector
			if err := c.call(cmd, "POST", "/connectors", api.Create{Name: name, Config: config, InitialState: state}, &out); err != nil {
				return err
			}
			return c.show(cmd, out, func(w io.Writer) { row(w, name+": created") })
		},
	}
	cmd.Flags().StringVar(&state, "initial-state", "", "RUNNING, PAUSED or STOPPED")
	return cmd
}

func (c *client) applyCommand() *cobra.Command {
	return &cobra.Command{
		Use: "apply FILE...", Short: "Create or update connectors from files (- reads standard input)",
		Args: someArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, file := range args {
				name, config, err := readConfig(cmd, file)
				if err != nil {
					return err
				}
				if err := c.warn(cmd, config); err != nil {
					return err
				}
				if err := c.call(cmd, "PUT", api.ConnectorPath(name, "config"), config, nil); err != nil {
					return err
				}
				if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: applied\n", plain(name)); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// validation asks the worker to check a config.
func (c *client) validation(cmd *cobra.Command, config map[string]string) (api.Validation, error) {
	var v api.Validation
	class := config["connector.class"]
	err := c.call(cmd, "PUT", "/connector-plugins/"+url.PathEscape(class)+"/config/validate", config, &v)
	return v, err
}

// warn prints what a config's validation remarks; errors are left to the request
// that follows.
func (c *client) warn(cmd *cobra.Command, config map[string]string) error {
	v, err := c.validation(cmd, config)
	if err != nil {
		return err
	}
	for _, w := range v.Warnings {
		if _, err := fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s %s\n", plain(w.Key), plain(w.Message)); err != nil {
			return err
		}
	}
	return nil
}

func (c *client) validateCommand() *cobra.Command {
	return &cobra.Command{
		Use: "validate FILE", Short: "Check a config without creating anything", Args: oneArg,
		RunE: func(cmd *cobra.Command, args []string) error {
			_, config, err := readConfig(cmd, args[0])
			if err != nil {
				return err
			}
			v, err := c.validation(cmd, config)
			if err != nil {
				return err
			}
			err = c.show(cmd, v, func(w io.Writer) {
				for _, k := range v.Configs {
					for _, e := range k.Value.Errors {
						row(w, "error", k.Definition.Name, e)
					}
				}
				for _, warning := range v.Warnings {
					row(w, "warning", warning.Key, warning.Message)
				}
				row(w, fmt.Sprintf("%d error(s), %d warning(s)", v.ErrorCount, len(v.Warnings)))
			})
			if err == nil && v.ErrorCount > 0 {
				err = &codedError{exitInvalid, fmt.Errorf("%s is refused", args[0])}
			}
			return err
		},
	}
}

func (c *client) restartCommand() *cobra.Command {
	var tasks, failed bool
	task := -1
	cmd := &cobra.Command{
		Use: "restart NAME", Short: "Restart a connector, its tasks, or one task", Args: oneArg, ValidArgsFunction: c.complete,
		RunE: func(cmd *cobra.Command, args []string) error {
			path := api.ConnectorPath(args[0], "restart") + fmt.Sprintf("?includeTasks=%t&onlyFailed=%t", tasks, failed)
			if task >= 0 {
				path = api.ConnectorPath(args[0], "tasks", fmt.Sprint(task), "restart")
			}
			if err := c.call(cmd, "POST", path, nil, nil); err != nil {
				return err
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: restarting\n", plain(args[0]))
			return err
		},
	}
	cmd.Flags().BoolVar(&tasks, "tasks", false, "restart the tasks too")
	cmd.Flags().BoolVar(&failed, "failed", false, "only what has failed")
	cmd.Flags().IntVar(&task, "task", -1, "one task, by number")
	return cmd
}

func (c *client) offsetsCommand() *cobra.Command {
	var reset bool
	var set string
	cmd := &cobra.Command{
		Use: "offsets NAME", Short: "Print a connector's offsets, or change those of a stopped one", Args: oneArg, ValidArgsFunction: c.complete,
		RunE: func(cmd *cobra.Command, args []string) error {
			path := api.ConnectorPath(args[0], "offsets")
			var message api.Message
			switch {
			case reset:
				return c.said(cmd, c.call(cmd, "DELETE", path, nil, &message), &message)
			case set != "":
				body, err := readOffsets(set)
				if err != nil {
					return err
				}
				return c.said(cmd, c.call(cmd, "PATCH", path, body, &message), &message)
			}
			var out api.Offsets
			if err := c.call(cmd, "GET", path, nil, &out); err != nil {
				return err
			}
			return c.show(cmd, out, func(w io.Writer) {
				row(w, "PARTITION", "OFFSET")
				for _, o := range out.Offsets {
					row(w, compact(o.Partition), compact(o.Offset))
				}
			})
		},
	}
	cmd.Flags().BoolVar(&reset, "reset", false, "remove all offsets")
	cmd.Flags().StringVar(&set, "set", "", `JSON file with {"offsets":[{"partition":{...},"offset":{...}}]}`)
	return cmd
}

func (c *client) said(cmd *cobra.Command, err error, m *api.Message) error {
	if err != nil {
		return err
	}
	return c.show(cmd, m, func(w io.Writer) { row(w, m.Message) })
}

func (c *client) statusCommand() *cobra.Command {
	var watch bool
	cmd := &cobra.Command{
		Use: "status NAME", Short: "Print a connector's state, progress and lag", Args: oneArg, ValidArgsFunction: c.complete,
		RunE: func(cmd *cobra.Command, args []string) error {
			var before *api.Status
			for {
				var s api.Status
				if err := c.call(cmd, "GET", api.ConnectorPath(args[0], "status"), nil, &s); err != nil {
					return err
				}
				if err := c.show(cmd, s, func(w io.Writer) { printStatus(w, s, before, time.Second) }); err != nil || !watch {
					return err
				}
				before = &s
				select {
				case <-cmd.Context().Done():
					return nil
				case <-time.After(time.Second):
				}
			}
		},
	}
	cmd.Flags().BoolVar(&watch, "watch", false, "print it every second, with rates and time left")
	return cmd
}

// printStatus prints a status; before is the one of interval ago, for rates.
func printStatus(w io.Writer, s api.Status, before *api.Status, interval time.Duration) {
	row(w, s.Name, s.Type, s.Connector.State, conditionLine(s.Condition))
	for _, t := range s.Tasks {
		row(w, fmt.Sprintf("  task %d", t.ID), "", t.State, firstLine(t.Trace))
	}
	for i, d := range s.Details {
		line := fmt.Sprintf("  task %d: %d read, %d written", d.ID, d.Records.Read, d.Records.Written)
		if n := d.Records.Failed; n > 0 {
			line += fmt.Sprintf(", %d failed, %d skipped", n, d.Records.Skipped)
		}
		if before != nil && i < len(before.Details) {
			line += fmt.Sprintf(", %.0f/s", float64(d.Records.Written-before.Details[i].Records.Written)/interval.Seconds())
		}
		row(w, line)
		if d.Progress != nil && d.Progress.Phase != "" {
			row(w, "  "+progressLine(d.Progress, before, i, interval))
		}
	}
	if p := s.Process; p != nil {
		row(w, fmt.Sprintf("  process %d: %.1f MiB, %.2f s CPU, %d restarts", p.PID, float64(p.RSSBytes)/(1<<20), p.CPUSeconds, p.Restarts))
	}
	if s.Type == "sink" {
		row(w, "  lag: "+lagText(s)+" records")
	}
}

// progressLine tells rows, percent, rate and time left.
func progressLine(p *api.Progress, before *api.Status, i int, interval time.Duration) string {
	line := p.Phase
	if p.Item != "" {
		line += " " + p.Item
	}
	if p.Items > 0 {
		line += fmt.Sprintf(" (%d of %d)", p.ItemsDone, p.Items)
	}
	if p.Done > 0 {
		line += fmt.Sprintf(": %d rows", p.Done)
	}
	if p.Total > 0 {
		line += fmt.Sprintf(", %.0f%%", 100*min(1, float64(p.Done)/float64(p.Total)))
	}
	if before == nil || i >= len(before.Details) || before.Details[i].Progress == nil {
		return line
	}
	rate := float64(p.Done-before.Details[i].Progress.Done) / interval.Seconds()
	if rate > 0 {
		line += fmt.Sprintf(", %.0f rows/s", rate)
		if left := float64(p.Total - p.Done); left > 0 {
			line += fmt.Sprintf(", %s left", (time.Duration(left/rate) * time.Second).Round(time.Second))
		}
	}
	return line
}

func conditionLine(c *api.Condition) string {
	if c == nil {
		return ""
	}
	return c.Code + ": " + firstLine(c.Message)
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
