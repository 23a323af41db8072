package host

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/millrace-io/millrace/plugins/internal/wire"
	"github.com/millrace-io/millrace/plugins/sdk"
)

const (
	// callTimeout bounds one question to a class: whoever waits for it is a
	// person.
	callTimeout = 10 * time.Second
	// idleTimeout is how long a process waits for the next question.
	idleTimeout = 30 * time.Second
	// poolEndTimeout is how long a process of the pool has to leave.
	poolEndTimeout = 2 * time.Second
)

// Pool keeps processes that answer questions about classes: Validate, PlanTasks
// and AlterOffsets. A process answers one question at a time; one that does not
// answer in time is killed, and nobody else notices.
type Pool struct {
	o    Options
	idle time.Duration

	mu     sync.Mutex // guards the fields below
	closed bool
	free   map[string][]*pooled // by binary
	ending sync.WaitGroup
}

// pooled is a process that waits.
type pooled struct {
	p     *Process
	timer *time.Timer
}

// NewPool makes a Pool.
func NewPool(o Options) *Pool {
	return &Pool{o: o, idle: idleTimeout, free: make(map[string][]*pooled)}
}

// Do calls f with a process that has the class, started when none is free. f has
// 10 seconds; then, or when ctx ends, the process is killed and f's call fails.
func (l *Pool) Do(ctx context.Context, c Class, f func(*Process) error) error {
	p, err := l.take(ctx, c)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	late := context.AfterFunc(ctx, p.runner.kill)
	err = f(p)
	if !late() {
		l.end(p)
		return sdk.Errorf(sdk.Unavailable, "plugin.timeout", "class %q did not answer within %s", c.Name, callTimeout)
	}
	l.give(c, p)
	return err
}

func key(c Class) string { return c.Path + "\x00" + c.Checksum }

// take returns a free process or starts one.
func (l *Pool) take(ctx context.Context, c Class) (*Process, error) {
	for {
		l.mu.Lock()
		if l.closed {
			l.mu.Unlock()
			return nil, fmt.Errorf("plugin pool is closed: %w", context.Canceled)
		}
		list := l.free[key(c)]
		if len(list) == 0 {
			l.mu.Unlock()
			return Start(ctx, c, "", l.o)
		}
		q := list[len(list)-1]
		l.free[key(c)] = list[:len(list)-1]
		l.mu.Unlock()
		q.timer.Stop()
		if q.p.Err() == nil {
			return q.p, nil
		}
		l.end(q.p)
	}
}

// give makes a process free for a while.
func (l *Pool) give(c Class, p *Process) {
	l.mu.Lock()
	if !l.closed && p.Err() == nil {
		q := &pooled{p: p}
		q.timer = time.AfterFunc(l.idle, func() { l.expire(c, q) })
		l.free[key(c)] = append(l.free[key(c)], q)
		l.mu.Unlock()
		return
	}
	l.mu.Unlock()
	l.end(p)
}

// expire ends a process that nobody has asked for a while.
func (l *Pool) expire(c Class, q *pooled) {
	l.mu.Lock()
	list := l.free[key(c)]
	for i, other := range list {
		if other == q {
			l.free[key(c)] = append(list[:i:i], list[i+1:]...)
			l.mu.Unlock()
			l.end(q.p)
			return
		}
	}
	l.mu.Unlock()
}

// end closes a process in the background; Close waits for it.
func (l *Pool) end(p *Process) {
	l.ending.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), poolEndTimeout) //nolint:forbidigo // belongs to the pool, not to a call
		defer cancel()
		if err := p.Close(ctx); err != nil {
			p.log.Debug("plugin process of the pool", slog.Any(wire.LogErr, err))
		}
	})
}

// Close ends all processes; calls of Do that run end their own.
func (l *Pool) Close() {
	l.mu.Lock()
	l.closed = true
	var all []*pooled
	for _, list := range l.free {
		all = append(all, list...)
	}
	l.free = nil
	l.mu.Unlock()
	for _, q := range all {
		q.timer.Stop()
		l.end(q.p)
	}
	l.ending.Wait()
}
