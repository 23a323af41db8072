package cdc

import (
	"crypto/md5"  //nolint:gosec // the user's choice of algorithm
	"crypto/sha1" //nolint:gosec // the user's choice of algorithm
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"hash"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Mask changes the text values of the columns it matches.
type Mask struct {
	Columns Patterns
	kind    maskKind
	chars   int
	stars   string
	hash    func() hash.Hash
	salt    []byte
	v2      bool
}

type maskKind uint8

const (
	maskStars maskKind = iota
	maskTruncate
	maskHash
)

// The prefixes of the keys that define masks.
const (
	maskWithPrefix     = "column.mask.with."
	maskHashPrefix     = "column.mask.hash."
	maskTruncatePrefix = "column.truncate.to."
	charsSuffix        = ".chars"
)

// maxMaskChars bounds what a mask with n stars writes into each row.
const maxMaskChars = 1 << 20

// ParseMasks reads the masks out of keys such as column.mask.with.5.chars.
func ParseMasks(config map[string]string) ([]Mask, error) {
	var keys []string
	for k := range config {
		if strings.HasPrefix(k, maskWithPrefix) || strings.HasPrefix(k, maskHashPrefix) || strings.HasPrefix(k, maskTruncatePrefix) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	var masks []Mask
	for _, k := range keys {
		m, err := parseMask(k)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", k, err)
		}
		if m.Columns, err = ParsePatterns(strings.Split(config[k], ",")); err != nil {
			return nil, fmt.Errorf("%s: %w", k, err)
		}
		masks = append(masks, m)
	}
	return masks, nil
}

func parseMask(key string) (Mask, error) {
	if rest, ok := strings.CutPrefix(key, maskHashPrefix); ok {
		return parseHashMask(rest)
	}
	kind, rest := maskStars, strings.TrimPrefix(key, maskWithPrefix)
	if r, ok := strings.CutPrefix(key, maskTruncatePrefix); ok {
		kind, rest = maskTruncate, r
	}
	number, ok := strings.CutSuffix(rest, charsSuffix)
	n, err := strconv.Atoi(number)
	if !ok || err != nil || n < 0 || n > maxMaskChars {
		return Mask{}, fmt.Errorf("the key must end in <number>.chars")
	}
	return Mask{kind: kind, chars: n, stars: strings.Repeat("*", n)}, nil
}

func parseHashMask(rest string) (Mask, error) {
	m := Mask{kind: maskHash}
	if r, ok := strings.CutPrefix(rest, "v2."); ok {
		m.v2, rest = true, r
	}
	algorithm, salt, ok := strings.Cut(rest, ".with.salt.")
	if !ok {
		return m, fmt.Errorf("the key must be column.mask.hash.<algorithm>.with.salt.<salt>")
	}
	m.salt = []byte(salt)
	switch strings.ToUpper(algorithm) {
	case "MD5":
		m.hash = md5.New
	case "SHA-1", "SHA1", "SHA":
		m.hash = sha1.New
	case "SHA-224":
		m.hash = sha256.New224
	case "SHA-256":
		m.hash = sha256.New
	case "SHA-384":
		m.hash = sha512.New384
	case "SHA-512":
		m.hash = sha512.New
	default:
		return m, fmt.Errorf("unknown hash algorithm %q; known are MD5, SHA-1, SHA-224, SHA-256, SHA-384, SHA-512", algorithm)
	}
	return m, nil
}

// MaskFor returns the first mask of a column.
func MaskFor(masks []Mask, t TableID, column string) *Mask {
	name := t.String() + "." + column
	for i := range masks {
		if masks[i].Columns.Match(name) {
			return &masks[i]
		}
	}
	return nil
}

// Param is the schema parameter that tells of the mask.
func (m *Mask) Param() (name, value string) {
	if m.kind == maskTruncate {
		return "truncateLength", strconv.Itoa(m.chars)
	}
	return "masked", "true"
}

// Apply returns the masked form of a text; null says whether it was null, which
// only stars replace.
//
// A hash is cut to the column's length, 0 for none.
func (m *Mask) Apply(s string, null bool, length int) (masked string, stillNull bool) {
	switch {
	case m.kind == maskStars:
		return m.stars, false
	case null:
		return "", true
	case m.kind == maskTruncate:
		return truncate(s, m.chars), false
	}
	h := m.hash()
	h.Write(m.salt)
	if m.v2 {
		h.Write([]byte(s))
	} else {
		h.Write(javaSerialized(s))
	}
	digest := hex.EncodeToString(h.Sum(nil))
	if length > 0 && length < len(digest) {
		digest = digest[:length]
	}
	return digest, false
}

// javaSerialized is a string in Java's object serialisation, which version 1 of
// the hash is computed over.
func javaSerialized(s string) []byte {
	out := []byte{0xac, 0xed, 0x00, 0x05, 0x74, byte(len(s) >> 8), byte(len(s))}
	return append(out, s...)
}

func truncate(s string, chars int) string {
	for i := range s {
		if chars == 0 {
			return s[:i]
		}
		chars--
	}
	if !utf8.ValidString(s) {
		return strings.ToValidUTF8(s, "\uFFFD")
	}
	return s
}
