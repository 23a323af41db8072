package convert

import (
	"encoding/base64"
	"math"
	"math/big"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/millrace-io/millrace/plugins/sdk"
)

const upperHex = "0123456789ABCDEF"

// appendFloat prints a finite or other float as Java's Double.toString and
// Float.toString do: 1.0, 1.0E21, 4.9E-324, NaN, -Infinity.
func appendFloat(dst []byte, f float64, bits int) []byte {
	switch {
	case math.IsNaN(f):
		return append(dst, "NaN"...)
	case math.IsInf(f, 1):
		return append(dst, "Infinity"...)
	case math.IsInf(f, -1):
		return append(dst, "-Infinity"...)
	case f == 0:
		if math.Signbit(f) {
			return append(dst, "-0.0"...)
		}
		return append(dst, "0.0"...)
	}
	if abs := math.Abs(f); abs >= 1e-3 && abs < 1e7 {
		n := len(dst)
		dst = strconv.AppendFloat(dst, f, 'f', -1, bits)
		for _, c := range dst[n:] {
			if c == '.' {
				return dst
			}
		}
		return append(dst, ".0"...)
	}
	return appendScientific(dst, f, bits)
}

// appendScientific prints d.dddE±x. Java wants two digits at least: of those the
// nearest to the value, which is why the smallest double is 4.9E-324.
func appendScientific(dst []byte, f float64, bits int) []byte {
	var buf [40]byte
	s := strconv.AppendFloat(buf[:0], f, 'e', -1, bits)
	e := lastIndexE(s)
	if e <= 2 { // one digit, perhaps with a sign
		s = strconv.AppendFloat(buf[:0], f, 'e', 1, bits)
		e = lastIndexE(s)
	}
	dst = append(dst, s[:e]...)
	dst = append(dst, 'E')
	exp := s[e+1:]
	if exp[0] == '-' {
		dst = append(dst, '-')
	}
	exp = exp[1:]
	for len(exp) > 1 && exp[0] == '0' {
		exp = exp[1:]
	}
	return append(dst, exp...)
}

func lastIndexE(s []byte) int {
	for i := len(s) - 1; i >= 0; i-- {
		if s[i] == 'e' {
			return i
		}
	}
	return -1
}

// plainByte marks the bytes that stand in a JSON text as they are.
var plainByte = func() (t [256]bool) {
	for i := 0x20; i < 0x80; i++ {
		t[i] = i != '"' && i != '\\'
	}
	return t
}()

// appendQuoted prints a JSON text as Jackson does: two-letter escapes where they
// exist, \u00XX in upper case for other control characters, and surrogate pairs
// for what lies beyond the basic plane. Bytes that are no UTF-8 become U+FFFD.
func appendQuoted(dst []byte, s string) []byte {
	dst = append(dst, '"')
	start := 0
	for i := 0; i < len(s); {
		// Eight plain bytes at a time: none is below 0x20, above 0x7f, a quote or
		// a backslash.
		for i+8 <= len(s) {
			w := load64(s, i)
			const ones, highs = 0x0101010101010101, 0x8080808080808080
			quote, slash := w^(ones*'"'), w^(ones*'\\')
			if ((w-ones*0x20)|w|(quote-ones)|(slash-ones))&highs != 0 {
				break
			}
			i += 8
		}
		for i < len(s) && plainByte[s[i]] {
			i++
		}
		if i >= len(s) {
			break
		}
		c := s[i]
		if c >= utf8.RuneSelf {
			r, size := utf8.DecodeRuneInString(s[i:])
			if size > 1 && r < 0x10000 {
				i += size
				continue
			}
			dst = append(dst, s[start:i]...)
			dst = appendRune(dst, r, size)
			i += size
			start = i
			continue
		}
		dst = append(dst, s[start:i]...)
		dst = appendEscape(dst, c)
		i++
		start = i
	}
	dst = append(dst, s[start:]...)
	return append(dst, '"')
}

func load64(s string, i int) uint64 {
	s = s[i : i+8]
	return uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 |
		uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
}

func appendRune(dst []byte, r rune, size int) []byte {
	if size <= 1 {
		return append(dst, "\uFFFD"...)
	}
	r -= 0x10000
	dst = appendUnicode(dst, uint16(0xD800+r>>10))
	return appendUnicode(dst, uint16(0xDC00+r&0x3FF))
}

