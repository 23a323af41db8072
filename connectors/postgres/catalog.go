package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/millrace-io/millrace/connectors/internal/cdc"
)

// attribute is a column as the catalog knows it today.
type attribute struct {
	name      string
	number    int
	oid       uint32
	typmod    int32
	notNull   bool
	generated bool
	identity  bool
	fallback  string // expression of the default, "" without one
	comment   string
}

// index is a unique index that could be a key.
type index struct {
	name            string
	primary         bool
	replicaIdentity bool
	columns         []string
}

// relation is a table as the catalog knows it today.
type relation struct {
	oid         uint32
	id          cdc.TableID
	kind        byte // r, p, v, m, f
	persistence byte // p, u, t
	identity    byte // d, f, n, i
	rows        int64
	partition   bool // of another table
	attributes  []attribute
	indexes     []index // the primary key first, then by name
}

// attribute returns the column of that name.
func (r *relation) attribute(name string) *attribute {
	if r == nil {
		return nil
	}
	for i := range r.attributes {
		if r.attributes[i].name == name {
			return &r.attributes[i]
		}
	}
	return nil
}

// primaryKey returns the primary key's columns in key order.
func (r *relation) primaryKey() []string {
	if r != nil && len(r.indexes) > 0 && r.indexes[0].primary {
		return r.indexes[0].columns
	}
	return nil
}

// uniqueKey returns the columns of the first unique index, by name, that a key
// can be made of.
func (r *relation) uniqueKey() []string {
	if r == nil {
		return nil
	}
	for _, x := range r.indexes {
		if !x.primary {
			return x.columns
		}
	}
	return nil
}

// identityColumns returns the columns of the old row that the server sends, nil
// when it sends all of them or none.
func (r *relation) identityColumns() []string {
	if r == nil {
		return nil
	}
	switch r.identity {
	case 'd':
		return r.primaryKey()
	case 'i':
		for _, x := range r.indexes {
			if x.replicaIdentity {
				return x.columns
			}
		}
	}
	return nil
}

const relationQuery = `SELECT c.oid, n.nspname, c.relname, c.relkind, c.relpersistence, c.relreplident, c.reltuples::bigint, c.relispartition
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE %s ORDER BY n.nspname COLLATE "C", c.relname COLLATE "C"`

// ownSchemas is the condition that leaves out the system's schemas.
const ownSchemas = `n.nspname NOT IN ('pg_catalog','information_schema') AND n.nspname NOT LIKE 'pg\_toast%' AND n.nspname NOT LIKE 'pg\_temp\_%'`

// relations reads the tables that meet a condition, without columns.
func (db *conn) relations(ctx context.Context, condition string) ([]*relation, error) {
	rows, err := db.rows(ctx, fmt.Sprintf(relationQuery, condition))
	if err != nil {
		return nil, err
	}
	out := make([]*relation, len(rows))
	for i, r := range rows {
		out[i] = &relation{
			oid: oidOf(val(r[0])), id: cdc.TableID{Schema: val(r[1]), Name: val(r[2])}, kind: val(r[3])[0], persistence: val(r[4])[0],
			identity: val(r[5])[0], partition: val(r[7]) == "t",
		}
		out[i].rows, _ = strconv.ParseInt(val(r[6]), 10, 64)
	}
	return out, nil
}

func oidOf(s string) uint32 {
	n, _ := strconv.ParseUint(s, 10, 32)
	return uint32(n)
}

const attributeQuery = `SELECT a.attname, a.attnum, a.atttypid, a.atttypmod, a.attnotnull, a.attgenerated <> '', a.attidentity <> '',
pg_catalog.pg_get_expr(d.adbin, d.adrelid), pg_catalog.col_description(a.attrelid, a.attnum)
FROM pg_catalog.pg_attribute a LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = %d AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum`

const indexQuery = `SELECT c.relname, i.indisprimary, i.indisreplident,
(SELECT string_agg(a.attname, E'\x01' ORDER BY k.n) FROM unnest(i.indkey) WITH ORDINALITY k(num, n)
 JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.num WHERE k.n <= i.indnkeyatts)
FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
WHERE i.indrelid = %d AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
ORDER BY i.indisprimary DESC, c.relname COLLATE "C"`

