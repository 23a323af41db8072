package main

import (
	"crypto/md5" //nolint:gosec // a name-based UUID is defined by it
	"encoding/binary"
	"encoding/hex"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/millrace-io/millrace/plugins/sdk"
)

// The OIDs of built-in types that have a form of their own.
const (
	oidBool        = 16
	oidBytea       = 17
	oidChar        = 18
	oidName        = 19
	oidInt8        = 20
	oidInt2        = 21
	oidInt4        = 23
	oidText        = 25
	oidOID         = 26
	oidJSON        = 114
	oidXML         = 142
	oidPoint       = 600
	oidLseg        = 601
	oidPath        = 602
	oidBox         = 603
	oidPolygon     = 604
	oidLine        = 628
	oidCIDR        = 650
	oidFloat4      = 700
	oidFloat8      = 701
	oidCircle      = 718
	oidMacaddr8    = 774
	oidMoney       = 790
	oidMacaddr     = 829
	oidInet        = 869
	oidBpchar      = 1042
	oidVarchar     = 1043
	oidDate        = 1082
	oidTime        = 1083
	oidTimestamp   = 1114
	oidTimestamptz = 1184
	oidInterval    = 1186
	oidTimetz      = 1266
	oidBit         = 1560
	oidVarbit      = 1562
	oidNumeric     = 1700
	oidUUID        = 2950
	oidTsvector    = 3614
	oidJSONB       = 3802
)

// typeInfo is what the catalog says of a type.
type typeInfo struct {
	oid      uint32
	schema   string
	name     string
	kind     byte // of pg_type.typtype: b, c, d, e, m, p, r
	elem     uint32
	isArray  bool
	base     uint32 // of a domain
	baseMod  int32
	notNull  bool // of a domain
	delim    byte
	labels   []string
	category byte
}

// columnType is how values of a type come out.
type columnType struct {
	schema   *sdk.Schema // required; optional columns use a copy
	convert  convert
	fallback sdk.Value // stands for null where the schema has no null
	absent   sdk.Value // stands for a value the server did not send
	known    bool      // the reference connector has a form for it
	defaults bool      // the column's default is given in the schema
	comparer keyOrder
	always   bool // the field is optional even when the column is not
}

// keyOrder says how values of a type can be compared outside the database.
type keyOrder uint8

const (
	orderNone keyOrder = iota
	orderInt
	orderBytes   // as the bytes of the text, in any collation
	orderCollate // as the bytes of the text, under the collation "C"
)

// types makes column types by OID and modifier.
type types struct {
	config *config
	byOID  map[uint32]typeInfo
}

func semantic(k sdk.Kind, name string) *sdk.Schema {
	return &sdk.Schema{Kind: k, Name: name, Version: 1}
}

const (
	debeziumTime = "io.debezium.time."
	debeziumData = "io.debezium.data."
	debeziumGeo  = "io.debezium.data.geometry."
)

// resolve follows a domain to its base type; the outermost domain with a modifier
// decides on it.
func (t *types) resolve(oid uint32, mod int32) (typeInfo, int32) {
	info := t.byOID[oid]
	const maxChain = 32
	for range maxChain {
		if info.kind != 'd' {
			break
		}
		if mod < 0 {
			mod = info.baseMod
		}
		info = t.byOID[info.base]
	}
	return info, mod
}

// column returns the column type of a type.
func (t *types) column(oid uint32, mod int32) columnType {
	info, mod := t.resolve(oid, mod)
	c := t.make(info, mod)
	if c.schema == nil {
		c = t.asText(info)
	}
	return c
}

// asText is the form of types without one of their own.
func (t *types) asText(info typeInfo) columnType {
	if info.isArray {
		return columnType{
			schema:  &sdk.Schema{Kind: sdk.KindArray, Elem: sdk.OptionalOf(sdk.KindString)},
			convert: convertArray(convertString, info.delim), fallback: sdk.Array(nil),
		}
	}
	return columnType{schema: sdk.Of(sdk.KindString), convert: convertString, fallback: sdk.String("")}
}

