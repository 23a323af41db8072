package disk

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"time"

	"github.com/millrace-io/millrace/logstore"
	"github.com/millrace-io/millrace/logstore/recordbatch"
)

// The engine's own state is records of three compacted topics with one partition
// each, folded in memory. Their ids are fixed; nothing else makes them.
const (
	tableTopics  = 0 // "__topics": what topics there are
	tableWriters = 1 // "__writers": the epoch of each writer identity
	tableOffsets = 2 // "__consumer_offsets": the offsets of consumer groups
	tableCount   = 3

	// tableSegmentBytes keeps the part of a table that cannot be compacted small.
	tableSegmentBytes = 16 << 20
	// tableVersion is the version of the records' values, and of offset keys.
	tableVersion = 1
)

func tableName(table int) string {
	return [tableCount]string{"__topics", "__writers", "__consumer_offsets"}[table]
}

func tableID(table int) logstore.TopicID {
	return logstore.TopicID{15: byte(table + 1)}
}

// newTables makes the three topics.
func newTables() [tableCount]*topic {
	var tables [tableCount]*topic
	for i := range tables {
		config := logstore.TopicConfig{Partitions: 1, Cleanup: logstore.CleanupCompact, SegmentBytes: tableSegmentBytes, Internal: true}
		tables[i] = newTopic(tableName(i), tableID(i), config)
		tables[i].own = true
	}
	return tables
}

func newTopic(name string, id logstore.TopicID, config logstore.TopicConfig) *topic {
	t := &topic{name: name, id: id, config: config, parts: make([]*partition, config.Partitions)}
	for i := range t.parts {
		t.parts[i] = &partition{topic: t, id: int32(i)}
	}
	return t
}

// tableRecord is one change of a table. A nil value removes the key.
type tableRecord struct {
	table      int
	key, value []byte
}

// tablesWeight bounds the bytes that the table records of r add to its frame.
func tablesWeight(r *request) int {
	n := tableCount * recordbatch.HeaderSize
	for i := range r.unit.Offsets {
		n += offsetRecordSize(&r.unit.Offsets[i])
	}
	for i := range r.table {
		n += len(r.table[i].key) + len(r.table[i].value) + recordOverhead
	}
	return n
}

// recordOverhead is the most a record adds to its key and value.
const recordOverhead = 40

// placeTables places the table records of a unit, as the last of its entries. On
// an error none is placed.
func (c *committer) placeTables(r *request) error {
	if len(r.table)+len(r.unit.Offsets) == 0 {
		return nil
	}
	placed := len(r.entries)
	now := c.log.clock.Now().UnixMilli()
	for table := range tableCount {
		c.builder.Reset()
		if err := c.buildTable(table, r, now); err != nil {
			return err
		}
		if c.builder.Count() == 0 {
			continue
		}
		from := len(c.arena)
		c.arena = append(c.arena, c.builder.Bytes()...)
		e, err := c.placeRun(c.log.tables[table].parts[0], c.arena[from:len(c.arena):len(c.arena)], true)
		if err != nil {
			c.unplace(r.entries[placed:])
			r.entries = r.entries[:placed]
			return err
		}
		r.entries = append(r.entries, e)
	}
	return nil
}

func (c *committer) buildTable(table int, r *request, now int64) error {
	for i := range r.table {
		if r.table[i].table != table {
			continue
		}
		if err := c.builder.Append(&recordbatch.Record{Timestamp: now, Key: r.table[i].key, Value: r.table[i].value}); err != nil {
			return err
		}
	}
	if table != tableOffsets {
		return nil
	}
	for i := range r.unit.Offsets {
		o := &r.unit.Offsets[i]
		rec := offsetRecord(o.Group, o.TopicPartition, o.Offset)
		if err := c.builder.Append(&recordbatch.Record{Timestamp: now, Key: rec.key, Value: rec.value}); err != nil {
			return err
		}
	}
	return nil
}

// epochRecord says that the newest writer of an identity has this epoch.
func epochRecord(name string, epoch int64) tableRecord {
	return tableRecord{table: tableWriters, key: []byte(name), value: versioned(epoch)}
}

// offsetRecordSize bounds the bytes of an offset's record.
func offsetRecordSize(o *logstore.GroupOffset) int {
	return len(o.Group) + len(o.Topic) + 2*recordOverhead
}

// offsetRecord moves an offset of a group, or forgets it when it is negative.
// Its key is a version byte, the group's and the topic's name, each after its
// length as a uvarint, and the partition in 4 bytes; its value a version byte and
// the offset in 8.
func offsetRecord(group string, tp logstore.TopicPartition, offset int64) tableRecord {
	key := make([]byte, 0, len(group)+len(tp.Topic)+12)
	key = append(key, tableVersion)
	key = binary.AppendUvarint(key, uint64(len(group)))
	key = append(key, group...)
	key = binary.AppendUvarint(key, uint64(len(tp.Topic)))
	key = append(key, tp.Topic...)
	key = binary.BigEndian.AppendUint32(key, uint32(tp.Partition))
	rec := tableRecord{table: tableOffsets, key: key}
	if offset >= 0 {
		rec.value = versioned(offset)
	}
	return rec
}

// versioned is the value of epochs and offsets: a version byte and 8 bytes.
func versioned(v int64) []byte {
	return binary.BigEndian.AppendUint64([]byte{tableVersion}, uint64(v))
}

func parseVersioned(value []byte) (int64, error) {
	if len(value) != 9 || value[0] != tableVersion {
		return 0, fmt.Errorf("value %x is not of version %d: %w", value, tableVersion, logstore.ErrCorrupt)
	}
	return int64(binary.BigEndian.Uint64(value[1:])), nil
}

