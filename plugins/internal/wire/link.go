package wire

import (
	"sync"

	"github.com/millrace-io/millrace/plugins/internal/pb"
)

// Stream is one end of a gRPC stream of frames.
type Stream interface {
	SendMsg(m any) error
	RecvMsg(m any) error
}

// Link lets several goroutines send on one stream. One goroutine receives.
type Link struct {
	stream  Stream
	sending sync.Mutex
}

// NewLink makes a Link.
func NewLink(s Stream) *Link { return &Link{stream: s} }

// Send sends one frame.
func (l *Link) Send(f *Frame) error {
	l.sending.Lock()
	defer l.sending.Unlock()
	return l.stream.SendMsg(f)
}

// Control sends one control message.
func (l *Link) Control(c *pb.Control) error { return l.Send(&Frame{Control: c}) }

// Recv receives the next frame into f.
func (l *Link) Recv(f *Frame) error { return l.stream.RecvMsg(f) }

// Outbox sends control messages in the order that collect returns them, without
// making anybody wait: what happens while a message is being sent is collected
// together by the next round. It has no goroutine while there is nothing to say.
type Outbox struct {
	link    *Link
	collect func() []*pb.Control

	mu      sync.Mutex // guards the fields below
	running bool
	again   bool
	idle    chan struct{} // closed when the running goroutine has nothing left
}

// NewOutbox makes an Outbox. collect is called by one goroutine at a time; it
// returns what is to be sent and forgets it.
func NewOutbox(l *Link, collect func() []*pb.Control) *Outbox {
	return &Outbox{link: l, collect: collect}
}

// Kick says that there is something to collect.
func (o *Outbox) Kick() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.running {
		o.again = true
		return
	}
	o.running = true
	o.idle = make(chan struct{})
	go o.run(o.idle)
}

// Wait returns when everything that was kicked before has been sent.
func (o *Outbox) Wait() {
	o.mu.Lock()
	idle := o.idle
	o.mu.Unlock()
	if idle != nil {
		<-idle
	}
}

func (o *Outbox) run(idle chan struct{}) {
	defer close(idle)
	for {
		for _, c := range o.collect() {
			// A stream that has ended says so where it is received.
			_ = o.link.Control(c)
		}
		o.mu.Lock()
		if !o.again {
			o.running = false
			o.mu.Unlock()
			return
		}
		o.again = false
		o.mu.Unlock()
	}
}
