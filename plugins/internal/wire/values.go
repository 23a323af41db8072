package wire

import (
	"encoding/json"
	"fmt"

	"github.com/millrace-io/millrace/plugins/internal/pb"
	"github.com/millrace-io/millrace/plugins/sdk"
)

// PositionsToPB encodes positions as JSON, each by itself.
func PositionsToPB(ps []sdk.Position) ([][]byte, error) {
	out := make([][]byte, len(ps))
	for i, p := range ps {
		b, err := p.MarshalJSON()
		if err != nil {
			return nil, err
		}
		out[i] = b
	}
	return out, nil
}

// PositionsFromPB is PositionsToPB backwards.
func PositionsFromPB(bs [][]byte) ([]sdk.Position, error) {
	out := make([]sdk.Position, len(bs))
	for i, b := range bs {
		if len(b) > sdk.MaxPositionBytes {
			return nil, fmt.Errorf("source position has %d bytes, at most %d are allowed", len(b), sdk.MaxPositionBytes)
		}
		if err := json.Unmarshal(b, &out[i]); err != nil {
			return nil, fmt.Errorf("decode source position: %w", err)
		}
	}
	return out, nil
}

// AssignmentsToPB encodes partitions.
func AssignmentsToPB(ps []sdk.AssignedPartition) []*pb.Assignment {
	out := make([]*pb.Assignment, len(ps))
	for i, p := range ps {
		out[i] = &pb.Assignment{Topic: p.Topic, Partition: p.Partition, TopicId: p.TopicID, Offset: p.Offset}
	}
	return out
}

// AssignmentsFromPB is AssignmentsToPB backwards.
func AssignmentsFromPB(ms []*pb.Assignment) []sdk.AssignedPartition {
	out := make([]sdk.AssignedPartition, len(ms))
	for i, m := range ms {
		out[i] = sdk.AssignedPartition{
			TopicPartition: sdk.TopicPartition{Topic: m.GetTopic(), Partition: m.GetPartition()},
			TopicID:        m.GetTopicId(), Offset: m.GetOffset(),
		}
	}
	return out
}

// Mark encodes an offset of a partition.
func Mark(tp sdk.TopicPartition, offset int64) *pb.Mark {
	return &pb.Mark{Topic: Text(tp.Topic), Partition: tp.Partition, Offset: offset}
}

// MarkPartition returns the partition of a mark.
func MarkPartition(m *pb.Mark) sdk.TopicPartition {
	return sdk.TopicPartition{Topic: m.GetTopic(), Partition: m.GetPartition()}
}
