// Package wire is what both sides of the plugin boundary share: frames and the
// codec that carries their payload without copying it, the error mapping, and
// the translation between messages and values of the SDK.
package wire

import (
	"google.golang.org/grpc/mem"

	"github.com/millrace-io/millrace/plugins/internal/pb"
)

// Limits of the protocol, each with its reason.
const (
	// DefaultRecordMaxBytes bounds one record, encoded with its batch.
	DefaultRecordMaxBytes = 64 << 20
	// MessageOverhead is how much larger than a record a message may be: room
	// for the frame's header and for batches of other partitions.
	MessageOverhead = 1 << 20
	// CreditBytes is what one task may have on its way: 16 batches of the usual
	// size, which still fits the caches.
	CreditBytes = 4 << 20
	// WindowBytes is gRPC's stream and connection window; less costs CPU for
	// window updates, more falls out of the caches.
	WindowBytes = 4 << 20
	// BufferBytes is gRPC's read and write buffer, one large system call.
	BufferBytes = 256 << 10
	// MaxText bounds an error's or a condition's text.
	MaxText = 8 << 10
	// maxTopics bounds the names that a Frame remembers to save allocations.
	maxTopics = 10_000
	// aliasBytes is the size from which a payload is handed to gRPC as it is;
	// smaller ones are copied, which is cheaper than keeping track of them.
	aliasBytes = 4 << 10
)

// Part says which partition a run of whole batches belongs to; the fields are
// those of the message of the same name.
type Part struct {
	Topic      string
	Partition  int32
	Length     int
	Records    int
	From       int64
	Generation uint64
}

// Frame is the message of the task streams. The same value may be sent or
// received over and over.
type Frame struct {
	Seq       uint64
	Last      bool
	Parts     []Part
	Positions [][]byte
	Control   *pb.Control

	// Payload is what a sender hands over: the batches of Parts, in order. The
	// bytes belong to gRPC until Sent is called, which happens on any goroutine,
	// and not at all when the stream ends before.
	Payload [][]byte
	Sent    func()

	// In is what a receiver got. It must be freed.
	In mem.BufferSlice

	topics map[string]string
}

// Size returns how many payload bytes were received.
func (f *Frame) Size() int { return f.In.Len() }

// Take copies the received payload into dst, which is made larger when it does
// not fit, and frees what gRPC holds.
func (f *Frame) Take(dst []byte) []byte {
	n := f.In.Len()
	if cap(dst) < n {
		dst = make([]byte, n)
	}
	dst = dst[:n]
	f.In.CopyTo(dst)
	f.Free()
	return dst
}

// Free gives back what gRPC holds of a received payload.
func (f *Frame) Free() {
	f.In.Free()
	f.In = nil
}

func (f *Frame) reset() {
	f.Seq, f.Last, f.Control = 0, false, nil
	f.Parts, f.Positions = f.Parts[:0], nil
	f.In = nil
}

// topic returns name as a string that is made once per topic.
func (f *Frame) topic(name []byte) string {
	if s, ok := f.topics[string(name)]; ok {
		return s
	}
	if f.topics == nil || len(f.topics) >= maxTopics {
		f.topics = make(map[string]string)
	}
	s := string(name)
	f.topics[s] = s
	return s
}
