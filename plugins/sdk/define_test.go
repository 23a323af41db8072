package sdk_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace-io/millrace/plugins/sdk"
)

// settings has a key of every type.
type settings struct {
	name, mode, class string
	password          sdk.Secret
	on                bool
	batch             int
	bytes             int64
	pause             time.Duration
	ratio             float64
	tables            []string
	rest              map[string]string
}

func (s *settings) define(d *sdk.Def) {
	d.Group("Main")
	d.String(&s.name, "name", "A name.", sdk.Required(), sdk.NonEmpty())
	d.String(&s.mode, "mode", "A mode | with a bar.", sdk.Default("fast"), sdk.OneOf("fast", "safe"), sdk.Medium())
	d.Class(&s.class, "class", "A class.")
	d.Secret(&s.password, "password", "A secret.", sdk.Check(func(s string) error {
		if s == "12345" {
			return fmt.Errorf("too simple")
		}
		return nil
	}))
	d.Group("More")
	d.Bool(&s.on, "on", "A switch.", sdk.Default("true"))
	d.Int(&s.batch, "batch", "A number.", sdk.Default("10"), sdk.Between(1, 100))
	d.Long(&s.bytes, "bytes", "A long.", sdk.Default("5"), sdk.AtLeast(0))
	d.Millis(&s.pause, "pause.ms", "A pause.", sdk.Default("-1"))
	d.Double(&s.ratio, "ratio", "A ratio.", sdk.Default("0.5"))
	d.List(&s.tables, "tables", "A list.", sdk.Default(""))
	d.String(new(string), "old", "An old key.", sdk.Ignored("nothing here needs it."))
	d.Prefixed(&s.rest, "driver.")
}

func parse(config map[string]string) (settings, sdk.Report) {
	var s settings
	var d sdk.Def
	s.define(&d)
	r := d.Parse(config)
	return s, r
}

func TestParseBindsDefaultsAndValues(t *testing.T) {
	s, r := parse(map[string]string{"name": " n ", "password": " secret ", "tables": "a, b,c", "pause.ms": "250", "on": "FALSE", "driver.x": "1", "unknown": "2", "driver.": "3"})
	if len(r.Errors()) != 0 {
		t.Fatal(r.Errors())
	}
	if s.name != "n" || s.mode != "fast" || s.password.Reveal() != " secret " || s.on || s.batch != 10 || s.bytes != 5 ||
		s.pause != 250*time.Millisecond || s.ratio != 0.5 || !slices.Equal(s.tables, []string{"a", "b", "c"}) || s.rest["x"] != "1" {
		t.Errorf("bound %+v", s)
	}
	if !slices.Equal(r.Unknown, []string{"driver.", "unknown"}) {
		t.Errorf("unknown keys %q", r.Unknown)
	}
	s, _ = parse(map[string]string{"name": "n"})
	if s.pause != -time.Millisecond || !s.on || s.tables != nil {
		t.Errorf("defaults are %+v", s)
	}
}

func TestParseNamesEveryWrongKey(t *testing.T) {
	for key, c := range map[string]struct{ value, want string }{
		"mode":     {"slow", "Invalid value slow for configuration mode: String must be one of: fast, safe"},
		"on":       {"yes", "Invalid value yes for configuration on: Expected value to be either true or false"},
		"batch":    {"101", "Invalid value 101 for configuration batch: Value must be no more than 100"},
		"bytes":    {"-1", "Invalid value -1 for configuration bytes: Value must be at least 0"},
		"pause.ms": {"soon", "Invalid value soon for configuration pause.ms: Not a number of type LONG"},
		"ratio":    {"half", "Invalid value half for configuration ratio: Not a number of type DOUBLE"},
		"password": {"12345", "Invalid value [hidden] for configuration password: too simple"},
		"name":     {"", "Invalid value  for configuration name: String must be non-empty"},
	} {
		config := map[string]string{"name": "n"}
		config[key] = c.value
		_, r := parse(config)
		if errs := r.Errors(); len(errs) != 1 || errs[0].Key != key || errs[0].Msg != c.want || errs[0].Code != sdk.Invalid {
			t.Errorf("%s: %v", key, errs)
		}
	}
	_, r := parse(nil)
	if errs := r.Errors(); len(errs) != 1 || errs[0].Msg != `Missing required configuration "name" which has no default value.` {
		t.Errorf("missing: %v", errs)
	}
}

func TestKeysHaveTheFormOfREST(t *testing.T) {
	var s settings
	var d sdk.Def
	s.define(&d)
	b, err := json.Marshal(d.Keys()[1])
	if err != nil {
		t.Fatal(err)
	}
	want := `{"name":"mode","type":"STRING","required":false,"default_value":"fast","importance":"MEDIUM","documentation":"A mode | with a bar.",` +
		`"group":"Main","order_in_group":2,"width":"MEDIUM","display_name":"mode","dependents":[]}`
	if string(b) != want {
		t.Errorf("key is %s\nwant %s", b, want)
	}
	if k := d.Keys()[4]; k.Order != 1 || k.Group != "More" {
		t.Errorf("order begins anew in each group: %+v", k)
	}
}

func TestAKeyTwiceIsAMistakeOfTheAuthor(t *testing.T) {
	defer func() {
		if p := recover(); p == nil || !strings.Contains(fmt.Sprint(p), "twice") {
			t.Errorf("recovered %v", p)
		}
	}()
	var d sdk.Def
	d.String(new(string), "a", "")
	d.String(new(string), "a", "")
}

func TestSecretsDoNotShow(t *testing.T) {
	s := sdk.Secret("canary")
	j, err := json.Marshal(map[string]any{"s": s, "nested": []sdk.Secret{s}})
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", slog.Any("s", s), slog.Any("in", struct{ S sdk.Secret }{s}))
	all := string(j) + log.String() + fmt.Sprintf("%s %v %+v %#v %q %x", s, s, struct{ S sdk.Secret }{s}, s, s, s)
	if strings.Contains(all, "canary") || strings.Contains(all, fmt.Sprintf("%x", "canary")) {
		t.Errorf("shown in %s", all)
	}
	config := map[string]string{"name": "n", "password": "canary"}
	_, r := parse(config)
	if b, _ := json.Marshal(r); strings.Contains(string(b), "canary") {
		t.Errorf("shown in the report %s", b)
	}
}

func TestMarkdownHasEveryKey(t *testing.T) {
	var s settings
	var d sdk.Def
	s.define(&d)
	got := d.Markdown()
	for _, want := range []string{
		"**Main**\n\n| key | type | default | meaning |", "| `name` | string | required | A name. |", "| `mode` | string | `fast` | A mode \\| with a bar. |",
		"| `tables` | list | empty | A list. |", "| `old` | string | none | An old key. Accepted without effect: nothing here needs it. |",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}

func TestNearestHelpsWithTypos(t *testing.T) {
	known := []string{"topic.prefix", "slot.name", "table.include.list"}
	for name, want := range map[string]string{"topic.prefx": "topic.prefix", "slotname": "slot.name", "tables.include.list": "table.include.list", "nothing.like.it": "", "x": ""} {
		if got := sdk.Nearest(name, known); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}