// text makes a column type of a text with a semantic name, "" for none.
func (t *types) text(name string) columnType {
	s := sdk.Of(sdk.KindString)
	if name != "" {
		s = semantic(sdk.KindString, name)
	}
	return columnType{schema: s, convert: convertString, fallback: sdk.String(""), known: true, absent: sdk.String(t.config.placeholder)}
}

func number(k sdk.Kind, name string, c convert, zero sdk.Value) columnType {
	s := sdk.Of(k)
	if name != "" {
		s = semantic(k, name)
	}
	return columnType{schema: s, convert: c, fallback: zero, known: true, defaults: true}
}

// make returns the type's own form, one without schema when there is none.
func (t *types) make(info typeInfo, mod int32) columnType {
	switch {
	case info.kind == 'e':
		c := t.text(debeziumData + "Enum")
		c.schema.Params = map[string]string{"allowed": strings.Join(info.labels, ",")}
		c.defaults = true
		return c
	case info.isArray:
		return t.array(info, mod)
	}
	if c := t.simple(info.oid, mod); c.schema != nil {
		return c
	}
	if c := t.temporal(info.oid, mod); c.schema != nil {
		return c
	}
	if c := t.geometric(info.oid); c.schema != nil {
		return c
	}
	return t.extension(info)
}

func (t *types) simple(oid uint32, mod int32) columnType {
	switch oid {
	case oidBool:
		return number(sdk.KindBool, "", convertBool, sdk.Bool(false))
	case oidInt2:
		return ordered(number(sdk.KindInt16, "", convertInt16, sdk.Int16(0)), orderInt)
	case oidInt4:
		return ordered(number(sdk.KindInt32, "", convertInt32, sdk.Int32(0)), orderInt)
	case oidInt8:
		return ordered(number(sdk.KindInt64, "", convertInt64, sdk.Int64(0)), orderInt)
	case oidOID:
		return ordered(number(sdk.KindInt64, "", convertInt64, sdk.Int64(0)), orderInt)
	case oidFloat4:
		return number(sdk.KindFloat32, "", convertFloat32, sdk.Float32(0))
	case oidFloat8:
		return number(sdk.KindFloat64, "", convertFloat64, sdk.Float64(0))
	case oidNumeric:
		return t.numeric(mod)
	case oidMoney:
		return t.money()
	case oidBytea:
		return t.bytea()
	case oidBit, oidVarbit:
		return bitType(oid, mod)
	case oidText, oidVarchar:
		c := ordered(t.text(""), orderCollate)
		c.defaults = true
		return c
	case oidBpchar, oidChar, oidName, oidInet, oidCIDR, oidMacaddr, oidMacaddr8:
		c := t.text("")
		c.defaults = true
		return c
	case oidJSON, oidJSONB:
		c := t.text(debeziumData + "Json")
		c.defaults, c.fallback = true, sdk.String("{}")
		return c
	case oidXML:
		c := t.text(debeziumData + "Xml")
		c.defaults = true
		return c
	case oidUUID:
		c := ordered(t.text(debeziumData+"Uuid"), orderBytes)
		c.defaults = true
		return c
	case oidTsvector:
		return t.text(debeziumData + "Tsvector")
	case 3904, 3906, 3908, 3910, 3912, 3926: // the ranges
		return t.text("")
	}
	return columnType{}
}

func ordered(c columnType, o keyOrder) columnType {
	c.comparer = o
	return c
}

// numericMod splits the modifier of numeric into precision and scale; the scale
// is signed since version 15.
func numericMod(mod int32) (precision, scale int) {
	mod -= 4
	return int(mod>>16) & 0xffff, int(mod&0x7ff^1024) - 1024
}

func (t *types) numeric(mod int32) columnType {
	switch t.config.Decimal {
	case "double":
		c := number(sdk.KindFloat64, "", convertFloat64, sdk.Float64(0))
		return c
	case "string":
		c := t.text("")
		c.convert, c.defaults, c.fallback = convertNumericText, true, sdk.String(zeroText(mod))
		return c
	}
	if mod < 4 {
		return variableDecimal()
	}
	precision, scale := numericMod(mod)
	s := sdk.DecimalSchema(scale)
	s.Params["connect.decimal.precision"] = strconv.Itoa(precision)
	return columnType{schema: s, convert: convertDecimal(scale), fallback: sdk.Bytes([]byte{0}), known: true, defaults: true}
}

