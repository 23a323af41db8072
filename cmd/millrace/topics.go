package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"os"

	"github.com/spf13/cobra"

	"github.com/millrace-io/millrace/api"
)

// compact prints an object on one line.
func compact(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func readOffsets(file string) (api.Offsets, error) {
	var o api.Offsets
	b, err := os.ReadFile(file)
	if err != nil {
		return o, fmt.Errorf("read the offsets: %w", err)
	}
	if err := json.Unmarshal(b, &o); err != nil {
		return o, &codedError{exitInvalid, fmt.Errorf("%s: %w", file, err)}
	}
	return o, nil
}

func topicsCommand(c *client) *cobra.Command {
	cmd := &cobra.Command{Use: "topics", Aliases: []string{"topic"}, Short: "Look into the worker's log", Args: noArgs}
	cmd.AddCommand(c.topicsList(), c.topicsDescribe(), c.topicsTail())
	return cmd
}

// completeTopics offers the names of live topics.
func (c *client) completeTopics(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var topics []api.Topic
	if len(args) > 0 || c.call(cmd, "GET", "/topics", nil, &topics) != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, t := range topics {
		names = append(names, t.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func (c *client) topicsList() *cobra.Command {
	var internal bool
	cmd := &cobra.Command{
		Use: "list", Short: "List topics", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var topics []api.Topic
			if err := c.call(cmd, "GET", "/topics", nil, &topics); err != nil {
				return err
			}
			return c.show(cmd, topics, func(w io.Writer) {
				row(w, "TOPIC", "PARTITIONS", "RECORDS", "CLEANUP")
				for _, t := range topics {
					if t.Internal && !internal {
						continue
					}
					var n int64
					for _, p := range t.Partitions {
						n += p.End - p.Start
					}
					row(w, t.Name, len(t.Partitions), n, t.Cleanup)
				}
			})
		},
	}
	cmd.Flags().BoolVar(&internal, "internal", false, "show the worker's own topics too")
	return cmd
}

func (c *client) topicsDescribe() *cobra.Command {
	return &cobra.Command{
		Use: "describe TOPIC", Short: "Print a topic's partitions and offsets", Args: oneArg, ValidArgsFunction: c.completeTopics,
		RunE: func(cmd *cobra.Command, args []string) error {
			var t api.Topic
			if err := c.call(cmd, "GET", "/topics/"+url.PathEscape(args[0]), nil, &t); err != nil {
				return err
			}
			return c.show(cmd, t, func(w io.Writer) {
				row(w, "topic", t.Name)
				row(w, "id", t.ID)
				row(w, "cleanup", t.Cleanup)
				row(w, "PARTITION", "START", "END")
				for _, p := range t.Partitions {
					row(w, p.Partition, p.Start, p.End)
				}
			})
		},
	}
}

func (c *client) topicsTail() *cobra.Command {
	var from string
	var partition, limit int
	cmd := &cobra.Command{
		Use: "tail TOPIC", Short: "Print a partition's records as they come", Args: oneArg, ValidArgsFunction: c.completeTopics,
		RunE: func(cmd *cobra.Command, args []string) error {
			offset := from
			for left := limit; limit == 0 || left > 0; {
				var got api.Records
				path := fmt.Sprintf("/topics/%s/records?partition=%d&offset=%s&limit=%d&wait=2000", url.PathEscape(args[0]), partition, url.QueryEscape(offset), piece(limit, left))
				err := c.call(cmd, "GET", path, nil, &got)
				if cmd.Context().Err() != nil {
					return nil
				}
				if err != nil {
					return err
				}
				for _, r := range got.Records {
					if err := c.printRecord(cmd.OutOrStdout(), r); err != nil {
						return err
					}
				}
				left -= len(got.Records)
				offset = fmt.Sprint(got.Next)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&from, "from", "latest", "earliest, latest or an offset")
	cmd.Flags().IntVar(&partition, "partition", 0, "the partition")
	cmd.Flags().IntVarP(&limit, "limit", "n", 0, "end after so many records (0: never)")
	return cmd
}

func piece(limit, left int) int {
	if limit == 0 || left > 500 {
		return 500
	}
	return left
}

func (c *client) printRecord(w io.Writer, r api.Record) error {
	if c.json {
		_, err := fmt.Fprintln(w, compact(r))
		return err
	}
	text := func(s *string) string {
		if s == nil {
			return "null"
		}
		return plain(*s)
	}
	_, err := fmt.Fprintf(w, "%d\t%s\t%s\n", r.Offset, text(r.Key), text(r.Value))
	return err
}

func pluginsCommand(c *client) *cobra.Command {
	cmd := &cobra.Command{Use: "plugins", Aliases: []string{"plugin"}, Short: "Tell which connector classes there are", Args: noArgs}
	var all bool
	list := &cobra.Command{
		Use: "list", Short: "List classes", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var plugins []api.Plugin
			if err := c.call(cmd, "GET", fmt.Sprintf("/connector-plugins?connectorsOnly=%t", !all), nil, &plugins); err != nil {
				return err
			}
			return c.show(cmd, plugins, func(w io.Writer) {
				row(w, "TYPE", "VERSION", "CLASS", "")
				for _, p := range plugins {
					row(w, p.Type, p.Version, p.Class, p.Doc)
				}
			})
		},
	}
	list.Flags().BoolVar(&all, "all", false, "converters too")
	cmd.AddCommand(list, &cobra.Command{
		Use: "describe CLASS", Short: "Print a class's config keys", Args: oneArg,
		RunE: func(cmd *cobra.Command, args []string) error {
			var keys []api.Definition
			if err := c.call(cmd, "GET", "/connector-plugins/"+url.PathEscape(args[0])+"/config", nil, &keys); err != nil {
				return err
			}
			return c.show(cmd, keys, func(w io.Writer) {
				row(w, "KEY", "TYPE", "DEFAULT", "MEANING")
				for _, k := range keys {
					def := "-"
					if k.Required {
						def = "required"
					} else if k.DefaultValue != nil {
						def = *k.DefaultValue
					}
					row(w, k.Name, k.Type, def, k.Documentation)
				}
			})
		},
	})
	return cmd
}
