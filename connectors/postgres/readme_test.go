package main

import (
	"strings"
	"testing"

	"github.com/millrace-io/millrace/plugins/sdk"
	"github.com/millrace-io/millrace/plugins/sdk/sdktest"
)

func TestReadmeHasTheKeys(t *testing.T) {
	sdktest.Keys(t, "README.md", "source", newSource().Define)
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
