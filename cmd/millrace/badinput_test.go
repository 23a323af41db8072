package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/millrace-io/millrace/api"
)

// TestBadInputIsRefusedInOneSentence sends what is wrong and looks at the answer:
// a status, a code or field where there is one, one sentence, and nothing made.
func TestBadInputIsRefusedInOneSentence(t *testing.T) {
	w := startWorker(t, filepath.Join(t.TempDir(), "data"), freePort(t))
	good := func(change ...string) map[string]string {
		c := map[string]string{"connector.class": "OrdersSource", "topic": "orders"}
		for i := 0; i < len(change); i += 2 {
			c[change[i]] = change[i+1]
		}
		return c
	}
	postgres := func(change ...string) map[string]string {
		c := map[string]string{
			"connector.class": "io.debezium.connector.postgresql.PostgresConnector", "topic.prefix": "x",
			"database.hostname": "127.0.0.1", "database.port": "1", "database.user": "u", "database.password": "hunter2", "database.dbname": "d",
		}
		for i := 0; i < len(change); i += 2 {
			c[change[i]] = change[i+1]
		}
		return c
	}
	cases := map[string]struct {
		name   string
		config map[string]string
		status int
		says   string
		field  string
	}{
		"unknown class":          {"a", good("connector.class", "NoSuchThing"), 400, "Failed to find any class that implements Connector and which name matches NoSuchThing", "connector.class"},
		"no class":               {"a", map[string]string{}, 400, "connector.class", "connector.class"},
		"wrong type":             {"a", good("interval.ms", "soon"), 400, "Not a number of type LONG", "interval.ms"},
		"out of range":           {"a", good("tasks.max", "0"), 400, "Value must be at least 1", "tasks.max"},
		"control character":      {"a\nb", good(), 400, "control", "name"},
		"empty name":             {"", good(), 400, "non-empty", "name"},
		"transforms":             {"a", good("transforms", "t", "transforms.t.type", "x"), 400, "not supported by this version", "transforms"},
		"converter unknown":      {"a", good("value.converter", "com.example.None"), 400, "could not be found", "value.converter"},
		"sink without topics":    {"a", map[string]string{"connector.class": "FileStreamSink", "file": "/tmp/never"}, 400, "Must configure one of topics or topics.regex", "topics"},
		"topic with dots":        {"a", map[string]string{"connector.class": "FileStreamSink", "file": "/tmp/never", "topics": ".."}, 400, `".." is reserved`, "topics"},
		"topic with a slash":     {"a", map[string]string{"connector.class": "FileStreamSink", "file": "/tmp/never", "topics": "../etc"}, 400, "holds a character other than", "topics"},
		"dead letters to self":   {"a", map[string]string{"connector.class": "FileStreamSink", "file": "/tmp/never", "topics": "t", "errors.deadletterqueue.topic.name": "t"}, 400, "may not be one that the connector reads", "errors.deadletterqueue.topic.name"},
		"unreachable database":   {"a", postgres(), 400, "127.0.0.1", "database.hostname"},
		"enum in the wrong case": {"a", good("errors.tolerance", "ALL"), 400, "must be one of: none, all", "errors.tolerance"},
	}
	for what, tc := range cases {
		t.Run(what, func(t *testing.T) {
			err := w.Call(t.Context(), "POST", "/connectors", api.Create{Name: tc.name, Config: tc.config}, nil)
			var e *api.Error
			if !errors.As(err, &e) || e.Status != tc.status || !strings.Contains(e.Message, tc.says) {
				t.Fatalf("answer %v, want status %d and %q", err, tc.status, tc.says)
			}
			if tc.field != "" && e.Field != tc.field {
				t.Errorf("field %q, want %q", e.Field, tc.field)
			}
			if strings.Contains(e.Message, "hunter2") || strings.Contains(e.Message, "goroutine ") {
				t.Errorf("the message holds a secret or a stack: %s", e.Message)
			}
		})
	}
	raw := func(body string, status int) {
		t.Helper()
		resp, err := http.Post(w.Base+"/connectors", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != status {
			t.Errorf("%.40q: status %d, want %d", body, resp.StatusCode, status)
		}
	}
	raw(`{"name": `, 400)
	raw(`{"name":"big","config":{"connector.class":"OrdersSource","topic":"`+strings.Repeat("x", 3<<20)+`"}}`, 413)
	var names []string
	if err := w.Call(t.Context(), "GET", "/connectors", nil, &names); err != nil || len(names) != 0 {
		t.Errorf("connectors %v, %v; nothing may have been made", names, err)
	}
	var v api.Validation
	config := good("intervall.ms", "5", "name", "a")
	if err := w.Call(t.Context(), "PUT", "/connector-plugins/OrdersSource/config/validate", config, &v); err != nil {
		t.Fatal(err)
	}
	if v.ErrorCount != 0 || !slices.ContainsFunc(v.Warnings, func(w api.Warning) bool {
		return w.Key == "intervall.ms" && strings.Contains(w.Message, "did you mean interval.ms?")
	}) {
		t.Errorf("%d errors, warnings %v; want none and a hint at interval.ms", v.ErrorCount, v.Warnings)
	}
}

// TestPoisonRecordsStopOrBecomeDeadLetters lets a sink read what it cannot
// convert: without tolerance the task fails and passes nothing, with it each
// record is in the dead letter topic, once, with the reason in its headers.
func TestPoisonRecordsStopOrBecomeDeadLetters(t *testing.T) {
	_, store := servers(t)
	bucket := fmt.Sprintf("poison-%d", rand.IntN(1e9))
	newShelf(t, store, bucket)
	w := startWorker(t, filepath.Join(t.TempDir(), "data"), freePort(t))
	w.create("orders", map[string]string{"connector.class": "OrdersSource", "topic": "orders", "interval.ms": "0", "limit": "500"})
	config := map[string]string{
		"connector.class": "s3", "topics": "orders", "s3.bucket.name": bucket, "s3.region": "us-east-1", "store.url": store,
		"aws.access.key.id": os.Getenv("MILLRACE_TEST_S3_ACCESS_KEY"), "aws.secret.access.key": os.Getenv("MILLRACE_TEST_S3_SECRET_KEY"),
		"format.class": "JsonFormat", "flush.size": "100", "value.converter": "org.apache.kafka.connect.json.JsonConverter",
	}
	w.create("strict", config)
	w.until("the strict task has failed", func() bool {
		s, err := w.status("strict")
		return err == nil && len(s.Tasks) == 1 && s.Tasks[0].State == "FAILED"
	})
	s, _ := w.status("strict")
	if !strings.Contains(s.Tasks[0].Trace, "orders") || !strings.Contains(s.Tasks[0].Trace, "schema") {
		t.Errorf("trace %q does not name topic and cause", s.Tasks[0].Trace)
	}
	var offsets api.Offsets
	if err := w.Call(t.Context(), "GET", "/connectors/strict/offsets", nil, &offsets); err != nil || len(offsets.Offsets) != 0 {
		t.Errorf("offsets %v, %v; a failed task passes nothing", offsets, err)
	}
	config["errors.tolerance"] = "all"
	config["errors.deadletterqueue.topic.name"] = "dead"
	config["errors.deadletterqueue.context.headers.enable"] = "true"
	w.create("tolerant", config)
	w.until("every record is a dead letter", func() bool { return w.end("dead") >= 500 })
	w.until("the offset has passed them", func() bool {
		s, err := w.status("tolerant")
		return err == nil && len(s.Lag) == 1 && s.Lag[0].Records == 0
	})
	if ids := w.sequences("dead"); len(ids) != 500 || ids[0] != 1 || ids[499] != 500 {
		t.Errorf("%d dead letters, first %d; want 500, once each, in order", len(ids), ids[0])
	}
	var got api.Records
	if err := w.Call(t.Context(), "GET", "/topics/dead/records?offset=7&limit=1", nil, &got); err != nil || len(got.Records) != 1 {
		t.Fatal(err, got)
	}
	headers := map[string]string{}
	for _, h := range got.Records[0].Headers {
		if h.Value != nil {
			headers[h.Key] = *h.Value
		}
	}
	for key, want := range map[string]string{
		"topic": "orders", "partition": "0", "offset": "7", "connector.name": "tolerant", "task.id": "0", "stage": "VALUE_CONVERTER",
	} {
		if headers["__connect.errors."+key] != want {
			t.Errorf("header %s is %q, want %q", key, headers["__connect.errors."+key], want)
		}
	}
}
