package wire_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"github.com/millrace-io/millrace/plugins/internal/pb"
	"github.com/millrace-io/millrace/plugins/internal/wire"
)

// cut splits bytes as a transport does, in pieces of n.
func cut(b []byte, n int) mem.BufferSlice {
	var s mem.BufferSlice
	for len(b) > 0 {
		k := min(n, len(b))
		s = append(s, mem.SliceBuffer(b[:k]))
		b = b[k:]
	}
	return s
}

func example(payload ...int) (*wire.Frame, *pb.Frame) {
	control := &pb.Control{Kind: &pb.Control_Settle{Settle: &pb.Settle{LetterId: 7}}}
	encoded, _ := proto.Marshal(control)
	f := &wire.Frame{Seq: 12, Last: true, Positions: [][]byte{[]byte("p0"), []byte("p1")}, Control: control}
	m := &pb.Frame{Seq: 12, Last: true, Positions: f.Positions, Control: encoded}
	for i, n := range payload {
		data := bytes.Repeat([]byte{byte('a' + i)}, n)
		part := wire.Part{Topic: fmt.Sprint("topic", i), Partition: int32(i), Length: n, Records: i * 3, From: int64(i * 100), Generation: uint64(i)}
		f.Parts = append(f.Parts, part)
		f.Payload = append(f.Payload, data)
		m.Parts = append(m.Parts, &pb.Part{
			Topic: part.Topic, Partition: part.Partition, Length: uint64(n), Records: uint32(part.Records), From: part.From, Generation: part.Generation,
		})
		m.Batches = append(m.Batches, data...)
	}
	return f, m
}

func same(t *testing.T, got *wire.Frame, want *pb.Frame) {
	t.Helper()
	data := got.Take(nil)
	if got.Seq != want.GetSeq() || got.Last != want.GetLast() || !bytes.Equal(data, want.GetBatches()) || len(got.Parts) != len(want.GetParts()) {
		t.Fatalf("got seq %d last %v, %d bytes, %d parts", got.Seq, got.Last, len(data), len(got.Parts))
	}
	for i, p := range want.GetParts() {
		g := got.Parts[i]
		if g.Topic != p.GetTopic() || g.Partition != p.GetPartition() || g.Length != int(p.GetLength()) || g.Records != int(p.GetRecords()) ||
			g.From != p.GetFrom() || g.Generation != p.GetGeneration() {
			t.Errorf("part %d is %+v, want %v", i, g, p)
		}
	}
	if len(got.Positions) != len(want.GetPositions()) || !bytes.Equal(got.Positions[1], want.GetPositions()[1]) {
		t.Errorf("positions are %q", got.Positions)
	}
	if got.Control.GetSettle().GetLetterId() != 7 {
		t.Errorf("control is %v", got.Control)
	}
}

var payloads = [][]int{{}, {1}, {100}, {300, 4 << 10, 5}, {64 << 10}, {1 << 20, 7, 100 << 10}}

func TestFramesAndPlainProtobufUnderstandEachOther(t *testing.T) {
	codec := wire.NewCodec()
	stock := encoding.GetCodecV2("proto")
	for _, p := range payloads {
		f, m := example(p...)
		sent := 0
		f.Sent = func() { sent++ }
		ours, err := codec.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		flat := ours.Materialize()
		ours.Free()
		if sent != 1 {
			t.Errorf("%v: Sent was called %d times", p, sent)
		}
		theirs, err := stock.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		var decoded pb.Frame
		if err := stock.Unmarshal(mem.BufferSlice{mem.SliceBuffer(flat)}, &decoded); err != nil || !proto.Equal(&decoded, m) {
			t.Errorf("%v: the stock codec reads something else (%v)", p, err)
		}
		for _, b := range [][]byte{flat, theirs.Materialize()} {
			for _, piece := range []int{len(b) + 1, 16 << 10, 4096, 1} {
				if piece == 1 && len(b) > 10_000 {
					continue
				}
				var back wire.Frame
				if err := codec.Unmarshal(cut(b, piece), &back); err != nil {
					t.Fatalf("%v in pieces of %d: %v", p, piece, err)
				}
				same(t, &back, m)
			}
		}
	}
}

