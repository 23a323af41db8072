package sdk_test

import (
	"errors"
	"fmt"
	"math"
	"testing"
	"time"
	"unsafe"

	"github.com/millrace-io/millrace/plugins/sdk"
)

func TestValuesReturnWhatTheyHold(t *testing.T) {
	if size := unsafe.Sizeof(sdk.Value{}); size != 24 {
		t.Errorf("a value has %d bytes", size)
	}
	for _, i := range []int64{0, 1, -1, math.MaxInt64, math.MinInt64} {
		if sdk.Int64(i).Int() != i || sdk.Int8(int8(i)).Int() != int64(int8(i)) || sdk.Int16(int16(i)).Int() != int64(int16(i)) || sdk.Int32(int32(i)).Int() != int64(int32(i)) {
			t.Errorf("integer %d", i)
		}
	}
	for _, f := range []float64{0, -1.5, math.MaxFloat64, math.Inf(-1)} {
		if sdk.Float64(f).Float() != f || sdk.Float32(float32(f)).Float() != float64(float32(f)) {
			t.Errorf("float %v", f)
		}
	}
	if sdk.String("a").Str() != "a" || sdk.String("").Str() != "" || string(sdk.Bytes([]byte("b")).Bytes()) != "b" {
		t.Error("text")
	}
	if b := sdk.Bytes(nil); b.IsNull() || len(b.Bytes()) != 0 {
		t.Error("nil bytes are empty bytes")
	}
	if !sdk.Bool(true).Bool() || sdk.Bool(false).Bool() || !sdk.Null.IsNull() || sdk.Null.Kind() != sdk.KindNull {
		t.Error("booleans and null")
	}
	items := sdk.Array([]sdk.Value{sdk.Int8(1), sdk.Null})
	if len(items.Items()) != 2 || items.Items()[0].Int() != 1 || len(sdk.Array(nil).Items()) != 0 {
		t.Error("array")
	}
	m := sdk.Map([]sdk.Entry{{Key: sdk.String("k"), Value: sdk.Int8(7)}, {Key: sdk.Int8(1), Value: sdk.Null}})
	if v, ok := m.Lookup("k"); !ok || v.Int() != 7 || len(m.Entries()) != 2 {
		t.Error("map")
	}
	if _, ok := m.Lookup("1"); ok {
		t.Error("a key that is no string is found by its text")
	}
}

func TestValuesOfAnotherKindGiveTheZero(t *testing.T) {
	all := []sdk.Value{
		sdk.Null, sdk.Bool(true), sdk.Int8(1), sdk.Int16(1), sdk.Int32(1), sdk.Int64(1), sdk.Float32(1), sdk.Float64(1), sdk.String("s"),
		sdk.Bytes([]byte("b")), sdk.Array([]sdk.Value{sdk.Null}), sdk.Map([]sdk.Entry{{}}), sdk.Struct([]sdk.Value{sdk.Null}),
	}
	names := []string{"null", "boolean", "int8", "int16", "int32", "int64", "float", "double", "string", "bytes", "array", "map", "struct"}
	for i, v := range all {
		k := v.Kind()
		if k.String() != names[i] {
			t.Errorf("kind %d is %s", i, k)
		}
		if v.Bool() != (k == sdk.KindBool) || (v.Int() != 0) != (k >= sdk.KindInt8 && k <= sdk.KindInt64) || (v.Float() != 0) != (k == sdk.KindFloat32 || k == sdk.KindFloat64) ||
			(v.Str() != "") != (k == sdk.KindString) || (v.Bytes() != nil) != (k == sdk.KindBytes) || (v.Items() != nil) != (k == sdk.KindArray || k == sdk.KindStruct) ||
			(v.Entries() != nil) != (k == sdk.KindMap) {
			t.Errorf("%s gives more than its own", k)
		}
		for j, w := range all {
			if v.Equal(w) != (i == j) {
				t.Errorf("%s equals %s: %v", k, w.Kind(), v.Equal(w))
			}
		}
	}
}

func TestEqualLooksInside(t *testing.T) {
	deep := func(n int64) sdk.Value {
		return sdk.Struct([]sdk.Value{sdk.Map([]sdk.Entry{{Key: sdk.String("a"), Value: sdk.Array([]sdk.Value{sdk.Int64(n), sdk.Float64(math.NaN())})}})})
	}
	if !deep(1).Equal(deep(1)) || deep(1).Equal(deep(2)) || sdk.Bytes([]byte("ab")).Equal(sdk.Bytes([]byte("ac"))) {
		t.Error("deep values")
	}
}

