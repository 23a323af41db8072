package sdk

import (
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Secret is a string that is printed as "[hidden]" by fmt, JSON and slog.
type Secret string

const hidden = "[hidden]"

// String hides the secret.
func (Secret) String() string { return hidden }

// GoString hides the secret from %#v.
func (Secret) GoString() string { return hidden }

// LogValue hides the secret from slog.
func (Secret) LogValue() slog.Value { return slog.StringValue(hidden) }

// MarshalText hides the secret from JSON.
func (Secret) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// Reveal returns the secret itself, for the call that needs it.
func (s Secret) Reveal() string { return string(s) }

// Type is the type of a config key, by Connect's names.
type Type string

// The types a key can have.
const (
	TypeBoolean  Type = "BOOLEAN"
	TypeString   Type = "STRING"
	TypeInt      Type = "INT"
	TypeShort    Type = "SHORT"
	TypeLong     Type = "LONG"
	TypeDouble   Type = "DOUBLE"
	TypeList     Type = "LIST"
	TypeClass    Type = "CLASS"
	TypePassword Type = "PASSWORD"
)

// Key is the definition of one config key, in the form REST returns it.
type Key struct {
	Name          string   `json:"name"`
	Type          Type     `json:"type"`
	Required      bool     `json:"required"`
	Default       *string  `json:"default_value"`
	Importance    string   `json:"importance"`
	Documentation string   `json:"documentation"`
	Group         string   `json:"group"`
	Order         int      `json:"order_in_group"`
	Width         string   `json:"width"`
	DisplayName   string   `json:"display_name"`
	Dependents    []string `json:"dependents"`
	// Ignored says why the key is accepted without effect, "" when it has one.
	Ignored string `json:"ignored,omitempty"`
}

// KeyValue is what validation says of one key's value.
type KeyValue struct {
	Name        string   `json:"name"`
	Value       *string  `json:"value"` // parsed and printed again; secrets hidden
	Recommended []string `json:"recommended_values"`
	Errors      []string `json:"errors"`
	Visible     bool     `json:"visible"`
}

// Report is the outcome of Parse, key by key in definition order.
type Report struct {
	Keys    []Key
	Values  []KeyValue
	Unknown []string // keys given that no definition knows, sorted
}

// Errors returns the problems as FieldErrors, empty when there are none.
func (r Report) Errors() FieldErrors {
	var errs FieldErrors
	for _, v := range r.Values {
		for _, e := range v.Errors {
			errs = append(errs, &Error{Code: Invalid, Reason: "config.invalid", Key: v.Name, Msg: e})
		}
	}
	return errs
}

// field is a Key with the way to bind it.
type field struct {
	Key
	recommended []string
	parse       func(string) (printed string, err error)
	check       []func(string) error
}

// Def collects the keys of a connector. Each call binds one key to a variable,
// so declaration and reading cannot drift apart:
//
//	d.Int(&c.batch, "batch.size", "Records per request.", sdk.Default("2000"), sdk.Between(1, 100000))
//
// The calls may repeat on fresh variables; a key that is declared twice panics.
type Def struct {
	fields []*field
	group  string
	prefix []prefix
}

type prefix struct {
	name string
	m    *map[string]string
}

// Option refines a key.
type Option func(*field)

// Required refuses a config without the key.
func Required() Option { return func(f *field) { f.Required = true } }

// Default is the value of an absent key, in its text form.
func Default(v string) Option { return func(f *field) { f.Default = &v } }

// Medium lowers the importance; without it or Low it is HIGH.
func Medium() Option { return func(f *field) { f.Importance = "MEDIUM" } }

// Low lowers the importance to LOW.
func Low() Option { return func(f *field) { f.Importance = "LOW" } }

// Display is the name that user interfaces show.
func Display(name string) Option { return func(f *field) { f.DisplayName = name } }

// Width is a hint for user interfaces: NONE, SHORT, MEDIUM or LONG.
func Width(w string) Option { return func(f *field) { f.Width = w } }

// Recommend lists values that user interfaces offer.
func Recommend(values ...string) Option { return func(f *field) { f.recommended = values } }

// Ignored marks a key that is accepted so that existing configs run, and has no
// effect here; validation says why.
func Ignored(why string) Option { return func(f *field) { f.Ignored = why } }

// Check adds a check of the printed value.
func Check(check func(string) error) Option {
	return func(f *field) { f.check = append(f.check, check) }
}

// OneOf allows only the listed values; upper and lower case differ.
func OneOf(values ...string) Option {
	return func(f *field) {
		f.recommended = values
		f.check = append(f.check, func(s string) error {
			if !slices.Contains(values, s) {
				return fmt.Errorf("String must be one of: %s", strings.Join(values, ", "))
			}
			return nil
		})
	}
}

// Between bounds a number, both ends included.
func Between(low, high int64) Option {
	return Check(func(s string) error {
		n, err := strconv.ParseInt(s, 10, 64)
		switch {
		case err != nil:
			return nil //nolint:nilerr // the type's own error says so
		case n < low:
			return fmt.Errorf("Value must be at least %d", low)
		case n > high:
			return fmt.Errorf("Value must be no more than %d", high)
		}
		return nil
	})
}

// AtLeast bounds a number from below.
func AtLeast(low int64) Option { return Between(low, 1<<63-1) }

// NonEmpty refuses the empty string.
func NonEmpty() Option {
	return Check(func(s string) error {
		if s == "" {
			return fmt.Errorf("String must be non-empty")
		}
		return nil
	})
}

// Group starts a group of keys; the calls that follow belong to it.
func (d *Def) Group(name string) { d.group = name }

// String declares a text.
func (d *Def) String(p *string, name, doc string, opts ...Option) {
	d.add(name, TypeString, doc, func(s string) (string, error) { *p = s; return s, nil }, opts)
}

// Class declares the name of a class, for example of a converter.
func (d *Def) Class(p *string, name, doc string, opts ...Option) {
	d.add(name, TypeClass, doc, func(s string) (string, error) { *p = s; return s, nil }, opts)
}

// Secret declares a password.
func (d *Def) Secret(p *Secret, name, doc string, opts ...Option) {
	d.add(name, TypePassword, doc, func(s string) (string, error) { *p = Secret(s); return s, nil }, opts)
}

// Bool declares true or false, in any case.
func (d *Def) Bool(p *bool, name, doc string, opts ...Option) {
	d.add(name, TypeBoolean, doc, func(s string) (string, error) {
		switch {
		case strings.EqualFold(s, "true"):
			*p = true
		case strings.EqualFold(s, "false"):
			*p = false
		default:
			return "", fmt.Errorf("Expected value to be either true or false") //nolint:staticcheck // Kafka Connect's text
		}
		return strconv.FormatBool(*p), nil
	}, opts)
}

// Int declares a 32-bit integer.
func (d *Def) Int(p *int, name, doc string, opts ...Option) {
	d.integer(name, doc, integerSize{TypeInt, 32}, func(n int64) { *p = int(n) }, opts)
}

// Short declares a 16-bit integer.
func (d *Def) Short(p *int, name, doc string, opts ...Option) {
	d.integer(name, doc, integerSize{TypeShort, 16}, func(n int64) { *p = int(n) }, opts)
}

// Long declares a 64-bit integer.
func (d *Def) Long(p *int64, name, doc string, opts ...Option) {
	d.integer(name, doc, integerSize{TypeLong, 64}, func(n int64) { *p = n }, opts)
}

// Millis declares a duration in whole milliseconds, Connect's way; negative
// values stay negative.
func (d *Def) Millis(p *time.Duration, name, doc string, opts ...Option) {
	d.integer(name, doc, integerSize{TypeLong, 64}, func(n int64) { *p = time.Duration(n) * time.Millisecond }, opts)
}

// integerSize is an integer type of keys.
type integerSize struct {
	typ  Type
	bits int
}

func (d *Def) integer(name, doc string, size integerSize, set func(int64), opts []Option) {
	d.add(name, size.typ, doc, func(s string) (string, error) {
		n, err := strconv.ParseInt(s, 10, size.bits)
		if err != nil {
			return "", fmt.Errorf("Not a number of type %s", size.typ) //nolint:staticcheck // Kafka Connect's text
		}
		set(n)
		return strconv.FormatInt(n, 10), nil
	}, opts)
}

// Double declares a 64-bit float.
func (d *Def) Double(p *float64, name, doc string, opts ...Option) {
	d.add(name, TypeDouble, doc, func(s string) (string, error) {
		n, err := strconv.ParseFloat(s, 64)
		if err != nil {
			return "", fmt.Errorf("Not a number of type %s", TypeDouble) //nolint:staticcheck // Kafka Connect's text
		}
		*p = n
		return s, nil
	}, opts)
}

// List declares a comma-separated list; items are trimmed, the empty string is
// the empty list.
func (d *Def) List(p *[]string, name, doc string, opts ...Option) {
	d.add(name, TypeList, doc, func(s string) (string, error) {
		*p = SplitList(s)
		return strings.Join(*p, ","), nil
	}, opts)
}

// Prefixed collects every key that begins with prefix, without it, into p.
// Such keys are not reported as unknown.
func (d *Def) Prefixed(p *map[string]string, prefixName string) {
	d.prefix = append(d.prefix, prefix{prefixName, p})
}

// SplitList splits a list's text at commas and trims each item.
func SplitList(s string) []string {
	if strings.TrimSpace(s) == "" {
		return nil
	}
	items := strings.Split(s, ",")
	for i := range items {
		items[i] = strings.TrimSpace(items[i])
	}
	return items
}

func (d *Def) add(name string, typ Type, doc string, parse func(string) (string, error), opts []Option) {
	f := &field{
		Key: Key{
			Name: name, Type: typ, Documentation: doc, Group: d.group, DisplayName: name,
			Importance: "HIGH", Width: "MEDIUM", Dependents: []string{}, Order: 1,
		},
		parse: parse, recommended: []string{},
	}
	for _, o := range opts {
		o(f)
	}
	for _, g := range d.fields {
		if g.Name == name {
			panic("sdk: key " + name + " is declared twice")
		}
		if g.Group == f.Group {
			f.Order = g.Order + 1
		}
	}
	d.fields = append(d.fields, f)
}

// Keys returns the definitions in order.
func (d *Def) Keys() []Key {
	keys := make([]Key, len(d.fields))
	for i, f := range d.fields {
		keys[i] = f.Key
	}
	return keys
}

// Parse binds every key's variable from config and reports each problem. A key
// that is absent gets its default; an optional one without default is left as
// it is. Unknown keys are listed, never refused.
func (d *Def) Parse(config map[string]string) Report {
	var r Report
	known := make(map[string]bool, len(d.fields))
	for _, f := range d.fields {
		known[f.Name] = true
		raw, given := config[f.Name]
		r.Keys = append(r.Keys, f.Key)
		r.Values = append(r.Values, f.value(raw, given))
	}
	for k := range config {
		if !known[k] && !d.collect(k, config[k]) {
			r.Unknown = append(r.Unknown, k)
		}
	}
	slices.Sort(r.Unknown)
	return r
}

func (d *Def) collect(key, value string) bool {
	for _, p := range d.prefix {
		if rest, ok := strings.CutPrefix(key, p.name); ok && rest != "" {
			if *p.m == nil {
				*p.m = make(map[string]string)
			}
			(*p.m)[rest] = value
			return true
		}
	}
	return false
}

// value parses and checks one key.
func (f *field) value(raw string, given bool) KeyValue {
	v := KeyValue{Name: f.Name, Recommended: f.recommended, Errors: []string{}, Visible: true}
	if !given {
		if f.Required {
			v.Errors = append(v.Errors, fmt.Sprintf("Missing required configuration %q which has no default value.", f.Name))
			return v
		}
		if f.Default == nil {
			return v
		}
		raw = *f.Default
	}
	if f.Type != TypeClass && f.Type != TypePassword {
		raw = strings.TrimSpace(raw)
	}
	printed, err := f.parse(raw)
	if err != nil {
		v.Errors = append(v.Errors, f.complain(raw, err))
		return v
	}
	v.Value = &printed
	for _, check := range f.check {
		if err := check(printed); err != nil {
			v.Errors = append(v.Errors, f.complain(printed, err))
		}
	}
	if f.Type == TypePassword {
		h := hidden
		v.Value = &h
	}
	return v
}

func (f *field) complain(value string, err error) string {
	if f.Type == TypePassword {
		value = hidden
	}
	return fmt.Sprintf("Invalid value %s for configuration %s: %v", value, f.Name, err)
}

// Nearest returns the known name closest to an unknown one, for "did you mean",
// or "" when none is close.
func Nearest(name string, known []string) string {
	best, bestDistance := "", 1+len(name)/3
	for _, k := range known {
		if d := distance(name, k); d < bestDistance || d == bestDistance && best == "" {
			best, bestDistance = k, d
		}
	}
	return best
}

// distance is Levenshtein's edit distance.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			replace := diagonal
			if a[i-1] != b[j-1] {
				replace++
			}
			diagonal = row[j]
			row[j] = min(replace, row[j]+1, row[j-1]+1)
		}
	}
	return row[len(b)]
}
