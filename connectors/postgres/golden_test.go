package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-io/millrace/plugins/sdk"
)

// node is a JSON value with the order of members and the text of numbers kept.
type node struct {
	kind    byte // o, a, s, n (number, true, false, null)
	text    string
	names   []string
	members []*node
}

func parseNode(t testing.TB, b []byte) *node {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	n, err := readNode(d)
	if err != nil {
		t.Fatalf("%v in %.300s", err, b)
	}
	return n
}

func readNode(d *json.Decoder) (*node, error) {
	tok, err := d.Token()
	if err != nil {
		return nil, err
	}
	switch v := tok.(type) {
	case json.Delim:
		n := &node{kind: 'o'}
		if v == '[' {
			n.kind = 'a'
		}
		for d.More() {
			if n.kind == 'o' {
				name, err := d.Token()
				if err != nil {
					return nil, err
				}
				n.names = append(n.names, name.(string))
			}
			m, err := readNode(d)
			if err != nil {
				return nil, err
			}
			n.members = append(n.members, m)
		}
		_, err := d.Token()
		return n, err
	case string:
		return &node{kind: 's', text: v}, nil
	case json.Number:
		return &node{kind: 'n', text: v.String()}, nil
	case bool:
		return &node{kind: 'n', text: strconv.FormatBool(v)}, nil
	}
	return &node{kind: 'n', text: "null"}, nil
}

func (n *node) get(path ...string) *node {
	for _, p := range path {
		if n == nil {
			return nil
		}
		i := slices.Index(n.names, p)
		if i < 0 {
			return nil
		}
		n = n.members[i]
	}
	return n
}

func (n *node) String() string {
	switch {
	case n == nil:
		return "<absent>"
	case n.kind == 's':
		return strconv.Quote(n.text)
	case n.kind == 'n':
		return n.text
	}
	var parts []string
	for i, m := range n.members {
		if n.kind == 'o' {
			parts = append(parts, n.names[i]+":"+m.String())
		} else {
			parts = append(parts, m.String())
		}
	}
	if n.kind == 'o' {
		return "{" + strings.Join(parts, ",") + "}"
	}
	return "[" + strings.Join(parts, ",") + "]"
}

// comparer compares our records with golden ones.
type comparer struct {
	refs   map[string]string // golden ref -> our value
	allow  []deviation
	used   map[int]bool
	topic  string
	errors []string
}

// deviation is a difference on purpose: [deviate] in the contract.
type deviation struct {
	path string // suffix of topic:path, * matches any run
	ours string // what we have instead, "" for anything
	why  string
}

// globMatch matches a whole string; * stands for any run of characters.
func globMatch(pattern, s string) bool {
	head, rest, ok := strings.Cut(pattern, "*")
	if !ok {
		return pattern == s
	}
	if !strings.HasPrefix(s, head) {
		return false
	}
	for i := len(head); i <= len(s); i++ {
		if globMatch(rest, s[i:]) {
			return true
		}
	}
	return false
}

func (c *comparer) differ(path string, golden, ours *node) {
	full := c.topic + ":" + path
	for i, d := range c.allow {
		if globMatch(d.path, full) && (d.ours == "" || d.ours == ours.String()) {
			c.used[i] = true
			return
		}
	}
	c.errors = append(c.errors, fmt.Sprintf("%s\n    golden %.300s\n    ours   %.300s", full, golden, ours))
}

func (c *comparer) compare(path string, golden, ours *node) {
	if golden == nil || ours == nil {
		if golden != ours {
			c.differ(path, golden, ours)
		}
		return
	}
	if golden.kind == 'o' && len(golden.names) > 0 && golden.names[0] == "$volatile" {
		c.volatile(path, golden, ours)
		return
	}
	if golden.kind == 'o' && len(golden.names) > 0 && golden.names[0] == "$garbage" {
		return
	}
	switch {
	case golden.kind != ours.kind, golden.kind == 'n' && golden.text != ours.text, golden.kind == 's' && golden.text != ours.text && !sameObject(golden.text, ours.text):
		c.differ(path, golden, ours)
	case golden.kind == 'o':
		if !slices.Equal(golden.names, ours.names) {
			if strings.HasSuffix(path, "schema") || true {
				c.byName(path, golden, ours)
			}
			return
		}
		for i, name := range golden.names {
			c.compare(path+"/"+name, golden.members[i], ours.members[i])
		}
	case golden.kind == 'a':
		c.array(path, golden, ours)
	}
}