func appendEscape(dst []byte, c byte) []byte {
	switch c {
	case '"', '\\':
		return append(dst, '\\', c)
	case '\b':
		return append(dst, `\b`...)
	case '\t':
		return append(dst, `\t`...)
	case '\n':
		return append(dst, `\n`...)
	case '\f':
		return append(dst, `\f`...)
	case '\r':
		return append(dst, `\r`...)
	}
	return appendUnicode(dst, uint16(c))
}

func appendUnicode(dst []byte, u uint16) []byte {
	return append(dst, '\\', 'u', upperHex[u>>12], upperHex[u>>8&15], upperHex[u>>4&15], upperHex[u&15])
}

func appendBase64(dst, b []byte) []byte {
	dst = append(dst, '"')
	dst = base64.StdEncoding.AppendEncode(dst, b)
	return append(dst, '"')
}

// appendDecimal prints unscaled big-endian bytes as Java's BigDecimal.toString.
func appendDecimal(dst, unscaled []byte, scale int) []byte {
	n := bigInt(unscaled)
	digits := n.String()
	if digits[0] == '-' {
		dst = append(dst, '-')
		digits = digits[1:]
	}
	exponent := len(digits) - 1 - scale
	switch {
	case scale == 0:
		return append(dst, digits...)
	case scale > 0 && exponent >= -6:
		if exponent >= 0 {
			dst = append(dst, digits[:exponent+1]...)
			dst = append(dst, '.')
			return append(dst, digits[exponent+1:]...)
		}
		dst = append(dst, "0."...)
		for range -exponent - 1 {
			dst = append(dst, '0')
		}
		return append(dst, digits...)
	}
	dst = append(dst, digits[0])
	if len(digits) > 1 {
		dst = append(dst, '.')
		dst = append(dst, digits[1:]...)
	}
	if exponent == 0 {
		return dst
	}
	dst = append(dst, 'E')
	if exponent > 0 {
		dst = append(dst, '+')
	}
	return strconv.AppendInt(dst, int64(exponent), 10)
}

// bigInt reads two's-complement big-endian bytes; none are zero.
func bigInt(b []byte) *big.Int {
	n := new(big.Int).SetBytes(b)
	if len(b) > 0 && b[0]&0x80 != 0 {
		n.Sub(n, new(big.Int).Lsh(big.NewInt(1), uint(len(b))*8))
	}
	return n
}

// bigBytes is the inverse of bigInt, with as few bytes as Java's toByteArray.
func bigBytes(n *big.Int) []byte {
	if n.Sign() >= 0 {
		b := n.Bytes()
		if len(b) == 0 || b[0]&0x80 != 0 {
			b = append([]byte{0}, b...)
		}
		return b
	}
	bits := new(big.Int).Not(n).BitLen()
	size := bits/8 + 1
	m := new(big.Int).Lsh(big.NewInt(1), uint(size)*8)
	b := m.Add(m, n).Bytes()
	for len(b) < size {
		b = append([]byte{0xff}, b...)
	}
	return b
}

// decimalScale returns the scale of a Decimal schema.
func decimalScale(s *sdk.Schema) (int, error) {
	text, ok := s.Params["scale"]
	if !ok {
		return 0, dataError("the decimal's schema has no parameter \"scale\"")
	}
	scale, err := strconv.Atoi(text)
	if err != nil {
		return 0, dataError("the decimal's scale %q is not a number", text)
	}
	return scale, nil
}

// The patterns that Connect uses for temporal values in text.
const (
	dateLayout      = "2006-01-02"
	timeLayout      = "15:04:05.000Z"
	timestampLayout = "2006-01-02T15:04:05.000Z"
)

// appendTemporal prints a value of a logical date type in ISO form; ok is false
// for other schemas.
func appendTemporal(dst []byte, s *sdk.Schema, v sdk.Value) (_ []byte, ok bool) {
	if s == nil {
		return dst, false
	}
	switch s.Name {
	case sdk.DateName:
		return time.Unix(v.Int()*86400, 0).UTC().AppendFormat(dst, dateLayout), true
	case sdk.TimeName:
		return time.UnixMilli(v.Int()).UTC().AppendFormat(dst, timeLayout), true
	case sdk.TimestampName:
		return time.UnixMilli(v.Int()).UTC().AppendFormat(dst, timestampLayout), true
	}
	return dst, false
}