// zeroText is zero with as many digits as the column has.
func zeroText(mod int32) string {
	if mod < 4 {
		return "0"
	}
	if _, scale := numericMod(mod); scale > 0 {
		return "0." + strings.Repeat("0", scale)
	}
	return "0"
}

func variableDecimal() columnType {
	s := semantic(sdk.KindStruct, debeziumData+"VariableScaleDecimal")
	s.Doc = "Variable scaled decimal"
	s.Fields = []sdk.Field{{Name: "scale", Schema: sdk.Of(sdk.KindInt32)}, {Name: "value", Schema: sdk.Of(sdk.KindBytes)}}
	zero := sdk.Struct([]sdk.Value{sdk.Int32(0), sdk.Bytes([]byte{0})})
	return columnType{schema: s, convert: convertVariable, fallback: zero, known: true}
}

func (t *types) money() columnType {
	digits := t.config.moneyDigits
	switch t.config.Decimal {
	case "double":
		c := number(sdk.KindFloat64, "", convertMoney(convertFloat64), sdk.Float64(0))
		c.defaults = false
		return c
	case "string":
		c := t.text("")
		c.convert, c.fallback, c.absent = convertMoney(moneyText(digits)), sdk.String("0"), sdk.Null
		return c
	}
	return columnType{
		schema: sdk.DecimalSchema(digits), convert: convertMoney(convertDecimal(digits)), fallback: sdk.Bytes([]byte{0}), known: true,
	}
}

func (t *types) bytea() columnType {
	raw := []byte(t.config.placeholder)
	if t.config.Binary == "bytes" {
		return columnType{schema: sdk.Of(sdk.KindBytes), convert: convertBytea("bytes"), fallback: sdk.Bytes(nil), known: true, absent: sdk.Bytes(raw)}
	}
	c := t.text("")
	c.convert = convertBytea(t.config.Binary)
	var a arena
	c.absent = binaryValue(t.config.Binary, raw, &a)
	if t.config.placeholderHex {
		c.absent = sdk.String(t.config.placeholder)
	}
	return c
}

func bitType(oid uint32, mod int32) columnType {
	if mod == 1 {
		return number(sdk.KindBool, "", convertBit, sdk.Bool(false))
	}
	length := "2147483647"
	if mod > 0 {
		length = strconv.Itoa(int(mod))
	}
	s := semantic(sdk.KindBytes, debeziumData+"Bits")
	s.Params = map[string]string{"length": length}
	return columnType{schema: s, convert: convertBits, fallback: sdk.Bytes(nil), known: true, defaults: oid == oidBit}
}

// precisionOf is the number of fraction digits of a time type; without modifier
// it is six.
func precisionOf(mod int32) int {
	if mod < 0 {
		return 6
	}
	return int(mod)
}

func (t *types) temporal(oid uint32, mod int32) columnType {
	mode, p := t.config.Time, precisionOf(mod)
	switch oid {
	case oidDate:
		switch mode {
		case "connect":
			return number(sdk.KindInt32, sdk.DateName, convertDate, sdk.Int32(0))
		case "isostring":
			return t.isoText("IsoDate", convertIsoDate, "1970-01-01Z")
		}
		return number(sdk.KindInt32, debeziumTime+"Date", convertDate, sdk.Int32(0))
	case oidTime:
		return t.timeOfDay(mode, p)
	case oidTimestamp:
		return t.timestamp(mode, p)
	case oidTimestamptz:
		c := t.text(debeziumTime + "ZonedTimestamp")
		c.convert, c.defaults = convertZonedTimestamp(p), true
		c.fallback = sdk.String("1970-01-01T00:00:00Z")
		return c
	case oidTimetz:
		c := t.text(debeziumTime + "ZonedTime")
		c.convert, c.defaults, c.fallback = convertZonedTime, true, sdk.String("00:00:00Z")
		return c
	case oidInterval:
		if t.config.intervalMode == "string" {
			c := t.text(debeziumTime + "Interval")
			c.convert, c.defaults, c.fallback = convertInterval, true, sdk.String("P0Y0M0DT0H0M0S")
			return c
		}
		return number(sdk.KindInt64, debeziumTime+"MicroDuration", convertDuration, sdk.Int64(0))
	}
	return columnType{}
}

