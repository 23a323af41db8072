package main

import (
	"encoding/binary"
	"log/slog"
	"testing"

	converters "github.com/millrace-io/millrace/plugins/convert"

	"github.com/millrace-io/millrace/connectors/internal/cdc"
	"github.com/millrace-io/millrace/plugins/sdk"
)

// messages are one message of each kind.
func messages() map[byte][]byte {
	u64 := func(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }
	cat := func(parts ...[]byte) (out []byte) {
		for _, p := range parts {
			out = append(out, p...)
		}
		return out
	}
	row := []byte{0, 3, 'n', 'u', 't', 0, 0, 0, 2, 'h', 'i'}
	return map[byte][]byte{
		msgBegin:    cat(u64(100), u64(5), []byte{0, 0, 0, 7}),
		msgCommit:   cat([]byte{0}, u64(100), u64(120), u64(5)),
		msgOrigin:   cat(u64(1), []byte("node\x00")),
		msgRelation: cat([]byte{0, 0, 0, 9}, []byte("public\x00t\x00d"), []byte{0, 1, 1}, []byte("id\x00"), []byte{0, 0, 0, 23, 255, 255, 255, 255}),
		msgInsert:   cat([]byte{0, 0, 0, 9, 'N'}, row),
		msgUpdate:   cat([]byte{0, 0, 0, 9, 'O'}, row, []byte{'N'}, row),
		msgDelete:   cat([]byte{0, 0, 0, 9, 'K'}, row),
		msgTruncate: {0, 0, 0, 2, 0, 0, 0, 0, 1, 0, 0, 0, 2},
		msgMessage:  cat([]byte{1}, u64(50), []byte("prefix\x00"), []byte{0, 0, 0, 2, 'h', 'i'}),
	}
}

// decodeAny decodes a message of any kind.
func decodeAny(kind byte, b []byte) error {
	var old, row tuple
	var err error
	switch kind {
	case msgBegin:
		_, err = decodeBegin(b)
	case msgCommit:
		_, err = decodeCommit(b)
	case msgOrigin:
		_, _, err = decodeOrigin(b)
	case msgRelation:
		_, err = decodeRelation(b)
	case msgInsert, msgUpdate, msgDelete:
		_, err = decodeRow(kind, b, &old, &row)
	case msgTruncate:
		_, err = decodeTruncate(b, nil)
	case msgMessage:
		_, err = decodeMessage(b)
	}
	return err
}

func TestDecodeRefusesEveryTruncation(t *testing.T) {
	for kind, whole := range messages() {
		if err := decodeAny(kind, whole); err != nil {
			t.Errorf("%c: %v", kind, err)
		}
		for n := range len(whole) {
			if err := decodeAny(kind, whole[:n:n]); err == nil {
				t.Errorf("%c cut to %d of %d bytes is accepted", kind, n, len(whole))
			}
		}
		if err := decodeAny(kind, append(whole[:len(whole):len(whole)], 0)); err == nil {
			t.Errorf("%c with a byte too many is accepted", kind)
		}
	}
	if err := decodeAny(msgInsert, []byte{0, 0, 0, 9, 'N', 0, 1, 'x'}); err == nil {
		t.Error("an unknown kind of column is accepted")
	}
}

func TestDecodeUpdate(t *testing.T) {
	var old, row tuple
	oid, err := decodeRow(msgUpdate, messages()[msgUpdate], &old, &row)
	if err != nil || oid != 9 || !old.set || old.keyOnly || len(row.columns) != 3 || string(row.columns[2].data) != "hi" || row.columns[1].kind != colUnchanged {
		t.Errorf("%d %v %+v %+v", oid, err, old, row)
	}
}

func FuzzDecode(f *testing.F) {
	for kind, b := range messages() {
		f.Add(kind, b)
	}
	f.Fuzz(func(t *testing.T, kind byte, b []byte) { _ = decodeAny(kind, b) })
}

// offlineTable makes a table without a database.
func offlineTable(t testing.TB, cfg *config, columns ...relationColumn) (*emitter, *table) {
	t.Helper()
	names := map[uint32]string{oidInt4: "int4", oidInt8: "int8", oidText: "text", oidTimestamptz: "timestamptz", oidNumeric: "numeric", oidBytea: "bytea", oidUUID: "uuid", oidBool: "bool"}
	types := &types{config: cfg, byOID: map[uint32]typeInfo{}}
	for oid, name := range names {
		types.byOID[oid] = typeInfo{oid: oid, name: name, kind: 'b', delim: ','}
	}
	maker := &tableMaker{config: cfg, types: types, names: cfg.Names(), source: newSourceSchema(), block: cdc.TransactionBlock()}
	cat := &relation{indexes: []index{{name: "pk", primary: true, columns: []string{columns[0].name}}}, identity: 'd'}
	tab := maker.make(relationMessage{id: 1, schema: "public", name: "t", replicaIdentity: 'd', columns: columns}, cat, nil)
	return newEmitter(cfg, slog.New(slog.DiscardHandler), "0"), tab
}

func defaultConfig(t testing.TB, pairs ...string) *config {
	t.Helper()
	values := map[string]string{"topic.prefix": "shop", "database.hostname": "h", "database.user": "u", "database.dbname": "app"}
	for i := 0; i+1 < len(pairs); i += 2 {
		values[pairs[i]] = pairs[i+1]
	}
	c := &config{}
	var d sdk.Def
	c.Define(&d)
	if err := d.Parse(values).Errors().OrNil(); err != nil {
		t.Fatal(err)
	}
	if err := c.check().OrNil(); err != nil {
		t.Fatal(err)
	}
	return c
}

// streamedRow makes the path of one insert: decode, envelope, JSON.
func streamedRow(t testing.TB) func() []byte {
	e, tab := offlineTable(t, defaultConfig(t),
		relationColumn{identity: true, name: "id", oid: oidInt8, typmod: -1}, relationColumn{name: "k", oid: oidInt4, typmod: -1},
		relationColumn{name: "ts", oid: oidTimestamptz, typmod: -1}, relationColumn{name: "payload", oid: oidText, typmod: -1})
	key, _ := converters.New("json", converters.Key, map[string]string{"schemas.enable": "false"})
	value, _ := converters.New("json", converters.Value, map[string]string{"schemas.enable": "false"})
	buf := make([]byte, 0, 4096)
	out := sdk.NewBatch(func(r *sdk.Record) (err error) {
		if buf, err = key.Encode(buf[:0], r.Key); err == nil {
			buf, err = value.Encode(buf, r.Value)
		}
		return err
	}, nil)
	m := insertMessage()
	var old, row tuple
	e.tick()
	e.at(1_700_000_000_000_000)
	return func() []byte {
		if _, err := decodeRow(msgInsert, m, &old, &row); err != nil {
			t.Fatal(err)
		}
		e.arena.reset()
		if err := e.insert(out, tab, 12345678, &row); err != nil {
			t.Fatal(err)
		}
		return buf
	}
}

func TestStreamedRowDoesNotAllocate(t *testing.T) {
	one := streamedRow(t)
	one()
	if n := testing.AllocsPerRun(200, func() { one() }); n != 0 {
		t.Errorf("%v allocations a row", n)
	}
	m := insertMessage()
	var old, row tuple
	if n := testing.AllocsPerRun(200, func() { _, _ = decodeRow(msgInsert, m, &old, &row) }); n != 0 {
		t.Errorf("the decoder makes %v allocations a row", n)
	}
}

func BenchmarkStreamedRow(b *testing.B) {
	one := streamedRow(b)
	b.ReportAllocs()
	for b.Loop() {
		one()
	}
}