func parseOffsetKey(key []byte) (group string, tp logstore.TopicPartition, err error) {
	bad := fmt.Errorf("offset key %q is not of version %d: %w", key, tableVersion, logstore.ErrCorrupt)
	if len(key) == 0 || key[0] != tableVersion {
		return "", tp, bad
	}
	rest := key[1:]
	var names [2]string
	for i := range names {
		n, used := binary.Uvarint(rest)
		if used <= 0 || n > uint64(len(rest)-used) {
			return "", tp, bad
		}
		names[i] = string(rest[used : used+int(n)])
		rest = rest[used+int(n):]
	}
	if len(rest) != 4 {
		return "", tp, bad
	}
	tp = logstore.TopicPartition{Topic: names[1], Partition: int32(binary.BigEndian.Uint32(rest))}
	return names[0], tp, nil
}

// topicValue is the value of a topic's record, as JSON. The key is its id.
type topicValue struct {
	Version        int           `json:"v"`
	Name           string        `json:"name"`
	Partitions     int32         `json:"partitions"`
	Cleanup        string        `json:"cleanup"`
	RetentionTime  time.Duration `json:"retention_ns,omitempty"`
	RetentionBytes int64         `json:"retention_bytes,omitempty"`
	SegmentBytes   int64         `json:"segment_bytes,omitempty"`
	Internal       bool          `json:"internal,omitempty"`
	Deleted        bool          `json:"deleted,omitempty"` // its folder is to be removed
}

func topicRecord(t *topic, deleted bool) (tableRecord, error) {
	value, err := json.Marshal(topicValue{
		Version: tableVersion, Name: t.name, Partitions: t.config.Partitions, Cleanup: string(t.config.Cleanup),
		RetentionTime: t.config.RetentionTime, RetentionBytes: t.config.RetentionBytes,
		SegmentBytes: t.config.SegmentBytes, Internal: t.config.Internal, Deleted: deleted,
	})
	return tableRecord{table: tableTopics, key: t.id[:], value: value}, err
}

// parseTopic decodes a topic's record.
func parseTopic(key, value []byte) (t *topic, deleted bool, err error) {
	var v topicValue
	if err := json.Unmarshal(value, &v); err != nil {
		return nil, false, fmt.Errorf("topic record %q: %w: %w", value, logstore.ErrCorrupt, err)
	}
	switch {
	case v.Version > tableVersion:
		return nil, false, fmt.Errorf("topic record has version %d and this millrace knows versions up to %d: use the newer millrace that wrote it",
			v.Version, tableVersion)
	case len(key) != len(logstore.TopicID{}) || v.Partitions < 1 || v.Partitions > logstore.MaxPartitions || logstore.ValidTopicName(v.Name) != nil:
		return nil, false, fmt.Errorf("topic record %x %q: %w", key, value, logstore.ErrCorrupt)
	}
	config := logstore.TopicConfig{
		Partitions: v.Partitions, Cleanup: logstore.Cleanup(v.Cleanup), RetentionTime: v.RetentionTime,
		RetentionBytes: v.RetentionBytes, SegmentBytes: v.SegmentBytes, Internal: v.Internal,
	}
	return newTopic(v.Name, logstore.TopicID(key), config), v.Deleted, nil
}

// folded is the state of the tables while they are read.
type folded struct {
	topics  map[logstore.TopicID]*topic
	deleted map[logstore.TopicID]*topic
	epochs  map[string]int64
	groups  map[string]map[logstore.TopicPartition]int64
}

func newFolded() *folded {
	return &folded{
		topics:  make(map[logstore.TopicID]*topic),
		deleted: make(map[logstore.TopicID]*topic),
		epochs:  make(map[string]int64),
		groups:  make(map[string]map[logstore.TopicPartition]int64),
	}
}

// batches folds a run of batches of a table.
func (f *folded) batches(table int, data []byte) error {
	it := recordbatch.Iter(nil)
	for len(data) > 0 {
		batch, rest, err := recordbatch.Split(data)
		if err != nil {
			return err
		}
		it.Reset(batch)
		var r recordbatch.Record
		for it.Next(&r) {
			if err := f.record(table, &r); err != nil {
				return fmt.Errorf("record %d of %q: %w", r.Offset, tableName(table), err)
			}
		}
		if it.Err() != nil {
			return it.Err()
		}
		data = rest
	}
	return nil
}

func (f *folded) record(table int, r *recordbatch.Record) error {
	switch table {
	case tableTopics:
		if len(r.Key) != len(logstore.TopicID{}) {
			return fmt.Errorf("key %x: %w", r.Key, logstore.ErrCorrupt)
		}
		id := logstore.TopicID(r.Key)
		delete(f.topics, id)
		delete(f.deleted, id)
		if r.Value == nil {
			return nil
		}
		t, deleted, err := parseTopic(r.Key, r.Value)
		if err != nil {
			return err
		}
		if deleted {
			f.deleted[id] = t
		} else {
			f.topics[id] = t
		}
	case tableWriters:
		epoch, err := parseVersioned(r.Value)
		if err != nil {
			return err
		}
		f.epochs[string(r.Key)] = epoch
	case tableOffsets:
		group, tp, err := parseOffsetKey(r.Key)
		if err != nil {
			return err
		}
		offset := int64(-1)
		if r.Value != nil {
			if offset, err = parseVersioned(r.Value); err != nil {
				return err
			}
		}
		moveOffset(f.groups, group, tp, offset)
	}
	return nil
}
