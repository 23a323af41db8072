package cdc

import (
	"fmt"
	"strings"
)

// KeyRule is one entry of message.key.columns.
type KeyRule struct {
	Table   Pattern
	Columns []string
}

// ParseKeyRules reads "<table regex>:<col>,<col>;<table regex>:<col>".
func ParseKeyRules(text string) ([]KeyRule, error) {
	var rules []KeyRule
	for _, part := range strings.Split(text, ";") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		i := strings.LastIndexByte(part, ':')
		if i <= 0 || i == len(part)-1 {
			return nil, fmt.Errorf("%q is not of the form <table>:<column>,<column>", part)
		}
		p, err := ParsePattern(strings.TrimSpace(part[:i]))
		if err != nil {
			return nil, err
		}
		rule := KeyRule{Table: p}
		for _, c := range strings.Split(part[i+1:], ",") {
			if c = strings.TrimSpace(c); c != "" {
				rule.Columns = append(rule.Columns, c)
			}
		}
		rules = append(rules, rule)
	}
	return rules, nil
}

// KeyColumns returns the columns that a rule sets for a table, nil without one.
func KeyColumns(rules []KeyRule, t TableID) []string {
	for _, r := range rules {
		if r.Table.Match(t.String()) {
			return r.Columns
		}
	}
	return nil
}