func (t *types) isoText(name string, conv convert, fallback string) columnType {
	c := t.text(debeziumTime + name)
	c.convert, c.defaults, c.fallback = conv, true, sdk.String(fallback)
	return c
}

func (t *types) timeOfDay(mode string, p int) columnType {
	switch {
	case mode == "connect":
		return number(sdk.KindInt32, sdk.TimeName, convertTime(1000, true), sdk.Int32(0))
	case mode == "isostring":
		return t.isoText("IsoTime", convertIsoTime, "00:00:00Z")
	case mode == "nanoseconds":
		return number(sdk.KindInt64, debeziumTime+"NanoTime", convertTime(-1000, false), sdk.Int64(0))
	case mode == "adaptive" && p <= 3:
		return number(sdk.KindInt32, debeziumTime+"Time", convertTime(1000, true), sdk.Int32(0))
	}
	return number(sdk.KindInt64, debeziumTime+"MicroTime", convertTime(1, false), sdk.Int64(0))
}

func (t *types) timestamp(mode string, p int) columnType {
	switch {
	case mode == "connect":
		return number(sdk.KindInt64, sdk.TimestampName, convertTimestamp(1000), sdk.Int64(0))
	case mode == "isostring":
		return t.isoText("IsoTimestamp", convertIsoTimestamp, "1970-01-01T00:00:00Z")
	case mode == "nanoseconds":
		return number(sdk.KindInt64, debeziumTime+"NanoTimestamp", convertTimestamp(-1000), sdk.Int64(0))
	case (mode == "adaptive" || mode == "adaptive_time_microseconds") && p <= 3:
		return number(sdk.KindInt64, debeziumTime+"Timestamp", convertTimestamp(1000), sdk.Int64(0))
	}
	return number(sdk.KindInt64, debeziumTime+"MicroTimestamp", convertTimestamp(1), sdk.Int64(0))
}

func pointSchema() *sdk.Schema {
	s := semantic(sdk.KindStruct, debeziumGeo+"Point")
	s.Doc = "Geometry (POINT)"
	s.Fields = []sdk.Field{
		{Name: "x", Schema: sdk.Of(sdk.KindFloat64)},
		{Name: "y", Schema: sdk.Of(sdk.KindFloat64)},
		{Name: "wkb", Schema: sdk.OptionalOf(sdk.KindBytes)},
		{Name: "srid", Schema: sdk.OptionalOf(sdk.KindInt32)},
	}
	return s
}

func (t *types) geometric(oid uint32) columnType {
	double := sdk.Of(sdk.KindFloat64)
	var a arena
	switch oid {
	case oidPoint:
		zero, _ := convertPoint([]byte("(0,0)"), &a)
		return columnType{schema: pointSchema(), convert: convertPoint, fallback: zero, known: true}
	case oidLine:
		s := semantic(sdk.KindStruct, debeziumGeo+"Line")
		s.Fields = []sdk.Field{{Name: "a", Schema: double}, {Name: "b", Schema: double}, {Name: "c", Schema: double}}
		return columnType{schema: s, convert: convertLine, known: true, always: true}
	case oidCircle:
		s := semantic(sdk.KindStruct, debeziumGeo+"Circle")
		s.Fields = []sdk.Field{{Name: "center", Schema: pointSchema()}, {Name: "radius", Schema: double}}
		return columnType{schema: s, convert: convertCircle, known: true, always: true}
	case oidBox, oidLseg, oidPath, oidPolygon:
		s := semantic(sdk.KindStruct, debeziumGeo+"Geometry")
		s.Version = 2
		s.Doc = "Geometry"
		s.Fields = []sdk.Field{
			{Name: "wkb", Schema: sdk.Of(sdk.KindBytes)},
			{Name: "srid", Schema: sdk.OptionalOf(sdk.KindInt32)},
			{Name: "extensions", Schema: &sdk.Schema{
				Kind: sdk.KindMap, Optional: true, KeyElem: sdk.Of(sdk.KindString), Elem: sdk.Of(sdk.KindString),
			}},
		}
		kind := map[uint32]string{oidBox: "box", oidLseg: "lseg", oidPath: "path", oidPolygon: "polygon"}[oid]
		return columnType{schema: s, convert: convertShape(kind), known: true, always: true}
	}
	return columnType{}
}

