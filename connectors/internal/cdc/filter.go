package cdc

import (
	"fmt"
	"regexp"
	"strings"
)

// Pattern is one entry of a filter list: an anchored expression that ignores case.
type Pattern struct {
	Text string
	re   *regexp.Regexp
}

// Match reports whether the whole of name matches.
func (p Pattern) Match(name string) bool { return p.re.MatchString(name) }

// Patterns is a list of which any may match.
type Patterns []Pattern

// Match reports whether one of the patterns matches.
func (ps Patterns) Match(name string) bool {
	for _, p := range ps {
		if p.Match(name) {
			return true
		}
	}
	return false
}

// javaOnly are constructs that Go's expressions lack, for a helpful error.
var javaOnly = []struct{ text, name string }{
	{"(?=", "look-ahead"}, {"(?!", "negative look-ahead"}, {"(?<=", "look-behind"}, {"(?<!", "negative look-behind"},
	{"(?>", "an atomic group"}, {"*+", "a possessive quantifier"}, {"++", "a possessive quantifier"}, {`\1`, "a back-reference"}, {"&&[", "a class intersection"},
}

// ParsePattern compiles one entry.
func ParsePattern(text string) (Pattern, error) {
	re, err := regexp.Compile("(?i)^(?:" + text + ")$")
	if err == nil {
		return Pattern{text, re}, nil
	}
	for _, j := range javaOnly {
		if strings.Contains(text, j.text) {
			return Pattern{}, fmt.Errorf("%q uses %s (%s), which is not supported; write the names out instead", text, j.name, j.text)
		}
	}
	return Pattern{}, fmt.Errorf("%q is not a regular expression: %w", text, err)
}

// ParsePatterns compiles a list that was split at commas; a comma inside an
// expression is written \, and is put together again here.
func ParsePatterns(items []string) (Patterns, error) {
	var ps Patterns
	for _, text := range joinEscaped(items) {
		p, err := ParsePattern(text)
		if err != nil {
			return nil, err
		}
		ps = append(ps, p)
	}
	return ps, nil
}

func joinEscaped(items []string) []string {
	var out []string
	open := false
	for _, item := range items {
		if open {
			out[len(out)-1] += "," + item
		} else if item != "" {
			out = append(out, item)
		}
		open = strings.HasSuffix(item, `\`)
		if open && len(out) > 0 {
			out[len(out)-1] = strings.TrimSuffix(out[len(out)-1], `\`)
		}
	}
	return out
}

// Filter decides by an include or an exclude list; both empty let all pass.
type Filter struct{ Include, Exclude Patterns }

// Allows reports whether a name passes.
func (f Filter) Allows(name string) bool {
	if len(f.Include) > 0 {
		return f.Include.Match(name)
	}
	return !f.Exclude.Match(name)
}

// Capture is what is captured of a database.
type Capture struct {
	Schemas Filter // by schema or database
	Tables  Filter // by schema.table
	Columns Filter // by schema.table.column
}

// Table reports whether a table is captured.
func (c *Capture) Table(t TableID) bool {
	return c.Schemas.Allows(t.Schema) && c.Tables.Allows(t.String())
}

// Column reports whether a column's value is part of the row.
func (c *Capture) Column(t TableID, column string) bool {
	return c.Columns.Allows(t.String() + "." + column)
}
