package main

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math"
	"math/big"
	"strconv"
	"unsafe"

	"github.com/millrace-io/millrace/plugins/sdk"
)

// convert turns a column's text into a value. What it returns may lie in the text
// or in the arena.
type convert func(text []byte, a *arena) (sdk.Value, error)

var (
	errSyntax  = errors.New("the text is not of the column's type")
	errRange   = errors.New("the value does not fit the target type")
	errSpecial = errors.New("NaN and infinity have no place in a decimal number")
)

// maxNumericDigits is what numeric can hold: 131072 digits before and 16383
// after the point.
const maxNumericDigits = 131072 + 16383

// str shares the bytes.
func str(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

func convertBool(b []byte, _ *arena) (sdk.Value, error) {
	if len(b) != 1 || b[0] != 't' && b[0] != 'f' {
		return sdk.Null, errSyntax
	}
	return sdk.Bool(b[0] == 't'), nil
}

// parseInt reads a decimal number of at most 19 digits.
func parseInt(b []byte) (int64, error) {
	neg := len(b) > 0 && b[0] == '-'
	if neg {
		b = b[1:]
	}
	if len(b) == 0 || len(b) > 19 {
		return 0, errSyntax
	}
	var n uint64
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, errSyntax
		}
		n = n*10 + uint64(c-'0')
	}
	switch {
	case neg && n <= 1<<63:
		return -int64(n), nil
	case n > math.MaxInt64:
		return 0, errRange
	}
	return int64(n), nil
}

func convertInt16(b []byte, _ *arena) (sdk.Value, error) {
	n, err := parseInt(b)
	return sdk.Int16(int16(n)), err
}

func convertInt32(b []byte, _ *arena) (sdk.Value, error) {
	n, err := parseInt(b)
	return sdk.Int32(int32(n)), err
}

func convertInt64(b []byte, _ *arena) (sdk.Value, error) {
	n, err := parseInt(b)
	return sdk.Int64(n), err
}

func convertFloat32(b []byte, _ *arena) (sdk.Value, error) {
	f, err := strconv.ParseFloat(str(b), 32)
	if err != nil && !errors.Is(err, strconv.ErrRange) {
		return sdk.Null, errSyntax
	}
	return sdk.Float32(float32(f)), nil
}

func convertFloat64(b []byte, _ *arena) (sdk.Value, error) {
	f, err := strconv.ParseFloat(str(b), 64)
	if err != nil && !errors.Is(err, strconv.ErrRange) {
		return sdk.Null, errSyntax
	}
	return sdk.Float64(f), nil
}

func convertString(b []byte, _ *arena) (sdk.Value, error) { return sdk.String(str(b)), nil }

// isSpecial reports NaN and the infinities of numeric.
func isSpecial(b []byte) bool {
	return len(b) >= 3 && (b[0] == 'N' || b[0] == 'I' || b[0] == '-' && b[1] == 'I')
}

func convertNumericText(b []byte, _ *arena) (sdk.Value, error) {
	if isSpecial(b) {
		switch b[0] {
		case 'N':
			return sdk.String("NAN"), nil
		case 'I':
			return sdk.String("POSITIVE_INFINITY"), nil
		}
		return sdk.String("NEGATIVE_INFINITY"), nil
	}
	return sdk.String(str(b)), nil
}

// convertDecimal makes the unscaled bytes at a fixed scale.
func convertDecimal(scale int) convert {
	return func(b []byte, a *arena) (sdk.Value, error) {
		out, err := unscaledBytes(a, b, scale)
		return sdk.Bytes(out), err
	}
}

// convertVariable makes the struct of scale and unscaled bytes, with the smallest
// scale that keeps the value and is not negative.
func convertVariable(b []byte, a *arena) (sdk.Value, error) {
	if isSpecial(b) {
		return sdk.Null, errSpecial
	}
	scale := 0
	if i := bytes.IndexByte(b, '.'); i >= 0 {
		b = bytes.TrimRight(b, "0")
		scale = len(b) - i - 1
	}
	out, err := unscaledBytes(a, b, scale)
	if err != nil {
		return sdk.Null, err
	}
	v := a.array(2)
	v[0], v[1] = sdk.Int32(int32(scale)), sdk.Bytes(out)
	return sdk.Struct(v), nil
}

// unscaledBytes reads a decimal number and returns it times 10^scale, rounded
// half up, as two's-complement bytes in the arena.
func unscaledBytes(a *arena, b []byte, scale int) ([]byte, error) {
	if isSpecial(b) {
		return nil, errSpecial
	}
	if len(b) > maxNumericDigits+2 {
		return nil, errRange
	}
	if n, ok := smallUnscaled(b, scale); ok {
		return a.keep(appendTwos(a.room(8), n)), nil
	}
	return bigUnscaled(b, scale)
}

// smallUnscaled handles what fits 18 digits and needs no rounding.
func smallUnscaled(b []byte, scale int) (int64, bool) {
	neg := len(b) > 0 && b[0] == '-'
	if neg {
		b = b[1:]
	}
	if len(b) == 0 || len(b) > 19 || scale < 0 || scale > 18 {
		return 0, false
	}
	var n int64
	digits, fraction := 0, -1
	for _, c := range b {
		if c == '.' && fraction < 0 {
			fraction = 0
			continue
		}
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
		digits++
		if fraction >= 0 {
			fraction++
		}
	}
	missing := scale - max(fraction, 0)
	if digits == 0 || missing < 0 || digits+missing > 18 {
		return 0, false
	}
	for range missing {
		n *= 10
	}
	if neg {
		n = -n
	}
	return n, true
}