// extension makes the types that extensions bring, found by name.
func (t *types) extension(info typeInfo) columnType {
	switch info.name {
	case "citext", "isbn":
		c := t.text("")
		c.defaults = info.name == "citext"
		return c
	case "ltree":
		return t.text(debeziumData + "Ltree")
	case "hstore":
		return t.hstore()
	case "geometry", "geography":
		s := semantic(sdk.KindStruct, debeziumGeo+strings.ToUpper(info.name[:1])+info.name[1:])
		s.Doc = strings.ToUpper(info.name[:1]) + info.name[1:]
		s.Fields = []sdk.Field{{Name: "wkb", Schema: sdk.Of(sdk.KindBytes)}, {Name: "srid", Schema: sdk.OptionalOf(sdk.KindInt32)}}
		empty := sdk.Struct([]sdk.Value{sdk.Bytes([]byte{1, 7, 0, 0, 0, 0, 0, 0, 0}), sdk.Null}) // a collection of nothing
		return columnType{schema: s, convert: convertEWKB, known: true, always: true, fallback: empty}
	case "vector":
		s := semantic(sdk.KindArray, debeziumData+"DoubleVector")
		s.Elem = sdk.Of(sdk.KindFloat64)
		return columnType{schema: s, convert: convertVector(convertFloat64), fallback: sdk.Array(nil), known: true}
	case "halfvec":
		s := semantic(sdk.KindArray, debeziumData+"FloatVector")
		s.Elem = sdk.Of(sdk.KindFloat32)
		return columnType{schema: s, convert: convertVector(convertFloat32), fallback: sdk.Array(nil), known: true}
	case "sparsevec":
		s := semantic(sdk.KindStruct, debeziumData+"SparseDoubleVector")
		s.Doc = "Sparse double vector"
		s.Fields = []sdk.Field{
			{Name: "dimensions", Schema: sdk.Of(sdk.KindInt16)},
			{Name: "vector", Schema: &sdk.Schema{Kind: sdk.KindMap, KeyElem: sdk.Of(sdk.KindInt16), Elem: sdk.Of(sdk.KindFloat64)}},
		}
		return columnType{schema: s, convert: convertSparse, known: true, always: true}
	}
	return columnType{}
}

func (t *types) hstore() columnType {
	p := t.config.placeholder
	if t.config.hstoreMode == "map" {
		s := &sdk.Schema{Kind: sdk.KindMap, KeyElem: sdk.Of(sdk.KindString), Elem: sdk.OptionalOf(sdk.KindString)}
		return columnType{
			schema: s, convert: convertHstoreMap, fallback: sdk.Map(nil), known: true,
			absent: sdk.Map([]sdk.Entry{{Key: sdk.String(p), Value: sdk.String(p)}}),
		}
	}
	c := t.text(debeziumData + "Json")
	c.convert, c.fallback = convertHstoreJSON, sdk.String("{}")
	quoted := string(appendJSONText(nil, []byte(p)))
	c.absent = sdk.String("{" + quoted + ":" + quoted + "}")
	return c
}

// arraysUnknown are the element types whose arrays the reference connector leaves
// out; they come as texts here.
var arraysUnknown = []uint32{oidMoney, oidName, oidInterval, oidVarbit, oidBit, oidXML, oidPoint, oidLine, oidCircle, oidBox, oidLseg, oidPath, oidPolygon, oidChar}

func (t *types) array(info typeInfo, mod int32) columnType {
	elemInfo := t.byOID[info.elem]
	if elemInfo.kind == 'd' || slices.Contains(arraysUnknown, info.elem) {
		return columnType{}
	}
	elem := t.make(elemInfo, mod)
	if elem.schema == nil {
		return columnType{}
	}
	s := &sdk.Schema{Kind: sdk.KindArray, Elem: elem.schema.AsOptional()}
	return columnType{
		schema: s, convert: convertArray(elem.convert, info.delim), fallback: sdk.Array(nil), known: true,
		absent: t.absentArray(info.elem, elem),
	}
}

