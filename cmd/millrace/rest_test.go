package main

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// exchange is one request as it was sent to a real Kafka Connect, and what that
// answered. Those without an id prepare the ones that follow.
type exchange struct {
	ID      string
	Method  string
	Path    string
	CT      *string
	Headers map[string]string
	Body    any
	Want    int
	Shape   any
}

// TestRESTAnswersAsKafkaConnectDoes sends a worker what was sent to Kafka Connect
// 4.3.1 and compares statuses and the members of bodies. Three rules say where it
// answers differently on purpose: mistakes of the client are 400 where Connect
// says 500; Accept is ignored; so is a missing Content-Type, or one where no body
// is read. deviations.json lists the rest.
func TestRESTAnswersAsKafkaConnectDoes(t *testing.T) {
	dir := t.TempDir()
	w := startWorker(t, filepath.Join(dir, "data"), freePort(t))
	w.until("plugins are found", func() bool {
		var p []struct{ Class string }
		return w.Call(t.Context(), "GET", "/connector-plugins", nil, &p) == nil && len(p) >= 4
	})
	files := filepath.Join(dir, "files")
	if err := os.Mkdir(files, 0o700); err != nil {
		t.Fatal(err)
	}
	deviations := map[string]int{}
	b, err := os.ReadFile("testdata/rest/deviations.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &deviations); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open("testdata/rest/exchanges.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	compared := 0
	for lines.Scan() {
		text := strings.NewReplacer("<dir>", files, "<worker>", w.addr).Replace(lines.Text())
		var e exchange
		if err := json.Unmarshal([]byte(text), &e); err != nil {
			t.Fatal(err)
		}
		compared += w.replay(&e, deviations)
	}
	if lines.Err() != nil {
		t.Fatal(lines.Err())
	}
	t.Logf("%d exchanges compared, %d of them differ on purpose", compared, len(deviations))
	if compared < 500 {
		t.Errorf("only %d exchanges were compared", compared)
	}
}

// replay sends one exchange and returns 1 if it was compared. An answer that
// depends on something that comes a moment later is asked for again.
func (p *process) replay(e *exchange, deviations map[string]int) int {
	p.t.Helper()
	var status int
	var body any
	for range 40 {
		status, body = p.send(e)
		if e.ID == "" {
			return 0
		}
		if expected(e, status, deviations) && (status != e.Want || e.Shape == nil || missing("", e.Shape, body) == "") {
			return 1
		}
		if e.Method != "GET" {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if !expected(e, status, deviations) {
		p.t.Errorf("%s: %s %s: status %d, Kafka Connect answers %d", e.ID, e.Method, e.Path, status, e.Want)
	} else {
		p.t.Errorf("%s: %s %s: %s", e.ID, e.Method, e.Path, missing("body", e.Shape, body))
	}
	return 1
}

func expected(e *exchange, status int, deviations map[string]int) bool {
	if d, ok := deviations[e.ID]; ok {
		return status == d
	}
	switch e.Want {
	case http.StatusInternalServerError:
		return status == http.StatusBadRequest || status == http.StatusInternalServerError
	case http.StatusNotAcceptable, http.StatusUnsupportedMediaType:
		return status < http.StatusInternalServerError
	}
	return status == e.Want
}

func (p *process) send(e *exchange) (int, any) {
	p.t.Helper()
	raw := ""
	switch b := e.Body.(type) {
	case string:
		raw = b
	case map[string]any:
		text, _ := b["base64"].(string)
		decoded, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			p.t.Fatal(err)
		}
		raw = string(decoded)
	}
	conn, err := net.Dial("tcp", p.addr)
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	headers := map[string]string{"Host": p.addr, "Connection": "close"}
	if e.Body != nil {
		headers["Content-Length"] = strconv.Itoa(len(raw))
		if e.CT != nil {
			headers["Content-Type"] = *e.CT
		}
	}
	maps.Copy(headers, e.Headers)
	request := e.Method + " " + e.Path + " HTTP/1.1\r\n"
	for _, k := range slices.Sorted(maps.Keys(headers)) {
		request += k + ": " + headers[k] + "\r\n"
	}
	if _, err := io.WriteString(conn, request+"\r\n"+raw); err != nil {
		p.t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: e.Method})
	if err != nil {
		p.t.Fatalf("%s: %v", e.ID, err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatalf("%s: %v", e.ID, err)
	}
	var body any
	if len(b) > 0 && json.Unmarshal(b, &body) != nil && e.ID != "" && e.Method != "OPTIONS" {
		p.t.Errorf("%s: the answer is not JSON: %.100s", e.ID, b)
	}
	return resp.StatusCode, body
}

// missing says which member of a shape a body lacks, or has of another type.
// Members of ours beyond the shape are welcome.
func missing(at string, shape, body any) string {
	switch s := shape.(type) {
	case map[string]any:
		b, ok := body.(map[string]any)
		if !ok {
			return at + " is not an object"
		}
		for k, v := range s {
			if _, ok := b[k]; !ok && k != "trace" {
				return at + " has no member " + k
			}
			if m := missing(at+"."+k, v, b[k]); m != "" && k != "trace" {
				return m
			}
		}
	case []any:
		b, ok := body.([]any)
		if !ok {
			return at + " is not a list"
		}
		if len(s) > 0 && len(b) > 0 {
			return missing(at+"[0]", s[0], b[0])
		}
	case string:
		if kind := kindOf(body); s != "null" && kind != "null" && kind != s {
			return at + " is of type " + kind + ", not " + s
		}
	}
	return ""
}

func kindOf(v any) string {
	switch v.(type) {
	case nil:
		return "null"
	case string:
		return "string"
	case bool:
		return "boolean"
	case float64:
		return "number"
	case []any:
		return "array"
	}
	return "object"
}
