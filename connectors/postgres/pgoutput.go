package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// lsn is a place in the write-ahead log.
type lsn uint64

// String prints the server's form, X/Y.
func (l lsn) String() string { return fmt.Sprintf("%X/%X", uint32(l>>32), uint32(l)) }

func parseLSN(s string) (lsn, error) {
	var high, low uint32
	if _, err := fmt.Sscanf(s, "%X/%X", &high, &low); err != nil {
		return 0, fmt.Errorf("read log position %q: %w", s, err)
	}
	return lsn(high)<<32 | lsn(low), nil
}

// The kinds of pgoutput messages, protocol version 1.
const (
	msgBegin    = 'B'
	msgCommit   = 'C'
	msgOrigin   = 'O'
	msgRelation = 'R'
	msgType     = 'Y'
	msgInsert   = 'I'
	msgUpdate   = 'U'
	msgDelete   = 'D'
	msgTruncate = 'T'
	msgMessage  = 'M'
)

// The kinds of a tuple's columns.
const (
	colNull      = 'n'
	colUnchanged = 'u'
	colText      = 't'
)

// maxColumns is the server's own limit with room to spare; a larger count means
// damaged bytes.
const maxColumns = 2048

// rawColumn is one column of a tuple as sent; data shares the message.
type rawColumn struct {
	kind byte
	data []byte
}

// tuple is a row as sent. Its columns are reused by the next decode into it.
type tuple struct {
	set     bool
	keyOnly bool // an old tuple that holds the replica identity's columns only
	columns []rawColumn
}

type beginMessage struct {
	final lsn   // start of the commit record
	time  int64 // microseconds since 2000
	xid   uint32
}

type commitMessage struct {
	commit, end lsn
	time        int64
}

type relationColumn struct {
	identity bool
	name     string
	oid      uint32
	typmod   int32
}

type relationMessage struct {
	id              uint32
	schema, name    string
	replicaIdentity byte
	columns         []relationColumn
}

type logicalMessage struct {
	transactional bool
	lsn           lsn
	prefix        []byte
	content       []byte
}

// reader reads the fields of a message and remembers that it ran out of bytes.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n int) []byte {
	if n < 0 || n > len(r.b) {
		r.bad = true
		return nil
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) byte() byte {
	if len(r.b) == 0 {
		r.bad = true
		return 0
	}
	c := r.b[0]
	r.b = r.b[1:]
	return c
}

func (r *reader) uint16() uint16 {
	b := r.take(2)
	if b == nil {
		return 0
	}
	return binary.BigEndian.Uint16(b)
}

func (r *reader) uint32() uint32 {
	b := r.take(4)
	if b == nil {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}

func (r *reader) uint64() uint64 {
	b := r.take(8)
	if b == nil {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}

// text reads a string that ends in a zero byte.
func (r *reader) text() []byte {
	i := bytes.IndexByte(r.b, 0)
	if i < 0 {
		r.bad = true
		return nil
	}
	b := r.b[:i]
	r.b = r.b[i+1:]
	return b
}

func (r *reader) done(kind byte) error {
	switch {
	case r.bad:
		return fmt.Errorf("a pgoutput message of kind %q is cut short", kind)
	case len(r.b) > 0:
		return fmt.Errorf("a pgoutput message of kind %q has %d bytes too many", kind, len(r.b))
	}
	return nil
}

func decodeBegin(b []byte) (beginMessage, error) {
	r := reader{b: b}
	m := beginMessage{final: lsn(r.uint64()), time: int64(r.uint64()), xid: r.uint32()}
	return m, r.done(msgBegin)
}

func decodeCommit(b []byte) (commitMessage, error) {
	r := reader{b: b}
	r.byte() // flags, unused
	m := commitMessage{commit: lsn(r.uint64()), end: lsn(r.uint64()), time: int64(r.uint64())}
	return m, r.done(msgCommit)
}

func decodeOrigin(b []byte) (lsn, string, error) {
	r := reader{b: b}
	at := lsn(r.uint64())
	name := string(r.text())
	return at, name, r.done(msgOrigin)
}

func decodeRelation(b []byte) (relationMessage, error) {
	r := reader{b: b}
	m := relationMessage{id: r.uint32(), schema: string(r.text()), name: string(r.text()), replicaIdentity: r.byte()}
	if m.schema == "" {
		m.schema = "pg_catalog" // sent as the empty string
	}
	n := int(r.uint16())
	if n > maxColumns {
		return m, fmt.Errorf("a relation message has %d columns", n)
	}
	m.columns = make([]relationColumn, 0, n)
	for range n {
		flags := r.byte()
		m.columns = append(m.columns, relationColumn{
			identity: flags&1 != 0, name: string(r.text()), oid: r.uint32(), typmod: int32(r.uint32()),
		})
		if r.bad {
			break
		}
	}
	return m, r.done(msgRelation)
}

// tuple reads the columns of a row into t.
func (r *reader) tuple(t *tuple) error {
	n := int(r.uint16())
	if n > maxColumns {
		return fmt.Errorf("a tuple has %d columns", n)
	}
	t.set = true
	t.columns = t.columns[:0]
	for range n {
		c := rawColumn{kind: r.byte()}
		switch c.kind {
		case colNull, colUnchanged:
		case colText:
			c.data = r.take(int(r.uint32()))
		default:
			if !r.bad {
				return fmt.Errorf("a tuple has a column of unknown kind %q", c.kind)
			}
		}
		if r.bad {
			return nil
		}
		t.columns = append(t.columns, c)
	}
	return nil
}

// decodeRow reads an insert, update or delete. old and new are reused.
func decodeRow(kind byte, b []byte, old, after *tuple) (relation uint32, err error) {
	r := reader{b: b}
	relation = r.uint32()
	old.set, old.keyOnly, after.set = false, false, false
	mark := r.byte()
	if kind != msgInsert && (mark == 'K' || mark == 'O') {
		old.keyOnly = mark == 'K'
		if err := r.tuple(old); err != nil {
			return relation, err
		}
		if kind == msgDelete {
			return relation, r.done(kind)
		}
		mark = r.byte()
	}
	if mark != 'N' && !r.bad {
		return relation, fmt.Errorf("a pgoutput message of kind %q has a tuple of unknown kind %q", kind, mark)
	}
	if kind == msgDelete && !r.bad {
		return relation, fmt.Errorf("a delete has no old row")
	}
	if err := r.tuple(after); err != nil {
		return relation, err
	}
	return relation, r.done(kind)
}

func decodeTruncate(b []byte, relations []uint32) ([]uint32, error) {
	r := reader{b: b}
	n := r.uint32()
	r.byte() // CASCADE and RESTART IDENTITY change nothing for us
	if int64(n)*4 > int64(len(r.b)) {
		r.bad = true
		n = 0
	}
	relations = relations[:0]
	for range n {
		relations = append(relations, r.uint32())
	}
	return relations, r.done(msgTruncate)
}

func decodeMessage(b []byte) (logicalMessage, error) {
	r := reader{b: b}
	m := logicalMessage{transactional: r.byte()&1 != 0, lsn: lsn(r.uint64()), prefix: r.text()}
	m.content = r.take(int(r.uint32()))
	return m, r.done(msgMessage)
}