func TestBatchesNeedNotComeLast(t *testing.T) {
	_, m := example(70<<10, 10)
	first, err := proto.Marshal(&pb.Frame{Batches: m.GetBatches()})
	if err != nil {
		t.Fatal(err)
	}
	rest := proto.Clone(m).(*pb.Frame)
	rest.Batches = nil
	b, err := proto.Marshal(rest)
	if err != nil {
		t.Fatal(err)
	}
	// An unknown field and a second occurrence that wins.
	unknown := []byte{0xa0, 0x06, 0x01}
	early, _ := proto.Marshal(&pb.Frame{Batches: []byte("overwritten")})
	for _, whole := range [][]byte{bytes.Join([][]byte{first, b}, nil), bytes.Join([][]byte{early, b, unknown, first, unknown}, nil)} {
		var back wire.Frame
		if err := wire.NewCodec().Unmarshal(cut(whole, 16<<10), &back); err != nil {
			t.Fatal(err)
		}
		same(t, &back, m)
	}
}

func TestFramesThatDoNotAddUpAreRefused(t *testing.T) {
	for name, m := range map[string]*pb.Frame{
		"parts longer":  {Parts: []*pb.Part{{Length: 5}}, Batches: []byte("1234")},
		"parts shorter": {Parts: []*pb.Part{{Length: 3}}, Batches: []byte("1234")},
		"no parts":      {Batches: []byte("1234")},
		"overflow":      {Parts: []*pb.Part{{Length: 1 << 63}, {Length: 1 << 63}, {Length: 4}}, Batches: []byte("1234")},
		"bad control":   {Control: []byte{0xff}},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		var f wire.Frame
		if err := wire.NewCodec().Unmarshal(cut(b, 1<<20), &f); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzFrame(f *testing.F) {
	for _, p := range payloads {
		_, m := example(p...)
		if b, err := proto.Marshal(m); err == nil && len(b) < 10_000 {
			f.Add(b, uint16(16))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte, piece uint16) {
		var got wire.Frame
		err := wire.NewCodec().Unmarshal(cut(b, int(piece)+1), &got)
		var want pb.Frame
		if wantErr := proto.Unmarshal(b, &want); wantErr != nil {
			return // the fast path need not find every fault of a frame
		}
		if err == nil && (got.Seq != want.GetSeq() || got.Size() != len(want.GetBatches()) || len(got.Parts) != len(want.GetParts())) {
			t.Errorf("got %+v, want %v", got, &want)
		}
		got.Free()
	})
}

func BenchmarkCodec(b *testing.B) {
	data := make([]byte, 256<<10)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	part := []wire.Part{{Topic: "shop.public.customers", Length: len(data), Records: 800}}
	b.Run("pass-through", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		b.ReportAllocs()
		codec := wire.NewCodec()
		f := &wire.Frame{Seq: 1, Parts: part, Payload: [][]byte{data}}
		var back wire.Frame
		for b.Loop() {
			s, err := codec.Marshal(f)
			if err != nil {
				b.Fatal(err)
			}
			if err := codec.Unmarshal(s, &back); err != nil {
				b.Fatal(err)
			}
			back.Free()
			s.Free()
		}
	})
	b.Run("stock", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		b.ReportAllocs()
		codec := encoding.GetCodecV2("proto")
		m := &pb.Frame{Seq: 1, Parts: []*pb.Part{{Topic: "shop.public.customers", Length: uint64(len(data))}}, Batches: data}
		for b.Loop() {
			s, err := codec.Marshal(m)
			if err != nil {
				b.Fatal(err)
			}
			var back pb.Frame
			if err := codec.Unmarshal(s, &back); err != nil {
				b.Fatal(err)
			}
			s.Free()
		}
	})
}
