package sdk

import (
	"math"
	"unsafe"
)

// Kind is the type of a Value; the names are Connect's.
type Kind uint8

// The kinds. Logical types (decimal, date, time, timestamp) are names of a
// Schema, not kinds: their values are the base type's.
const (
	KindNull Kind = iota
	KindBool
	KindInt8
	KindInt16
	KindInt32
	KindInt64
	KindFloat32
	KindFloat64
	KindString
	KindBytes
	KindArray
	KindMap
	KindStruct
)

var kindNames = [...]string{
	"null", "boolean", "int8", "int16", "int32", "int64",
	"float", "double", "string", "bytes", "array", "map", "struct",
}

// String returns the name that Connect's JSON schemas use.
func (k Kind) String() string { return kindNames[k] }

// Value is a tagged union of 24 bytes that is copied freely. The zero Value is
// null. Strings, bytes, arrays, maps and structs are shared, not copied: nobody
// may change them afterwards.
type Value struct {
	num  uint64 // the number, or the length of what ptr points to
	ptr  unsafe.Pointer
	kind Kind
}

// Entry is one entry of a map.
type Entry struct{ Key, Value Value }

// Null is the null value.
var Null Value

// Bool makes a boolean.
func Bool(b bool) Value {
	if b {
		return Value{kind: KindBool, num: 1}
	}
	return Value{kind: KindBool}
}

// Int8 makes an 8-bit integer.
func Int8(i int8) Value { return Value{kind: KindInt8, num: uint64(i)} }

// Int16 makes a 16-bit integer.
func Int16(i int16) Value { return Value{kind: KindInt16, num: uint64(i)} }

// Int32 makes a 32-bit integer.
func Int32(i int32) Value { return Value{kind: KindInt32, num: uint64(i)} }

// Int64 makes a 64-bit integer.
func Int64(i int64) Value { return Value{kind: KindInt64, num: uint64(i)} }

// Float32 makes a 32-bit float.
func Float32(f float32) Value { return Value{kind: KindFloat32, num: math.Float64bits(float64(f))} }

// Float64 makes a 64-bit float.
func Float64(f float64) Value { return Value{kind: KindFloat64, num: math.Float64bits(f)} }

// String makes a string.
func String(s string) Value {
	return Value{kind: KindString, num: uint64(len(s)), ptr: unsafe.Pointer(unsafe.StringData(s))}
}

// Bytes makes a byte string; nil gives empty bytes, not null.
func Bytes(b []byte) Value {
	return Value{kind: KindBytes, num: uint64(len(b)), ptr: unsafe.Pointer(unsafe.SliceData(b))}
}

// Array makes an array.
func Array(items []Value) Value {
	return Value{kind: KindArray, num: uint64(len(items)), ptr: unsafe.Pointer(unsafe.SliceData(items))}
}

// Map makes a map; the order of the entries is kept.
func Map(entries []Entry) Value {
	return Value{kind: KindMap, num: uint64(len(entries)), ptr: unsafe.Pointer(unsafe.SliceData(entries))}
}

// Struct makes a struct: one value per field of its Schema, in the schema's order.
func Struct(fields []Value) Value {
	return Value{kind: KindStruct, num: uint64(len(fields)), ptr: unsafe.Pointer(unsafe.SliceData(fields))}
}

// Kind returns the value's kind.
func (v Value) Kind() Kind { return v.kind }

// IsNull reports whether the value is null.
func (v Value) IsNull() bool { return v.kind == KindNull }

// Bool returns a boolean's value, false for other kinds.
func (v Value) Bool() bool { return v.kind == KindBool && v.num != 0 }

// Int returns an integer of any width, 0 for other kinds.
func (v Value) Int() int64 {
	if v.kind < KindInt8 || v.kind > KindInt64 {
		return 0
	}
	return int64(v.num)
}

// Float returns a float of either width, 0 for other kinds.
func (v Value) Float() float64 {
	if v.kind != KindFloat32 && v.kind != KindFloat64 {
		return 0
	}
	return math.Float64frombits(v.num)
}

// Str returns a string's value, "" for other kinds.
func (v Value) Str() string {
	if v.kind != KindString {
		return ""
	}
	return unsafe.String((*byte)(v.ptr), int(v.num))
}

// Bytes returns a byte string's value, nil for other kinds.
func (v Value) Bytes() []byte {
	if v.kind != KindBytes {
		return nil
	}
	return unsafe.Slice((*byte)(v.ptr), int(v.num))
}

// Items returns an array's items or a struct's fields, nil for other kinds.
func (v Value) Items() []Value {
	if v.kind != KindArray && v.kind != KindStruct {
		return nil
	}
	return unsafe.Slice((*Value)(v.ptr), int(v.num))
}

// Entries returns a map's entries, nil for other kinds.
func (v Value) Entries() []Entry {
	if v.kind != KindMap {
		return nil
	}
	return unsafe.Slice((*Entry)(v.ptr), int(v.num))
}

// Lookup returns the entry of a map with a string key of that name.
func (v Value) Lookup(name string) (Value, bool) {
	for _, e := range v.Entries() {
		if e.Key.Str() == name && e.Key.kind == KindString {
			return e.Value, true
		}
	}
	return Null, false
}

// Equal reports whether two values are the same, kinds included. NaN equals NaN.
func (v Value) Equal(w Value) bool {
	if v.kind != w.kind || v.num != w.num {
		return false
	}
	switch v.kind {
	case KindString:
		return v.Str() == w.Str()
	case KindBytes:
		return string(v.Bytes()) == string(w.Bytes())
	case KindArray, KindStruct:
		a, b := v.Items(), w.Items()
		for i := range a {
			if !a[i].Equal(b[i]) {
				return false
			}
		}
	case KindMap:
		a, b := v.Entries(), w.Entries()
		for i := range a {
			if !a[i].Key.Equal(b[i].Key) || !a[i].Value.Equal(b[i].Value) {
				return false
			}
		}
	default: // the number was compared
	}
	return true
}