// byName compares objects whose member lists differ, naming what is different.
func (c *comparer) byName(path string, golden, ours *node) {
	var common []string
	for i, name := range golden.names {
		if ours.get(name) == nil {
			c.differ(path+"/"+name, golden.members[i], nil)
		} else {
			common = append(common, name)
			c.compare(path+"/"+name, golden.members[i], ours.get(name))
		}
	}
	var oursCommon []string
	for i, name := range ours.names {
		if golden.get(name) == nil {
			c.differ(path+"/"+name, nil, ours.members[i])
		} else {
			oursCommon = append(oursCommon, name)
		}
	}
	if !slices.Equal(common, oursCommon) {
		c.differ(path+"(order)", golden, ours)
	}
}

// array compares arrays; schema fields are matched by name.
func (c *comparer) array(path string, golden, ours *node) {
	named := func(n *node) *node {
		o := &node{kind: 'o'}
		for _, m := range n.members {
			if m.get("field") == nil {
				return nil
			}
			o.names = append(o.names, m.get("field").text)
			o.members = append(o.members, m)
		}
		return o
	}
	if g, o := named(golden), named(ours); g != nil && o != nil && len(g.names) > 0 && len(o.names) > 0 {
		c.compare(path, g, o)
		return
	}
	if len(golden.members) != len(ours.members) {
		c.differ(path, golden, ours)
		return
	}
	for i := range golden.members {
		c.compare(fmt.Sprintf("%s[%d]", path, i), golden.members[i], ours.members[i])
	}
}

// sameObject compares texts that are JSON objects whose order is not fixed, as
// hstore's.
func sameObject(a, b string) bool {
	if !strings.HasPrefix(a, "{") || !strings.HasPrefix(b, "{") {
		return false
	}
	var x, y map[string]*string
	if json.Unmarshal([]byte(a), &x) != nil || json.Unmarshal([]byte(b), &y) != nil {
		return false
	}
	return fmt.Sprint(len(x)) == fmt.Sprint(len(y)) && func() bool {
		for k, v := range x {
			w, ok := y[k]
			if !ok || (v == nil) != (w == nil) || v != nil && *v != *w {
				return false
			}
		}
		return true
	}()
}

func (c *comparer) volatile(path string, golden, ours *node) {
	wantKind := byte('s')
	if golden.get("$volatile").text != "string" {
		wantKind = 'n'
	}
	if ours.kind != wantKind || ours.text == "null" {
		c.differ(path, golden, ours)
		return
	}
	ref := golden.get("ref")
	if ref == nil || strings.HasPrefix(ref.text, "lsn") || strings.HasPrefix(ref.text, "sequence") || strings.HasPrefix(ref.text, "id") {
		return
	}
	if old, ok := c.refs[ref.text]; ok && old != ours.text {
		c.differ(path+" ("+ref.text+")", &node{kind: 's', text: old}, ours)
	}
	c.refs[ref.text] = ours.text
}

// script runs the statements of a scenario.
type script struct {
	t      testing.TB
	d      *testDB
	conns  map[string]*pgconn.PgConn
	conn   string
	run    *running
	config map[string]string
	log    *memoryLog
}

