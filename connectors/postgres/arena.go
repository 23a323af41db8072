package main

import "github.com/millrace-io/millrace/plugins/sdk"

// arena lends memory for the values of one record; all of it is taken back at
// once. What was lent stays valid when the arena grows, because growing takes
// new memory.
type arena struct {
	bytes  []byte
	values []sdk.Value
}

const (
	arenaBytes  = 4 << 10
	arenaValues = 64
)

// reset takes everything back.
func (a *arena) reset() {
	a.bytes = a.bytes[:0]
	a.values = a.values[:0]
}

// room makes sure that n more bytes fit without moving, and returns the free part
// with length 0.
func (a *arena) room(n int) []byte {
	if cap(a.bytes)-len(a.bytes) < n {
		a.bytes = make([]byte, 0, max(n, 2*cap(a.bytes), arenaBytes))
	}
	return a.bytes[len(a.bytes):]
}

// keep marks b, which was built in room, as lent. b may have outgrown it.
func (a *arena) keep(b []byte) []byte {
	if free := a.bytes[len(a.bytes):cap(a.bytes)]; len(b) > 0 && len(b) <= len(free) && &free[0] == &b[0] {
		a.bytes = a.bytes[:len(a.bytes)+len(b)]
	}
	return b[:len(b):len(b)]
}

// array lends n values, all null.
func (a *arena) array(n int) []sdk.Value {
	if cap(a.values)-len(a.values) < n {
		a.values = make([]sdk.Value, 0, max(n, 2*cap(a.values), arenaValues))
	}
	start := len(a.values)
	a.values = a.values[:start+n]
	v := a.values[start : start+n : start+n]
	clear(v)
	return v
}
