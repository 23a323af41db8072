package sdk

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Code is the class of an error, a closed set that survives the process boundary.
type Code string

// The codes and what the worker does.
const (
	Invalid     Code = "invalid"     // the config or the request is wrong; a human must act
	NotFound    Code = "not_found"   // what was named is not there
	Exists      Code = "exists"      // what was to be made is there
	Conflict    Code = "conflict"    // somebody else holds it, or the state forbids it
	Unavailable Code = "unavailable" // can pass; tried again after a pause
	Corrupt     Code = "corrupt"     // bytes are damaged
	Internal    Code = "internal"    // anything else; the default for an unmarked error
)

// Error is an error with a code for programs and one sentence for people. A
// task's error fails the task, except Unavailable, which is tried again.
type Error struct {
	Code   Code
	Reason string        // stable dotted condition, such as "source.slot_in_use"; may be ""
	Key    string        // the config key to change, when there is one
	Msg    string        // what, where, why, and what to do; complete without Err; no secret
	After  time.Duration // with Unavailable: wait this long; 0 lets the worker choose
	Err    error         // the cause, for errors.Is and the log
}

// Error returns Msg; without one, the cause's text.
func (e *Error) Error() string {
	if e.Msg == "" && e.Err != nil {
		return e.Err.Error()
	}
	return e.Msg
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an Error with a code and a reason; %w keeps the cause.
func Errorf(code Code, reason, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Reason: reason, Msg: err.Error(), Err: errors.Unwrap(err)}
}

// Retry marks an error as one that can pass: the call is made again after a
// pause, the worker's own choice when after is 0.
func Retry(err error, after time.Duration) *Error {
	return &Error{Code: Unavailable, After: after, Err: err}
}

// CodeOf returns the code of the first Error in err's chain, Internal for others.
func CodeOf(err error) Code {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return Internal
}

// ReasonOf returns the reason of the first Error in err's chain, or "".
func ReasonOf(err error) string {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Reason
	}
	return ""
}

// FieldErrors is what Validate returns when it can name keys. Entries with an
// empty Key concern the config as a whole.
type FieldErrors []*Error

func (f FieldErrors) Error() string {
	lines := make([]string, len(f))
	for i, e := range f {
		lines[i] = e.Error()
		if e.Key != "" {
			lines[i] = e.Key + ": " + lines[i]
		}
	}
	return strings.Join(lines, "\n")
}

// OrNil returns f as an error, or nil when it is empty.
func (f FieldErrors) OrNil() error {
	if len(f) == 0 {
		return nil
	}
	return f
}

// FieldError makes an Invalid error about one key.
func FieldError(key, reason, format string, args ...any) *Error {
	e := Errorf(Invalid, reason, format, args...)
	e.Key = key
	return e
}
