package logstore

import (
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// TopicID identifies one incarnation of a topic: a topic that is deleted and
// created again under its name has another one.
type TopicID [16]byte

// String returns the ID as Kafka prints topic ids: URL-safe base64, 22 characters.
func (id TopicID) String() string { return base64.RawURLEncoding.EncodeToString(id[:]) }

// Cleanup says how a topic gets rid of old records.
type Cleanup string

// The cleanup policies, by their Kafka names.
const (
	CleanupDelete  Cleanup = "delete"  // drop whole segments by age and size
	CleanupCompact Cleanup = "compact" // keep the last record of each key
)

// TopicConfig are the settings a topic is created with. The zero value means:
// one partition, cleanup "delete", kept without limit.
type TopicConfig struct {
	Partitions     int32         // at least 1, at most MaxPartitions; 0 means 1
	Cleanup        Cleanup       // "" means CleanupDelete
	RetentionTime  time.Duration // 0 means no limit
	RetentionBytes int64         // per partition; 0 means no limit
	SegmentBytes   int64         // roll a segment at this size; 0 means the engine's default
	Internal       bool          // written by the worker only; hidden from topic patterns
}

// Topic is one topic of a Catalog.
type Topic struct {
	Name   string
	ID     TopicID
	Config TopicConfig
}

// MaxPartitions bounds the partitions of one topic: each costs memory and files.
const MaxPartitions = 10_000

// maxTopicName is Kafka's limit; it leaves room for suffixes in a file name.
const maxTopicName = 249

// ValidTopicName reports why a name cannot be a topic's, by Kafka's rule: 1 to
// 249 characters out of letters, digits, '.', '_' and '-', and not "." or "..".
// The error wraps ErrInvalid.
func ValidTopicName(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("topic name is empty: %w", ErrInvalid)
	case name == "." || name == "..":
		return fmt.Errorf("topic name %q is reserved: %w", name, ErrInvalid)
	case len(name) > maxTopicName:
		return fmt.Errorf("topic name has %d characters, at most %d are allowed: %w", len(name), maxTopicName, ErrInvalid)
	}
	for i := range len(name) {
		c := name[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("._-", c) >= 0 {
			continue
		}
		return fmt.Errorf("topic name %q holds a character other than letters, digits, '.', '_' and '-': %w", name, ErrInvalid)
	}
	return nil
}

// Catalog is an immutable snapshot of the topics.
type Catalog struct {
	topics  map[string]Topic
	changed <-chan struct{}
}

// NewCatalog makes a snapshot; an engine closes changed when it is outdated.
func NewCatalog(topics map[string]Topic, changed <-chan struct{}) *Catalog {
	return &Catalog{topics: topics, changed: changed}
}

// Lookup returns the topic of that name.
func (c *Catalog) Lookup(name string) (Topic, bool) {
	t, ok := c.topics[name]
	return t, ok
}

// All returns the topics sorted by name.
func (c *Catalog) All() []Topic {
	names := slices.Sorted(maps.Keys(c.topics))
	all := make([]Topic, len(names))
	for i, n := range names {
		all[i] = c.topics[n]
	}
	return all
}

// Changed is closed when a topic was created, altered or deleted after this
// snapshot was taken.
func (c *Catalog) Changed() <-chan struct{} { return c.changed }
