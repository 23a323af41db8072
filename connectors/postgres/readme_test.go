package main

import (
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/millrace-io/millrace/plugins/sdk"
)

var update = flag.Bool("update", false, "write the key table of README.md anew")

// keysMark stands in README.md before the generated table.
const keysMark = "<!-- keys: go test -run TestReadmeKeys -update -->\n"

func TestReadmeKeys(t *testing.T) {
	b, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	head, have, ok := strings.Cut(string(b), keysMark)
	if !ok {
		t.Fatalf("README.md lacks the line %q", keysMark)
	}
	var d sdk.Def
	newSource().Define(&d)
	want := "\n" + d.Markdown()
	if *update {
		if err := os.WriteFile("README.md", []byte(head+keysMark+want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if have != want {
		t.Error("the key table of README.md is not that of Define; run go test -run TestReadmeKeys -update ./connectors/postgres and review the difference")
	}
}

func TestEveryKeyIsDescribed(t *testing.T) {
	var d sdk.Def
	newSource().Define(&d)
	for _, k := range d.Keys() {
		if !strings.HasSuffix(k.Documentation, ".") {
			t.Errorf("the description of %s is no sentence: %q", k.Name, k.Documentation)
		}
		if k.Ignored != "" && !strings.HasSuffix(k.Ignored, ".") {
			t.Errorf("why %s is ignored is no sentence: %q", k.Name, k.Ignored)
		}
	}
}

func TestPluginDescribesItself(t *testing.T) {
	p := plugin()
	if len(p.Connectors) != 1 || p.Connectors[0].Class != "io.debezium.connector.postgresql.PostgresConnector" || p.Connectors[0].Source == nil {
		t.Errorf("%+v", p)
	}
}
