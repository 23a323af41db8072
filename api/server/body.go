package server

import (
	"bytes"
	"encoding/json"
	"io"
	"mime"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/labstack/echo/v4"

	"github.com/millrace-io/millrace/plugins/sdk"
)

func invalid(format string, args ...any) error {
	return sdk.Errorf(sdk.Invalid, "request.invalid", format, args...)
}

func sorted(s []string) []string {
	slices.Sort(s)
	return slices.Compact(s)
}

// object reads the body as one JSON object, member by member. Of two members of
// a name the last wins.
func object(c echo.Context) (map[string]json.RawMessage, error) {
	if t := c.Request().Header.Get(echo.HeaderContentType); t != "" {
		switch kind, _, err := mime.ParseMediaType(t); {
		case err != nil || !strings.Contains(kind, "/"):
			return nil, echo.NewHTTPError(http.StatusBadRequest, "the Content-Type cannot be read; send application/json")
		case kind != "application/json":
			return nil, echo.NewHTTPError(http.StatusUnsupportedMediaType, "")
		}
	}
	body, err := io.ReadAll(c.Request().Body)
	if err != nil {
		return nil, err
	}
	body = bytes.TrimPrefix(body, []byte("\xef\xbb\xbf"))
	if !utf8.Valid(body) {
		return nil, invalid("the body is not valid UTF-8")
	}
	if len(bytes.TrimSpace(body)) == 0 {
		return nil, invalid("the request needs a body: a JSON object")
	}
	return members(body, "the body")
}

// members splits a JSON object.
func members(b []byte, what string) (map[string]json.RawMessage, error) {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, invalid("%s is not a JSON object: %v", what, err)
	}
	if m == nil {
		return nil, invalid("%s is null; a JSON object is needed", what)
	}
	return m, nil
}

// only refuses members that are not known.
func only(m map[string]json.RawMessage, what string, known ...string) error {
	for k := range m {
		if !slices.Contains(known, k) {
			return invalid("%s has no member %q", what, k)
		}
	}
	return nil
}

// text reads a config value: texts as they are, numbers and booleans by their
// literal text, nil for null.
func text(key string, b json.RawMessage) (*string, error) {
	var s string
	switch {
	case len(b) == 0 || b[0] == 'n':
		return nil, nil
	case b[0] == '"':
		if err := json.Unmarshal(b, &s); err != nil {
			return nil, invalid("the value of %q cannot be read: %v", key, err)
		}
	case b[0] == '{' || b[0] == '[':
		return nil, sdk.FieldError(key, "config.invalid", "the value of %q is a JSON object or array; config values are texts, numbers or booleans", key)
	default:
		s = string(b)
	}
	return &s, nil
}

// configMap reads a config in which no value may be null.
func configMap(m map[string]json.RawMessage) (map[string]string, error) {
	config := make(map[string]string, len(m))
	for k, raw := range m {
		v, err := text(k, raw)
		switch {
		case err != nil:
			return nil, err
		case v == nil && k == "name":
		case v == nil:
			return nil, sdk.FieldError(k, "config.invalid", "Null value can not be supplied as the configuration value for %q; leave the key out", k)
		default:
			config[k] = *v
		}
	}
	return config, nil
}

// flag reads a boolean query parameter: true only for "true" in any case.
func flag(c echo.Context, name string, def bool) bool {
	v := c.QueryParam(name)
	if v == "" {
		return def
	}
	return strings.EqualFold(v, "true")
}
