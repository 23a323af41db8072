package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

const (
	// slabBytes is how much is read at once; the queue holds up to slabCount of
	// them, which bounds the memory between socket and worker.
	slabBytes = 256 << 10
	slabCount = 8
	// maxMessage is the largest protocol message: the server's rows end at 1 GiB.
	maxMessage = 1<<30 + 1<<20
	headBytes  = 5
	// statusTick is how often the sender looks for something to confirm.
	statusTick = 500 * time.Millisecond
	// silence is how many status intervals without a byte mean a dead connection;
	// each status asks for an answer.
	silence = 3
	// gather is how long reading pauses while messages come in quick succession, so
	// that one wake-up handles many; the first one after a pause is never held up.
	// smallRead is what a read must stay below to be worth the pause.
	gather    = 2 * time.Millisecond
	smallRead = 64 << 10
	// leastSilence keeps short status intervals from cutting a busy server off.
	leastSilence = 30 * time.Second
)

// slab holds whole protocol messages.
type slab struct {
	buf []byte
	n   int // bytes of whole messages
}

// receiver owns a connection in copy mode. One goroutine reads whole messages
// into slabs, another writes confirmations, which must go on while the reader
// waits for its consumer.
type receiver struct {
	conn     net.Conn
	slabs    chan *slab
	free     chan *slab
	stopping chan struct{}
	reply    chan struct{} // the server asked for a status
	ack      *atomic.Uint64
	every    time.Duration
	wg       sync.WaitGroup
	stop     sync.Once

	mu  sync.Mutex
	err error // why reading ended; guarded by mu
}

func newReceiver(conn net.Conn, ack *atomic.Uint64, every time.Duration, queue int) *receiver {
	r := &receiver{
		conn: conn, slabs: make(chan *slab, queue), free: make(chan *slab, queue+2),
		stopping: make(chan struct{}), reply: make(chan struct{}, 1), ack: ack, every: every,
	}
	r.wg.Add(2)
	go r.read()
	go r.confirm()
	return r
}

// close ends both goroutines. It says goodbye when the server still listens, so
// that the slot is free at once.
func (r *receiver) close() {
	r.stop.Do(func() {
		close(r.stopping)
		_ = r.conn.SetWriteDeadline(time.Now().Add(closeTimeout))
		_ = r.conn.SetReadDeadline(time.Now())
	})
	r.wg.Wait()
	_, _ = r.conn.Write(append(statusMessage(r.ack.Load(), false), 'c', 0, 0, 0, 4, 'X', 0, 0, 0, 4))
	_ = r.conn.Close()
}

// failure returns why the slabs ended.
func (r *receiver) failure() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

func (r *receiver) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		r.err = err
	}
}

// release gives a slab back.
func (r *receiver) release(s *slab) {
	if len(s.buf) > slabBytes {
		return // a giant message's; the garbage collector has it
	}
	select {
	case r.free <- s:
	default:
	}
}

func (r *receiver) take(size int) *slab {
	if size <= slabBytes {
		select {
		case s := <-r.free:
			return s
		default:
		}
	}
	return &slab{buf: make([]byte, max(size, slabBytes))}
}

// read fills slabs until the connection or the receiver ends.
func (r *receiver) read() {
	defer r.wg.Done()
	defer close(r.slabs)
	s, filled := r.take(0), 0
	var deadline, last time.Time
	pausing := time.NewTimer(0)
	defer pausing.Stop()
	small := false
	for {
		now := time.Now()
		if small && now.Sub(last) < 2*gather {
			lowWater(r.conn, smallRead)
			pausing.Reset(gather)
			select {
			case <-pausing.C:
			case <-r.stopping:
				return
			}
			lowWater(r.conn, 1)
		}
		last = now
		if now.After(deadline) {
			deadline = now.Add(time.Second)
			select {
			case <-r.stopping:
				return
			default:
			}
			_ = r.conn.SetReadDeadline(now.Add(max(silence*r.every, leastSilence)))
		}
		n, err := r.conn.Read(s.buf[filled:])
		filled += n
		small = n < smallRead
		whole, need, scanErr := r.scan(s.buf[:filled])
		if scanErr != nil {
			r.fail(scanErr)
			return
		}
		if whole > 0 || filled+headBytes > len(s.buf) || need > len(s.buf) {
			next := r.take(need)
			copy(next.buf, s.buf[whole:filled])
			rest := filled - whole
			s.n = whole
			if whole > 0 && !r.hand(s) {
				return
			}
			s, filled = next, rest
		}
		if err != nil {
			r.fail(err)
			return
		}
	}
}

