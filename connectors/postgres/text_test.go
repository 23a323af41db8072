package main

import (
	"encoding/hex"
	"math"
	"strings"
	"testing"

	"github.com/millrace-io/millrace/plugins/sdk"
)

func unhex(s string) sdk.Value {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		panic(err)
	}
	return sdk.Bytes(b)
}

func TestEdgeValues(t *testing.T) {
	micros := convertTimestamp(1)
	for _, c := range []struct {
		name, text string
		convert    convert
		want       sdk.Value
	}{
		{"timestamp", "2016-11-04 13:51:30.123456", micros, sdk.Int64(1478267490123456)},
		{"timestamp in ms", "2016-11-04 13:51:30.123", convertTimestamp(1000), sdk.Int64(1478267490123)},
		{"timestamp before Christ", "4713-12-31 23:59:59.999999 BC", micros, sdk.Int64(-210831897600000001)},
		{"last timestamp", "294247-01-01 23:59:59.999999", micros, sdk.Int64(9223371331199999999)},
		{"infinity", "infinity", micros, sdk.Int64(9223372036825200000)},
		{"-infinity", "-infinity", micros, sdk.Int64(-9223372036832400000)},
		{"infinity in ns", "infinity", convertTimestamp(-1000), sdk.Int64(math.MaxInt64)},
		{"before 1970 in ms", "1969-12-31 23:59:59.9999", convertTimestamp(1000), sdk.Int64(-1)},
		{"timestamptz beyond 9999", "21016-11-04 06:51:30.123456+00", convertZonedTimestamp(6), sdk.String("+21016-11-04T06:51:30.123456Z")},
		{"timestamptz before Christ", "4714-12-31 23:59:59.999999+00 BC", convertZonedTimestamp(6), sdk.String("-4713-12-31T23:59:59.999999Z")},
		{"timestamptz infinity", "-infinity", convertZonedTimestamp(6), sdk.String("-infinity")},
		{"timestamptz keeps zeros", "2016-11-04 13:51:30+00", convertZonedTimestamp(6), sdk.String("2016-11-04T13:51:30.000000Z")},
		{"timestamptz(0)", "2016-11-04 13:51:30+00", convertZonedTimestamp(0), sdk.String("2016-11-04T13:51:30Z")},
		{"timestamptz in another zone", "2016-11-04 01:51:30+05:30", convertZonedTimestamp(0), sdk.String("2016-11-03T20:21:30Z")},
		{"date infinity", "infinity", convertDate, sdk.Int32(math.MaxInt32)},
		{"first date", "4714-11-24 BC", convertDate, sdk.Int32(-2440588)},
		{"date before the Gregorian calendar", "1582-10-10", convertDate, sdk.Int32(-141432)},
		{"24:00", "24:00:00", convertTime(1, false), sdk.Int64(86400000000)},
		{"timetz", "13:51:30.123789+02", convertZonedTime, sdk.String("11:51:30.123789Z")},
		{"timetz over midnight", "24:00:00-08", convertZonedTime, sdk.String("08:00:00Z")},
		{"interval", "1 year 2 mons 3 days 04:05:06.78", convertDuration, sdk.Int64(37091106780000)},
		{"interval as text", "1 year 2 mons 3 days 04:05:06.78", convertInterval, sdk.String("P1Y2M3DT4H5M6.78S")},
		{"negative interval", "-1 days +02:03:00", convertDuration, sdk.Int64(-86400000000 + 7380000000)},
		{"long interval", "178000000 years", convertDuration, sdk.Int64(math.MaxInt64)},
		{"numeric", "48.38", convertDecimal(2), unhex("12 E6")},
		{"numeric that rounds", "-0.005", convertDecimal(2), unhex("FF")},
		{"numeric of negative scale", "12300", convertDecimal(-2), unhex("7B")},
		{"long numeric", "123456789012345678901234567890.12", convertDecimal(2), unhex("009BD30A3C645943DD1690A03A14")},
		{"money", "($1,234.11)", convertMoney(convertDecimal(2)), unhex("FE 1D ED")},
		{"bits", "11", convertBits, unhex("03")},
		{"7 bits", "1000000", convertBits, unhex("40")},
		{"zero bits", "00", convertBits, unhex("")},
		{"24 bits", "000000110000001000000001", convertBits, unhex("01 02 03")},
		{"33 bits", "111011010001000110000001000000001", convertBits, unhex("01 02 23 da 01")},
		{"empty bytea", `\x`, convertBytea("bytes"), unhex("")},
		{"bytea in escape form", `a\\b\001`, convertBytea("bytes"), unhex("615c6201")},
		{"bytea as base64", `\x00ff10`, convertBytea("base64"), sdk.String("AP8Q")},
		{"text array", `{NULL,"NULL",""}`, convertArray(convertString, ','), sdk.Array([]sdk.Value{sdk.Null, sdk.String("NULL"), sdk.String("")})},
		{"text array with escapes", `{"q\"uote","b,c","{x}"}`, convertArray(convertString, ','), sdk.Array([]sdk.Value{sdk.String(`q"uote`), sdk.String("b,c"), sdk.String("{x}")})},
		{"array with bounds", "[0:1]={5,6}", convertArray(convertInt32, ','), sdk.Array([]sdk.Value{sdk.Int32(5), sdk.Int32(6)})},
		{"box array", "{(1,1),(0,0);(3,3),(2,2)}", convertArray(convertString, ';'), sdk.Array([]sdk.Value{sdk.String("(1,1),(0,0)"), sdk.String("(3,3),(2,2)")})},
		{"hstore", `"a"=>"1", "b c"=>NULL, "q\"t"=>"x\\y"`, convertHstoreJSON, sdk.String(`{"a":"1","b c":null,"q\"t":"x\\y"}`)},
		{"smallest int8", "-9223372036854775808", convertInt64, sdk.Int64(math.MinInt64)},
		{"NaN", "NaN", convertFloat64, sdk.Float64(math.NaN())},
		{"float infinity", "-Infinity", convertFloat32, sdk.Float32(float32(math.Inf(-1)))},
		{"vector", "[1,2.5,-3]", convertVector(convertFloat64), sdk.Array([]sdk.Value{sdk.Float64(1), sdk.Float64(2.5), sdk.Float64(-3)})},
	} {
		got, err := c.convert([]byte(c.text), new(arena))
		if err != nil || !got.Equal(c.want) {
			t.Errorf("%s: %s gave %v %v %q %v %x, %v", c.name, c.text, got.Kind(), got.Int(), got.Str(), got.Items(), got.Bytes(), err)
		}
	}
}

