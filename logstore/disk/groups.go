package disk

import (
	"maps"
	"slices"

	"github.com/millrace-io/millrace/logstore"
)

// GroupOffsets returns the durable offsets of a group.
func (l *Log) GroupOffsets(group string) map[logstore.TopicPartition]int64 {
	l.groupsMu.Lock()
	defer l.groupsMu.Unlock()
	offsets := maps.Clone(l.groups[group])
	if offsets == nil {
		offsets = make(map[logstore.TopicPartition]int64)
	}
	return offsets
}

// GroupNames returns the groups that hold offsets, sorted.
func (l *Log) GroupNames() []string {
	l.groupsMu.Lock()
	defer l.groupsMu.Unlock()
	return slices.Sorted(maps.Keys(l.groups))
}

// moveOffsets makes durable offsets visible.
func (l *Log) moveOffsets(offsets []logstore.GroupOffset) {
	if len(offsets) == 0 {
		return
	}
	l.groupsMu.Lock()
	defer l.groupsMu.Unlock()
	for i := range offsets {
		o := &offsets[i]
		moveOffset(l.groups, o.Group, o.TopicPartition, o.Offset)
	}
}

// moveOffset moves one offset, or forgets it when it is negative.
func moveOffset(groups map[string]map[logstore.TopicPartition]int64, group string, tp logstore.TopicPartition, offset int64) {
	of := groups[group]
	if offset < 0 {
		delete(of, tp)
		if len(of) == 0 {
			delete(groups, group)
		}
		return
	}
	if of == nil {
		of = make(map[logstore.TopicPartition]int64)
		groups[group] = of
	}
	of[tp] = offset
}

// offsetsOn returns the records that forget every group's offsets on a topic,
// and forgets them when apply says so.
func (l *Log) offsetsOn(topic string, apply bool) []tableRecord {
	l.groupsMu.Lock()
	defer l.groupsMu.Unlock()
	var records []tableRecord
	for group, of := range l.groups {
		for tp := range of {
			if tp.Topic != topic {
				continue
			}
			records = append(records, offsetRecord(group, tp, -1))
			if apply {
				delete(of, tp)
			}
		}
		if len(of) == 0 {
			delete(l.groups, group)
		}
	}
	return records
}