// lowWater sets how many bytes must have come before the system wakes us. It only
// saves work, so that it is no matter when it cannot be set.
func lowWater(c net.Conn, bytes int) {
	if t, ok := c.(interface{ NetConn() net.Conn }); ok { // of TLS
		c = t.NetConn()
	}
	sc, ok := c.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVLOWAT, bytes)
	})
}

// hand passes a slab on, waiting for room.
func (r *receiver) hand(s *slab) bool {
	select {
	case r.slabs <- s:
		return true
	case <-r.stopping:
		return false
	}
}

// scan finds the end of the last whole message and how long the one behind it is.
// It notices requests for a status.
func (r *receiver) scan(b []byte) (whole, need int, err error) {
	for len(b)-whole >= headBytes {
		size := int(binary.BigEndian.Uint32(b[whole+1:])) + 1
		if size < headBytes || size > maxMessage {
			return whole, 0, fmt.Errorf("the server sent a message of %d bytes", size)
		}
		if len(b)-whole < size {
			return whole, size, nil
		}
		if m := b[whole : whole+size]; m[0] == 'd' && size >= headBytes+18 && m[headBytes] == 'k' && m[headBytes+17] == 1 {
			select {
			case r.reply <- struct{}{}:
			default:
			}
		}
		whole += size
	}
	return whole, 0, nil
}

// confirm writes a status when one is due, asked for, or has something new.
func (r *receiver) confirm() {
	defer r.wg.Done()
	tick := time.NewTicker(min(statusTick, r.every))
	defer tick.Stop()
	var sent uint64
	last := time.Now()
	for {
		due := false
		select {
		case <-r.stopping:
			return
		case <-r.reply:
			due = true
		case now := <-tick.C:
			due = now.Sub(last) >= r.every || r.ack.Load() != sent && now.Sub(last) >= statusTick
		}
		if !due {
			continue
		}
		sent = r.ack.Load()
		last = time.Now()
		_ = r.conn.SetWriteDeadline(last.Add(max(silence*r.every, leastSilence)))
		if _, err := r.conn.Write(statusMessage(sent, true)); err != nil {
			r.fail(err)
			_ = r.conn.SetReadDeadline(time.Now())
			return
		}
	}
}

// statusMessage says that everything below ack is stored for good: written,
// flushed and applied are always the same here.
func statusMessage(ack uint64, answer bool) []byte {
	b := make([]byte, 0, 39)
	b = append(b, 'd', 0, 0, 0, 38, 'r')
	for range 3 {
		b = binary.BigEndian.AppendUint64(b, ack)
	}
	b = binary.BigEndian.AppendUint64(b, uint64(time.Now().UnixMicro()-epoch2000))
	if answer {
		return append(b, 1)
	}
	return append(b, 0)
}

// errStreamEnded says that the server ended the stream without an error.
var errStreamEnded = errors.New("the server ended the stream")

// errorResponse reads the server's error message.
func errorResponse(b []byte) error {
	e := &pgconn.PgError{}
	r := reader{b: b}
	for len(r.b) > 0 && r.b[0] != 0 {
		kind, text := r.byte(), string(r.text())
		switch kind {
		case 'S':
			e.Severity = text
		case 'C':
			e.Code = text
		case 'M':
			e.Message = text
		}
	}
	return e
}

// startStream asks for the stream and takes the connection over.
func startStream(ctx context.Context, db *conn, exact *exactReader, command string) (net.Conn, error) {
	exact.exact = true
	f := db.Frontend()
	f.SendQuery(&pgproto3.Query{String: command})
	if err := f.Flush(); err != nil {
		return nil, err
	}
	for {
		m, err := db.ReceiveMessage(ctx)
		if err != nil {
			return nil, err
		}
		switch m := m.(type) {
		case *pgproto3.CopyBothResponse:
			exact.exact = false
			h, err := db.Hijack()
			if err != nil {
				return nil, err
			}
			return h.Conn, nil
		case *pgproto3.ErrorResponse:
			return nil, pgconn.ErrorResponseToPgError(m)
		}
	}
}
