package sdk

import (
	"fmt"
	"strings"
)

// Markdown returns the key table of a connector's README, made from its Define.
func (d *Def) Markdown() string {
	var b strings.Builder
	group := "\x00"
	for _, f := range d.fields {
		if f.Group != group {
			group = f.Group
			if b.Len() > 0 {
				b.WriteByte('\n')
			}
			if group != "" {
				fmt.Fprintf(&b, "**%s**\n\n", group)
			}
			b.WriteString("| key | type | default | meaning |\n|---|---|---|---|\n")
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", f.Name, strings.ToLower(string(f.Type)), f.shownDefault(), f.meaning())
	}
	return b.String()
}

func (f *field) shownDefault() string {
	switch {
	case f.Required:
		return "required"
	case f.Default == nil:
		return "none"
	case *f.Default == "":
		return "empty"
	}
	return "`" + strings.ReplaceAll(*f.Default, "|", `\|`) + "`"
}

func (f *field) meaning() string {
	doc := strings.ReplaceAll(f.Documentation, "|", `\|`)
	if f.Ignored != "" {
		return doc + " Accepted without effect: " + f.Ignored
	}
	return doc
}