func TestValuesThatCannotBeConverted(t *testing.T) {
	for name, c := range map[string]struct {
		text    string
		convert convert
	}{
		"timestamp beyond micros": {"294276-12-31 23:59:59.999999", convertTimestamp(1)},
		"timestamp beyond nanos":  {"2300-01-01 00:00:00", convertTimestamp(-1000)},
		"NaN as decimal":          {"NaN", convertDecimal(2)},
		"nested array":            {"{{1,2},{3,4}}", convertArray(convertInt32, ',')},
		"bad date":                {"2020-1", convertDate},
		"bad int":                 {"12x", convertInt32},
		"empty int":               {"", convertInt64},
		"open quote":              {`{"a}`, convertArray(convertString, ',')},
		"bad hex":                 {`\xzz`, convertBytea("bytes")},
	} {
		if v, err := c.convert([]byte(c.text), new(arena)); err == nil {
			t.Errorf("%s: %q became %v %v", name, c.text, v.Kind(), v.Int())
		}
	}
}

// FuzzText: no text makes a conversion panic.
func FuzzText(f *testing.F) {
	for _, s := range []string{"2016-11-04 13:51:30.123456+00 BC", `{a,"b\"",NULL}`, "1 year -2 mons 04:05:06", "($1,234.11)", `\x00ff`, `"a"=>NULL`, "<(1,2),3>", "{1:2,3:4}/5", "0101"} {
		f.Add(s)
	}
	all := []convert{
		convertTimestamp(1), convertTimestamp(-1000), convertZonedTimestamp(3), convertDate, convertIsoDate, convertTime(1000, true), convertIsoTime, convertZonedTime, convertIsoTimestamp,
		convertDuration, convertInterval, convertDecimal(2), convertDecimal(-2), convertVariable, convertMoney(convertDecimal(2)), moneyText(4), convertBytea("hex"), convertBit, convertBits, convertInt16,
		convertArray(convertInt32, ','), convertHstoreJSON, convertHstoreMap, convertPoint, convertLine, convertCircle, convertShape("box"), convertShape("path"), convertEWKB, convertVector(convertFloat32), convertSparse, convertNumericText,
	}
	f.Fuzz(func(t *testing.T, s string) {
		var a arena
		for _, c := range all {
			_, _ = c([]byte(s), &a)
		}
	})
}

func TestDaysAreInverse(t *testing.T) {
	for days := int64(-2_500_000); days < 3_000_000; days += 97 {
		y, m, d := civil(days)
		if daysOf(y, m, d) != days {
			t.Fatalf("%d became %d-%d-%d", days, y, m, d)
		}
	}
}
