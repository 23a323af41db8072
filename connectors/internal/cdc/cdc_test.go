package cdc_test

import (
	"strings"
	"testing"

	"github.com/millrace-io/millrace/connectors/internal/cdc"
	"github.com/millrace-io/millrace/plugins/sdk"
)

func TestNames(t *testing.T) {
	for _, c := range []struct {
		names               cdc.Names
		table               cdc.TableID
		topic, schema, want string
		field               string
	}{
		{cdc.Names{Prefix: "shop", Delimiter: "."}, cdc.TableID{Schema: "Shop Schema", Name: "Ünïcode"}, "shop.Shop_Schema._n_code", "shop.Shop_Schema._n_code", "a-b", "a-b"},
		{cdc.Names{Prefix: "sh-op", Delimiter: "_", SchemaAdjust: "avro", FieldAdjust: "avro"}, cdc.TableID{Schema: "public", Name: "dash-table"}, "sh-op_public_dash-table", "sh_op_public_dash_table", "_1st", "1st"},
		{cdc.Names{Prefix: "s", Delimiter: ".", SchemaAdjust: "avro_unicode", FieldAdjust: "avro_unicode"}, cdc.TableID{Schema: "p", Name: "a_b"}, "s.p.a_b", "s.p.a_u005fb", "emoji_ud83d_ude00", "emoji😀"},
	} {
		topic := c.names.Topic(c.table)
		if topic != c.topic || c.names.Schema(topic) != c.schema || c.names.Field(c.field) != c.want {
			t.Errorf("%v: topic %s, schema %s, field %s", c.table, topic, c.names.Schema(topic), c.names.Field(c.field))
		}
	}
	if long := (cdc.Names{Prefix: strings.Repeat("x", 300), Delimiter: "."}).Named("message"); len(long) != 249 {
		t.Errorf("a topic of %d characters", len(long))
	}
}

func TestPatterns(t *testing.T) {
	ps, err := cdc.ParsePatterns(sdk.SplitList(`public\.a, other\.b{1\,2}`))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"public.a": true, "PUBLIC.A": true, "public.ab": false, "xpublic.a": false, "publicxa": false, "other.bb": true, "other.bbb": false} {
		if ps.Match(name) != want {
			t.Errorf("%s: %v", name, !want)
		}
	}
	for text, word := range map[string]string{"a(?!b)": "look-ahead", "(?<=a)b": "look-behind", "a++": "possessive", "(": "expression"} {
		if _, err := cdc.ParsePattern(text); err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%s: %v", text, err)
		}
	}
	exclude := cdc.Filter{Exclude: ps}
	if exclude.Allows("public.a") || !exclude.Allows("public.z") {
		t.Error("an exclude list")
	}
}

func TestKeyRules(t *testing.T) {
	rules, err := cdc.ParseKeyRules(`public\.(a|b):x,y;(.*)\.c:z`)
	if err != nil {
		t.Fatal(err)
	}
	if got := cdc.KeyColumns(rules, cdc.TableID{Schema: "public", Name: "b"}); strings.Join(got, ",") != "x,y" {
		t.Error(got)
	}
	if got := cdc.KeyColumns(rules, cdc.TableID{Schema: "any", Name: "c"}); strings.Join(got, ",") != "z" {
		t.Error(got)
	}
	if got := cdc.KeyColumns(rules, cdc.TableID{Schema: "any", Name: "d"}); got != nil {
		t.Error(got)
	}
	for _, bad := range []string{"a", ":x", "a:", "(:x"} {
		if _, err := cdc.ParseKeyRules(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func TestMasks(t *testing.T) {
	masks, err := cdc.ParseMasks(map[string]string{
		"column.mask.with.3.chars": "public.t.a", "column.truncate.to.4.chars": "public.t.b", "column.mask.hash.v2.SHA-256.with.salt.CzQMA0cB5K": "public.t.c",
		"column.mask.hash.SHA-256.with.salt.CzQMA0cB5K": "public.t.d", "unrelated": "x",
	})
	if err != nil {
		t.Fatal(err)
	}
	table := cdc.TableID{Schema: "public", Name: "t"}
	for _, c := range []struct {
		column, in string
		null       bool
		length     int
		want       string
		isNull     bool
	}{
		{"a", "secret", false, 0, "***", false},
		{"a", "", true, 0, "***", false},
		{"b", "äöüßé😀x", false, 0, "äöüß", false},
		{"b", "abc", false, 0, "abc", false},
		{"b", "", true, 0, "", true},
		{"c", "4111111111111111", false, 16, "85099cd5f13d155d", false}, // as a real Debezium has it
		{"d", "4111111111111111", false, 16, "d16cc1fce268e972", false},
		{"c", "", true, 16, "", true},
	} {
		m := cdc.MaskFor(masks, table, c.column)
		got, null := m.Apply(c.in, c.null, c.length)
		if got != c.want || null != c.isNull {
			t.Errorf("%s %q: %q %v", c.column, c.in, got, null)
		}
	}
	if cdc.MaskFor(masks, table, "z") != nil {
		t.Error("a column without mask has one")
	}
	for _, bad := range []string{"column.mask.with.x.chars", "column.mask.with.-1.chars", "column.mask.with.1", "column.mask.hash.SHA-256", "column.mask.hash.ROT13.with.salt.x"} {
		if _, err := cdc.ParseMasks(map[string]string{bad: "a"}); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestTransactionCountersSurviveARestart(t *testing.T) {
	tx := cdc.NewTransactions("shop.transaction")
	if tx.Open() {
		t.Error("open at once")
	}
	tx.Begin("731", "731:100", 5)
	tx.Count("public.a")
	tx.Count("public.b")
	if total, in := tx.Count("public.a"); total != 3 || in != 2 {
		t.Error(total, in)
	}
	offset := map[string]any{}
	tx.Store(offset)
	again := cdc.NewTransactions("shop.transaction")
	again.Restore(offset)
	if total, in := again.Count("public.b"); total != 4 || in != 2 || !again.Open() {
		t.Error(total, in)
	}
	end := again.End("731:200", 6).Value.Value.Items()
	if end[2].Int() != 4 || len(end[3].Items()) != 2 || again.Open() {
		t.Error(end)
	}
	var none *cdc.Transactions
	none.Restore(offset)
	none.Store(offset)
	if none.Open() {
		t.Error("a missing one is open")
	}
}

func TestSkippedOperations(t *testing.T) {
	for value, ok := range map[string]bool{"c,u": true, "none": true, "none,c": false, "x": false} {
		var c cdc.Config
		var d sdk.Def
		c.Define(&d, cdc.Dialect{Port: "1", TimeMode: "a", TimeModes: []string{"a"}, Fetch: "1"})
		errs := d.Parse(map[string]string{"topic.prefix": "p", "database.hostname": "h", "database.user": "u", "skipped.operations": value}).Errors()
		if (len(errs) == 0) != ok {
			t.Errorf("%s: %v", value, errs)
		}
	}
}
