package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// maxAnswer bounds what a client reads of an answer.
const maxAnswer = 64 << 20

// Client calls a worker's REST API. Its methods may be called concurrently.
type Client struct {
	Base  string       // such as "http://127.0.0.1:8083"
	Token string       // bearer token; may be ""
	HTTP  *http.Client // nil means http.DefaultClient
}

// Call makes one request: body is sent as JSON unless nil, the answer is decoded
// into out unless nil. A status that is no success gives an *Error.
func (c *Client) Call(ctx context.Context, method, path string, body, out any) (err error) {
	var payload io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return fmt.Errorf("encode the request: %w", err)
		}
		payload = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimRight(c.Base, "/")+path, payload)
	if err != nil {
		return fmt.Errorf("worker address %q: %w", c.Base, err)
	}
	req.Header.Set("Accept", "application/json")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.Token)
	}
	client := c.HTTP
	if client == nil {
		client = http.DefaultClient
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("no worker answers at %s; start one with `millrace worker`, or name it with --url: %w", c.Base, err)
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("read the answer of %s: %w", c.Base, err)
	}
	if resp.StatusCode >= 300 {
		e := &Error{Status: resp.StatusCode, Code: resp.Header.Get(CodeHeader), Field: resp.Header.Get(FieldHeader)}
		if json.Unmarshal(answer, e) != nil {
			e.Message = fmt.Sprintf("%s answered %s; is it a Millrace worker?", c.Base, resp.Status)
		}
		return e
	}
	if out == nil || len(answer) == 0 {
		return nil
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("%s answered something that is not the JSON expected: %w", c.Base, err)
	}
	return nil
}

// ConnectorPath is the path of a connector or of something below it.
func ConnectorPath(name string, below ...string) string {
	p := "/connectors/" + url.PathEscape(name)
	for _, b := range below {
		p += "/" + url.PathEscape(b)
	}
	return p
}