func TestSchemasAreEqualInEveryRespect(t *testing.T) {
	def := sdk.Int32(1)
	make1 := func() *sdk.Schema {
		return &sdk.Schema{Kind: sdk.KindStruct, Optional: true, Name: "n", Version: 1, Doc: "d", Params: map[string]string{"p": "1"}, Default: &def, Fields: []sdk.Field{
			{Name: "a", Schema: &sdk.Schema{Kind: sdk.KindArray, Elem: sdk.Of(sdk.KindString)}},
			{Name: "m", Schema: &sdk.Schema{Kind: sdk.KindMap, KeyElem: sdk.Of(sdk.KindString), Elem: sdk.DecimalSchema(2)}},
		}}
	}
	if !make1().Equal(make1()) || (*sdk.Schema)(nil).Equal(make1()) || !(*sdk.Schema)(nil).Equal(nil) {
		t.Error("equal schemas")
	}
	other := sdk.Int32(2)
	for i, change := range []func(*sdk.Schema){
		func(s *sdk.Schema) { s.Kind = sdk.KindMap }, func(s *sdk.Schema) { s.Optional = false }, func(s *sdk.Schema) { s.Name = "x" },
		func(s *sdk.Schema) { s.Version = 2 }, func(s *sdk.Schema) { s.Doc = "x" }, func(s *sdk.Schema) { s.Params = nil },
		func(s *sdk.Schema) { s.Default = nil }, func(s *sdk.Schema) { s.Default = &other }, func(s *sdk.Schema) { s.Fields = s.Fields[:1] },
		func(s *sdk.Schema) { s.Fields[0].Name = "x" }, func(s *sdk.Schema) { s.Fields[0].Schema.Elem = sdk.Of(sdk.KindBytes) },
		func(s *sdk.Schema) { s.Fields[1].Schema.KeyElem = sdk.Of(sdk.KindBytes) },
	} {
		s := make1()
		change(s)
		if s.Equal(make1()) || make1().Equal(s) {
			t.Errorf("change %d is not seen", i)
		}
	}
	s := make1()
	if s.FieldIndex("m") != 1 || s.FieldIndex("x") != -1 || s.AsOptional() != s {
		t.Error("fields")
	}
	if o := sdk.Of(sdk.KindInt8).AsOptional(); !o.Optional || o.Kind != sdk.KindInt8 {
		t.Error("optional")
	}
	if d := sdk.DecimalSchema(3); d.Params["scale"] != "3" || d.Name != sdk.DecimalName {
		t.Error("decimal")
	}
}

func TestErrorsKeepTheirCause(t *testing.T) {
	cause := errors.New("cause")
	err := fmt.Errorf("outside: %w", sdk.Errorf(sdk.NotFound, "a.b", "find %q: %w", "x", cause))
	if sdk.CodeOf(err) != sdk.NotFound || sdk.ReasonOf(err) != "a.b" || !errors.Is(err, cause) || err.Error() != `outside: find "x": cause` {
		t.Errorf("%v", err)
	}
	if sdk.CodeOf(cause) != sdk.Internal || sdk.ReasonOf(nil) != "" {
		t.Error("unmarked errors")
	}
	r := sdk.Retry(cause, time.Second)
	var e *sdk.Error
	if !errors.As(r, &e) || e.Code != sdk.Unavailable || e.After != time.Second || r.Error() != "cause" {
		t.Errorf("retry is %#v", r)
	}
	if (sdk.FieldErrors{}).OrNil() != nil {
		t.Error("an empty list is an error")
	}
	list := sdk.FieldErrors{sdk.FieldError("k", "r", "is %d", 1), {Msg: "all"}}
	if list.OrNil() == nil || list.Error() != "k: is 1\nall" {
		t.Errorf("list reads %q", list.Error())
	}
}

func TestReceiptAsksAndWaits(t *testing.T) {
	asked := 0
	r, settle := sdk.NewReceipt(func() { asked++ })
	go settle(errors.New("not written"))
	if err := r.Wait(t.Context()); err == nil || err.Error() != "not written" || asked != 1 {
		t.Errorf("got %v after asking %d times", err, asked)
	}
}