// fill reads a table's columns and unique indexes.
func (db *conn) fill(ctx context.Context, r *relation) error {
	rows, err := db.rows(ctx, fmt.Sprintf(attributeQuery, r.oid))
	if err != nil {
		return err
	}
	for _, row := range rows {
		number, _ := strconv.Atoi(val(row[1]))
		mod, _ := strconv.ParseInt(val(row[3]), 10, 32)
		r.attributes = append(r.attributes, attribute{
			name: val(row[0]), number: number, oid: oidOf(val(row[2])), typmod: int32(mod), notNull: val(row[4]) == "t",
			generated: val(row[5]) == "t", identity: val(row[6]) == "t", fallback: val(row[7]), comment: val(row[8]),
		})
	}
	rows, err = db.rows(ctx, fmt.Sprintf(indexQuery, r.oid))
	if err != nil {
		return err
	}
	for _, row := range rows {
		r.indexes = append(r.indexes, index{
			name: val(row[0]), primary: val(row[1]) == "t", replicaIdentity: val(row[2]) == "t", columns: strings.Split(val(row[3]), "\x01"),
		})
	}
	return nil
}

// relation reads one table with its columns, nil when it is gone.
func (db *conn) relation(ctx context.Context, oid uint32) (*relation, error) {
	found, err := db.relations(ctx, fmt.Sprintf("c.oid = %d", oid))
	if err != nil || len(found) == 0 {
		return nil, err
	}
	return found[0], db.fill(ctx, found[0])
}

const typeQuery = `SELECT t.oid, n.nspname, t.typname, t.typtype, t.typelem, t.typcategory, t.typbasetype, t.typtypmod, t.typnotnull, e.typdelim,
(SELECT string_agg(l.enumlabel, E'\x01' ORDER BY l.enumsortorder) FROM pg_catalog.pg_enum l WHERE l.enumtypid = t.oid)
FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace LEFT JOIN pg_catalog.pg_type e ON e.oid = t.typelem
WHERE t.oid IN (%s)`

// load reads types that are not known yet, and those they are made of.
func (t *types) load(ctx context.Context, db *conn, oids []uint32) error {
	const maxDepth = 32
	for range maxDepth {
		var missing []string
		for _, oid := range oids {
			if _, ok := t.byOID[oid]; !ok && oid != 0 {
				missing = append(missing, strconv.FormatUint(uint64(oid), 10))
			}
		}
		if len(missing) == 0 {
			return nil
		}
		slices.Sort(missing)
		rows, err := db.rows(ctx, fmt.Sprintf(typeQuery, strings.Join(slices.Compact(missing), ",")))
		if err != nil {
			return err
		}
		for _, m := range missing { // those that are gone have no name
			t.byOID[oidOf(m)] = typeInfo{oid: oidOf(m), kind: 'b'}
		}
		oids = oids[:0:0]
		for _, row := range rows {
			info := typeOf(row)
			t.byOID[info.oid] = info
			oids = append(oids, info.elem, info.base)
		}
	}
	return nil
}

func typeOf(row []*string) typeInfo {
	mod, _ := strconv.ParseInt(val(row[7]), 10, 32)
	info := typeInfo{
		oid: oidOf(val(row[0])), schema: val(row[1]), name: val(row[2]), kind: val(row[3])[0], elem: oidOf(val(row[4])),
		category: val(row[5])[0], base: oidOf(val(row[6])), baseMod: int32(mod), notNull: val(row[8]) == "t", delim: ',',
	}
	info.isArray = info.category == 'A' && info.kind == 'b' && info.elem != 0
	if d := val(row[9]); d != "" {
		info.delim = d[0]
	}
	if labels := val(row[10]); labels != "" {
		info.labels = strings.Split(labels, "\x01")
	}
	return info
}

// forget drops what may have changed of types: everything that is not built in.
func (t *types) forget() {
	const firstUserOID = 16384
	for oid := range t.byOID {
		if oid >= firstUserOID {
			delete(t.byOID, oid)
		}
	}
}
