package main

import (
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/millrace-io/millrace/plugins/sdk"
)

var update = flag.Bool("update", false, "write golden files anew")

// TestGoldenReadme keeps the key table of the README as Define has it.
func TestGoldenReadme(t *testing.T) {
	const mark = "<!-- keys -->\n"
	var d sdk.Def
	(&sink{}).Define(&d)
	b, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	text, _, ok := strings.Cut(string(b), mark)
	if !ok {
		t.Fatalf("README.md has no line %q", mark)
	}
	want := text + mark + "\n## Keys\n\n" + d.Markdown()
	if *update {
		if err := os.WriteFile("README.md", []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if string(b) != want {
		t.Error("the key table of README.md is not what Define declares; run `make golden`")
	}
}