func bigUnscaled(b []byte, scale int) ([]byte, error) {
	whole, fraction, _ := bytes.Cut(b, []byte{'.'})
	n, ok := new(big.Int).SetString(string(whole)+string(fraction), 10)
	if !ok {
		return nil, errSyntax
	}
	shift := scale - len(fraction)
	power := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(max(shift, -shift))), nil)
	if shift >= 0 {
		n.Mul(n, power)
	} else {
		n = divideHalfUp(n, power)
	}
	return bigTwos(n), nil
}

// divideHalfUp divides and rounds halves away from zero.
func divideHalfUp(n, by *big.Int) *big.Int {
	away := big.NewInt(int64(n.Sign()))
	rest := new(big.Int)
	n.QuoRem(n, by, rest)
	if rest.Abs(rest).Lsh(rest, 1).Cmp(by) >= 0 {
		n.Add(n, away)
	}
	return n
}

// appendTwos appends the shortest two's-complement form.
func appendTwos(dst []byte, n int64) []byte {
	var buf [8]byte
	binary.BigEndian.PutUint64(buf[:], uint64(n))
	i := 0
	for i < 7 && (buf[i] == 0 && buf[i+1] < 0x80 || buf[i] == 0xff && buf[i+1] >= 0x80) {
		i++
	}
	return append(dst, buf[i:]...)
}

func bigTwos(n *big.Int) []byte {
	if n.Sign() >= 0 {
		b := n.Bytes()
		if len(b) == 0 || b[0] >= 0x80 {
			b = append([]byte{0}, b...)
		}
		return b
	}
	size := new(big.Int).Not(n).BitLen()/8 + 1
	m := new(big.Int).Lsh(big.NewInt(1), uint(size)*8)
	b := m.Add(m, n).Bytes()
	for len(b) < size {
		b = append([]byte{0xff}, b...)
	}
	return b
}

// plainMoney strips the currency sign and grouping of money's text under
// lc_monetary=C: $1,234.11, -$1,234.11 or ($1,234.11).
func plainMoney(b []byte, a *arena) []byte {
	out := a.room(len(b) + 1)
	for _, c := range b {
		switch {
		case c == '(' || c == '-':
			out = append(out, '-')
		case c >= '0' && c <= '9' || c == '.':
			out = append(out, c)
		}
	}
	return a.keep(out)
}

func convertMoney(of convert) convert {
	return func(b []byte, a *arena) (sdk.Value, error) { return of(plainMoney(b, a), a) }
}

// moneyText prints money with a fixed number of fraction digits.
func moneyText(digits int) convert {
	return func(b []byte, _ *arena) (sdk.Value, error) {
		r, ok := new(big.Rat).SetString(string(b))
		if !ok {
			return sdk.Null, errSyntax
		}
		return sdk.String(r.FloatString(digits)), nil
	}
}

// decodeBytea reads the hex or the escape form of bytea into the arena.
func decodeBytea(b []byte, a *arena) ([]byte, error) {
	if len(b) >= 2 && b[0] == '\\' && b[1] == 'x' {
		n := (len(b) - 2) / 2
		out := a.room(n)[:n]
		if _, err := hex.Decode(out, b[2:]); err != nil {
			return nil, errSyntax
		}
		return a.keep(out), nil
	}
	out := a.room(len(b))
	for i := 0; i < len(b); i++ {
		switch {
		case b[i] != '\\':
			out = append(out, b[i])
		case i+1 < len(b) && b[i+1] == '\\':
			out = append(out, '\\')
			i++
		case i+3 < len(b):
			n, err := strconv.ParseUint(str(b[i+1:i+4]), 8, 8)
			if err != nil {
				return nil, errSyntax
			}
			out = append(out, byte(n))
			i += 3
		default:
			return nil, errSyntax
		}
	}
	return a.keep(out), nil
}

func convertBytea(mode string) convert {
	return func(b []byte, a *arena) (sdk.Value, error) {
		raw, err := decodeBytea(b, a)
		if err != nil {
			return sdk.Null, err
		}
		return binaryValue(mode, raw, a), nil
	}
}

// binaryValue gives bytes the form that binary.handling.mode asks for.
func binaryValue(mode string, raw []byte, a *arena) sdk.Value {
	switch mode {
	case "base64":
		return sdk.String(str(a.keep(base64.StdEncoding.AppendEncode(a.room(len(raw)*4/3+4), raw))))
	case "base64-url-safe":
		return sdk.String(str(a.keep(base64.URLEncoding.AppendEncode(a.room(len(raw)*4/3+4), raw))))
	case "hex":
		return sdk.String(str(a.keep(hex.AppendEncode(a.room(2*len(raw)), raw))))
	}
	return sdk.Bytes(raw)
}

func convertBit(b []byte, _ *arena) (sdk.Value, error) {
	if len(b) == 0 {
		return sdk.Bool(false), nil
	}
	return sdk.Bool(b[len(b)-1] == '1'), nil
}

// convertBits makes the bytes of a bit string: the number it is, least
// significant byte first, without the zero bytes at the end.
func convertBits(b []byte, a *arena) (sdk.Value, error) {
	out := a.room((len(b) + 7) / 8)
	for end := len(b); end > 0; end -= 8 {
		var c byte
		for _, bit := range b[max(0, end-8):end] {
			if bit != '0' && bit != '1' {
				return sdk.Null, errSyntax
			}
			c = c<<1 | bit&1
		}
		out = append(out, c)
	}
	for len(out) > 0 && out[len(out)-1] == 0 {
		out = out[:len(out)-1]
	}
	return sdk.Bytes(a.keep(out)), nil
}
