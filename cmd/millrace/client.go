package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"unicode"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/millrace-io/millrace/api"
)

// client is what the commands that call a worker share.
type client struct {
	url, tokenFile string
	json           bool
}

func (c *client) flags(f *pflag.FlagSet) {
	f.StringVar(&c.url, "url", "", "address of the worker (default $MILLRACE_URL or http://127.0.0.1:8083)")
	f.StringVar(&c.tokenFile, "token-file", "", "file with the worker's bearer token (default $MILLRACE_TOKEN_FILE)")
	f.BoolVar(&c.json, "json", false, "print JSON for programs")
}

// api makes the client from flags and environment.
func (c *client) api() (*api.Client, error) {
	out := &api.Client{Base: "http://127.0.0.1:8083"}
	if v := os.Getenv("MILLRACE_URL"); v != "" {
		out.Base = v
	}
	if c.url != "" {
		out.Base = c.url
	}
	file := c.tokenFile
	if file == "" {
		file = os.Getenv("MILLRACE_TOKEN_FILE")
	}
	if file != "" {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read the token: %w", err)
		}
		out.Token = strings.TrimSpace(string(b))
	}
	return out, nil
}

// call makes one request of a command.
func (c *client) call(cmd *cobra.Command, method, path string, body, out any) error {
	a, err := c.api()
	if err != nil {
		return err
	}
	return a.Call(cmd.Context(), method, path, body, out)
}

// show prints v as JSON when programs read, otherwise by people.
func (c *client) show(cmd *cobra.Command, v any, people func(io.Writer)) error {
	out := cmd.OutOrStdout()
	if c.json {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(v)
	}
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	people(t)
	return t.Flush()
}

// row prints one line of a table. What comes from outside loses its control
// characters: a terminal would obey them.
func row(w io.Writer, cells ...any) {
	for i, cell := range cells {
		if i > 0 {
			_, _ = fmt.Fprint(w, "\t")
		}
		_, _ = fmt.Fprint(w, plain(fmt.Sprint(cell)))
	}
	_, _ = fmt.Fprintln(w)
}

// plain replaces what a terminal would act on.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
			return ' '
		}
		return r
	}, s)
}