// absentArray is the placeholder of an array the server did not send.
func (t *types) absentArray(elem uint32, c columnType) sdk.Value {
	p := t.config.placeholder
	switch {
	case elem == oidBytea:
		if t.config.Binary == "bytes" {
			return sdk.Array([]sdk.Value{sdk.Bytes([]byte(p))})
		}
		return sdk.Null
	case elem == oidUUID:
		return sdk.Array([]sdk.Value{sdk.String(nameUUID(p))})
	case c.schema.Kind == sdk.KindString && elem != oidNumeric:
		return sdk.Array([]sdk.Value{sdk.String(p)})
	case elem == oidInt4 || elem == oidDate && c.schema.Kind == sdk.KindInt32:
		return byteArray(p, func(c byte) sdk.Value { return sdk.Int32(int32(int8(c))) })
	case elem == oidInt8:
		return byteArray(p, func(c byte) sdk.Value { return sdk.Int64(int64(int8(c))) })
	}
	return sdk.Null
}

func byteArray(p string, f func(byte) sdk.Value) sdk.Value {
	items := make([]sdk.Value, len(p))
	for i := range len(p) {
		items[i] = f(p[i])
	}
	return sdk.Array(items)
}

// nameUUID is the version 3 UUID that Java makes of bytes.
func nameUUID(s string) string {
	h := md5.Sum([]byte(s)) //nolint:gosec // see the import
	h[6] = h[6]&0x0f | 0x30
	h[8] = h[8]&0x3f | 0x80
	x := hex.EncodeToString(h[:])
	return x[:8] + "-" + x[8:12] + "-" + x[12:16] + "-" + x[16:20] + "-" + x[20:]
}

// epoch2000 is 2000-01-01 in microseconds since 1970, where the server's clock
// begins.
const epoch2000 = 946_684_800_000_000

func serverTime(micros int64) int64 {
	if micros > math.MaxInt64-epoch2000 {
		return math.MaxInt64
	}
	return micros + epoch2000
}

// intKey reads a key's text as an order-preserving number.
func intKey(b []byte) uint64 {
	n, _ := parseInt(b)
	return uint64(n) ^ 1<<63
}

// compareKeys orders two key texts of a type.
func compareKeys(o keyOrder, a, b []byte) int {
	if o == orderInt {
		var x, y [8]byte
		binary.BigEndian.PutUint64(x[:], intKey(a))
		binary.BigEndian.PutUint64(y[:], intKey(b))
		return slices.Compare(x[:], y[:])
	}
	return slices.Compare(a, b)
}

// widths are what a JDBC driver tells of types without a modifier, which is what
// the propagated parameters have always held.
var widths = map[uint32][2]string{
	oidBool: {"1", "0"}, oidInt2: {"5", "0"}, oidInt4: {"10", "0"}, oidInt8: {"19", "0"}, oidOID: {"10", "0"},
	oidFloat4: {"8", "8"}, oidFloat8: {"17", "17"}, oidNumeric: {"131089", "0"}, oidDate: {"13", "0"},
	oidTime: {"15", "6"}, oidTimetz: {"21", "6"}, oidTimestamp: {"29", "6"}, oidTimestamptz: {"35", "6"}, oidInterval: {"49", "6"},
}

// declaredType prints the name, length and scale of a column's type as the
// propagated parameters give them.
func (t *types) declaredType(oid uint32, mod int32) (name, length, scale string) {
	info := t.byOID[oid]
	name = strings.ToUpper(info.name)
	if info.isArray {
		oid = info.elem
	}
	width, ok := widths[oid]
	if !ok {
		width = [2]string{"2147483647", "0"}
	}
	length, scale = width[0], width[1]
	switch {
	case oid == oidNumeric && mod >= 4:
		p, s := numericMod(mod)
		length, scale = strconv.Itoa(p), strconv.Itoa(s)
	case (oid == oidVarchar || oid == oidBpchar) && mod > 4:
		length = strconv.Itoa(int(mod - 4))
	case (oid == oidBit || oid == oidVarbit) && mod > 0:
		length = strconv.Itoa(int(mod))
	case ok && scale == "6" && mod >= 0:
		scale = strconv.Itoa(int(mod) & 0xffff)
	}
	return name, length, scale
}