func (s *script) settle() {
	if s.run != nil && s.run.cancel != nil {
		at := s.d.value("SELECT pg_current_wal_lsn()")
		for range 100 {
			if s.d.value("SELECT coalesce(max(sent_lsn), '0/0') >= '"+at+"' FROM pg_stat_replication") == "t" {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	n, still := -1, 0
	for range 200 {
		if m := len(s.log.all()); m == n {
			still++
		} else {
			n, still = m, 0
		}
		if still >= 8 {
			return
		}
		time.Sleep(30 * time.Millisecond)
	}
}

func (s *script) session() *pgconn.PgConn {
	c, ok := s.conns[s.conn]
	if !ok {
		c = dial(s.t, s.d.server, s.d.name)
		s.conns[s.conn] = c
	}
	return c
}

func (s *script) play(text string) {
	fails := false
	var statement strings.Builder
	for line := range strings.SplitSeq(text, "\n") {
		if directive, ok := strings.CutPrefix(line, "-- @"); ok {
			word, rest, _ := strings.Cut(directive, " ")
			switch word {
			case "fails":
				fails = true
			case "settle":
				s.settle()
			case "sleep":
				ms, _ := strconv.Atoi(rest)
				time.Sleep(time.Duration(ms) * time.Millisecond)
			case "conn":
				s.conn = rest
			case "down":
				s.settle()
				_ = s.run.stop()
			case "up":
				for pair := range strings.FieldsSeq(rest) {
					k, v, _ := strings.Cut(pair, "=")
					s.config[k] = v
				}
				s.up()
			}
			continue
		}
		if strings.HasPrefix(line, "--") {
			continue
		}
		statement.WriteString(line + "\n")
		if !strings.HasSuffix(strings.TrimSpace(line), ";") {
			continue
		}
		sql := statement.String()
		statement.Reset()
		if s.run != nil && strings.HasPrefix(sql, "alter table") {
			s.settle() // the reader sees today's catalog
		}
		_, err := s.session().Exec(context.Background(), sql).ReadAll()
		if err != nil && !fails {
			s.t.Logf("statement refused: %s: %v", strings.TrimSpace(sql), err)
		}
		fails = false
	}
}

func (s *script) up() {
	s.run = start(s.t, s.config, s.log, true)
	for range 300 {
		if s.streaming() {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (s *script) streaming() bool {
	if s.config["snapshot.mode"] == "initial_only" {
		s.settle()
		return true
	}
	s.run.host.mu.Lock()
	defer s.run.host.mu.Unlock()
	return slices.ContainsFunc(s.run.host.progress, func(p sdk.Progress) bool { return p.Phase == "streaming" })
}

func readLines(t testing.TB, path string) []*node {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out []*node
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 64<<20)
	for sc.Scan() {
		out = append(out, parseNode(t, sc.Bytes()))
	}
	return out
}

// goldenRecord is a golden line with its $same references put back.
func expand(lines []*node) {
	for _, l := range lines {
		for _, side := range []string{"key", "value"} {
			schema := l.get(side, "schema")
			if schema == nil || schema.get("$same") == nil {
				continue
			}
			n, _ := strconv.Atoi(schema.get("$same").text)
			part := l.get(side)
			part.members[slices.Index(part.names, "schema")] = lines[n-1].get(side, "schema")
		}
	}
}

// scenario runs one config of a scenario and compares what comes out.
func scenario(t *testing.T, dir, variant string, allow []deviation) {
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	d := freshDBNamed(t, pg.Get(t), "app")
	s := &script{t: t, d: d, conn: "a", conns: map[string]*pgconn.PgConn{}}
	defer func() {
		for _, c := range s.conns {
			_ = c.Close(context.Background())
		}
	}()
	s.play(string(read("setup.sql")))
	var config map[string]string
	text := strings.NewReplacer("${host}", d.server.Host, "${port}", fmt.Sprint(d.server.Port), "${user}", d.server.User, "${password}", d.server.Password,
		"${dbname}", d.name, "${slot}", "golden").Replace(string(read(filepath.Join(variant, "config.json"))))
	if err := json.Unmarshal([]byte(text), &config); err != nil {
		t.Fatal(err)
	}
	for k, v := range map[string]string{"include.unknown.datatypes": "false", "publication.autocreate.mode": "all_tables"} {
		if _, ok := config[k]; !ok {
			config[k] = v
		}
	}
	s.config, s.log = config, newLog(t, config)
	s.up()
	s.play(string(read("statements.sql")))
	s.settle()
	_ = s.run.stop()

	golden := readLines(t, filepath.Join(dir, variant, "records.jsonl"))
	expand(golden)
	c := &comparer{refs: map[string]string{}, allow: allow, used: map[int]bool{}}
	compareTopics(t, c, golden, s.log.all())
	for _, e := range c.errors {
		t.Error(e)
	}
	for i, a := range allow {
		if !c.used[i] && !strings.HasPrefix(a.path, "count:") && !strings.HasPrefix(a.path, "?") {
			t.Logf("the deviation %q did not occur", a.path)
		}
	}
}

func compareTopics(t *testing.T, c *comparer, golden []*node, ours []record) {
	byTopic := map[string][]record{}
	for _, r := range ours {
		byTopic[r.topic] = append(byTopic[r.topic], r)
	}
	wanted := map[string][]*node{}
	var topics []string
	for _, g := range golden {
		topic := g.get("topic").text
		if wanted[topic] == nil {
			topics = append(topics, topic)
		}
		wanted[topic] = append(wanted[topic], g)
	}
	for topic := range byTopic {
		if wanted[topic] == nil {
			topics = append(topics, topic)
		}
	}
	for _, topic := range topics {
		c.topic = topic
		g, o := wanted[topic], byTopic[topic]
		if drop := c.dropGolden(topic); drop != nil {
			g = slices.DeleteFunc(g, drop)
		}
		g = c.dropEmpty(topic, g)
		if len(g) != len(o) {
			c.differ("count", &node{kind: 'n', text: strconv.Itoa(len(g))}, &node{kind: 'n', text: strconv.Itoa(len(o))})
			if os.Getenv("GOLDEN_DUMP") != "" {
				for _, x := range g {
					t.Logf("golden %.200s -> op %v after %v", x.get("key", "payload"), x.get("value", "payload", "op"), x.get("value", "payload", "after"))
				}
				for _, x := range o {
					v := parseNode(t, orNull(x.value))
					t.Logf("ours   %.200s -> op %v after %v", parseNode(t, orNull(x.key)).get("payload"), v.get("payload", "op"), v.get("payload", "after"))
				}
			}
		}
		for i := range min(len(g), len(o)) {
			at := fmt.Sprintf("%d", i)
			c.compare(at+"/key", g[i].get("key"), parseNode(t, orNull(o[i].key)))
			c.compare(at+"/value", g[i].get("value"), parseNode(t, orNull(o[i].value)))
			c.headers(t, at+"/headers", g[i].get("headers"), o[i].headers)
		}
	}
}

// dropGolden leaves out golden records that we do not write on purpose.
func (c *comparer) dropGolden(topic string) func(*node) bool {
	for i, d := range c.allow {
		if d.path == "drop:"+topic || d.path == "drop:*" {
			c.used[i] = true
			return func(n *node) bool {
				return n.get("key").String() == "null" && n.get("value").String() == "null"
			}
		}
	}
	return nil
}

// dropEmpty leaves out the records of transactions without events.
func (c *comparer) dropEmpty(topic string, g []*node) []*node {
	for i, d := range c.allow {
		if d.path != "empty:"+topic {
			continue
		}
		c.used[i] = true
		var out []*node
		for _, n := range g {
			if n.get("value", "payload", "event_count").String() == "0" {
				out = out[:len(out)-1]
				continue
			}
			out = append(out, n)
		}
		return out
	}
	return g
}

func (c *comparer) headers(t *testing.T, path string, golden *node, ours []string) {
	o := &node{kind: 'a'}
	for i := 0; i+1 < len(ours); i += 2 {
		v := parseNode(t, []byte(ours[i+1]))
		o.members = append(o.members, &node{kind: 'o', names: []string{"key", "value"}, members: []*node{{kind: 's', text: ours[i]}, v}})
	}
	for _, g := range golden.members {
		if v := g.get("value", "schema", "$same"); v != nil {
			return
		}
	}
	c.compare(path, golden, o)
}

func orNull(b []byte) []byte {
	if b == nil {
		return []byte("null")
	}
	return b
}

func TestGoldens(t *testing.T) {
	root := "testdata/goldens"
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		dir := filepath.Join(root, e.Name())
		variants := []string{}
		if _, err := os.Stat(filepath.Join(dir, "config.json")); err == nil {
			variants = append(variants, ".")
		}
		subs, _ := os.ReadDir(dir)
		for _, s := range subs {
			if s.IsDir() {
				variants = append(variants, s.Name())
			}
		}
		for _, v := range variants {
			name := e.Name()
			if v != "." {
				name += "/" + v
			}
			t.Run(name, func(t *testing.T) {
				if why := unsupported[name]; why != "" {
					t.Skip(why)
				}
				scenario(t, dir, v, append(slices.Clone(deviations[name]), deviations[e.Name()]...))
			})
		}
	}
}
