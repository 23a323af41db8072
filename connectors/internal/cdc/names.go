package cdc

import (
	"strings"
	"unicode/utf16"
)

// maxTopicLength is the longest name that Kafka accepts for a topic.
const maxTopicLength = 249

// Names makes the names of topics and schemas.
type Names struct {
	Prefix    string
	Delimiter string
	// SchemaAdjust and FieldAdjust are none, avro or avro_unicode.
	SchemaAdjust string
	FieldAdjust  string
}

// Topic returns the topic of a table's events.
func (n Names) Topic(t TableID) string {
	return sanitizeTopic(n.Prefix + n.Delimiter + t.Schema + n.Delimiter + t.Name)
}

// Named returns the topic of something that is no table, such as messages.
func (n Names) Named(name string) string { return sanitizeTopic(n.Prefix + n.Delimiter + name) }

// Schema returns the stem of a topic's schema names.
func (n Names) Schema(topic string) string { return adjust(n.SchemaAdjust, topic, true) }

// Field returns the name of a column's field.
func (n Names) Field(column string) string { return adjust(n.FieldAdjust, column, false) }

// sanitizeTopic replaces each character that a topic cannot have.
func sanitizeTopic(name string) string {
	return cut(mapUnits(name, func(_ int, u uint16) string {
		if isLetter(u) || isDigit(u) || u == '.' || u == '_' || u == '-' {
			return ""
		}
		return "_"
	}))
}

func cut(name string) string {
	if len(name) > maxTopicLength {
		return name[:maxTopicLength]
	}
	return name
}

// mapUnits applies f to each UTF-16 unit, as Java sees a string; "" keeps it.
func mapUnits(s string, f func(i int, u uint16) string) string {
	var b strings.Builder
	i := 0
	for _, r := range s {
		units := utf16.AppendRune(nil, r)
		kept := true
		var replaced strings.Builder
		for _, u := range units {
			if r := f(i, u); r != "" {
				kept = false
				replaced.WriteString(r)
			}
			i++
		}
		if kept {
			b.WriteRune(r)
		} else {
			b.WriteString(replaced.String())
		}
	}
	return b.String()
}

func isLetter(u uint16) bool { return u|0x20 >= 'a' && u|0x20 <= 'z' && u < 0x80 }
func isDigit(u uint16) bool  { return u >= '0' && u <= '9' }

// adjust makes a name valid for Avro. In full names each part between dots is a
// name of its own.
func adjust(mode, name string, full bool) string {
	if mode != "avro" && mode != "avro_unicode" {
		return name
	}
	unicode := mode == "avro_unicode"
	start := true
	return mapUnits(name, func(_ int, u uint16) string {
		first := start
		start = full && u == '.'
		switch {
		case full && u == '.', isLetter(u):
			return ""
		case isDigit(u) && !first, u == '_' && !unicode:
			return ""
		case unicode:
			return "_u" + hex4(u)
		case isDigit(u):
			return "_" + string(rune(u))
		}
		return "_"
	})
}

func hex4(u uint16) string {
	const digits = "0123456789abcdef"
	return string([]byte{digits[u>>12], digits[u>>8&15], digits[u>>4&15], digits[u&15]})
}
