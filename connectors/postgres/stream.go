package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/millrace-io/millrace/connectors/internal/cdc"
	"github.com/millrace-io/millrace/plugins/sdk"
)

const (
	// positionRecords and positionBytes are how much lies between two positions at
	// most, also inside a transaction, so that no transaction has to fit into
	// memory and a crash never repeats much work.
	positionRecords = 1000
	positionBytes   = 512 << 10
	// idleEvery bounds how often a position is stored only because the server's log
	// grew without changes for us, when the status interval is short.
	idleEvery = time.Second
	// unavailablePause lets a server that went away come back.
	unavailablePause = time.Second
)

// stream is the state of reading the slot. It is used by the goroutine that calls
// Read.
type stream struct {
	src      *source
	recv     *receiver // nil while not connected
	slab     *slab     // being read, from off on
	off      int
	tables   map[uint32]*table
	inTx     bool
	ord      int64 // messages of the open transaction that are done
	skip     int64 // messages of it that were done before a restart
	skipLSN  lsn   // where the last of those was
	commit   lsn   // of the open transaction
	old, row tuple
	oids     []uint32

	dirty     bool      // the position moved since it was stored
	idle      bool      // only the server's own position moved
	asked     bool      // the server wants to hear from us
	stored    time.Time // when a position was stored last
	heartbeat time.Time // when the next one is due
	cut       bool      // the next transaction was cut before
	connected bool      // it was connected before
	torn      bool      // an error came between the records of one message
}

// connect starts streaming where the position is.
func (st *stream) connect(ctx context.Context) error {
	s := st.src
	if err := s.reopen(ctx); err != nil {
		return err
	}
	slot, err := s.waitFree(ctx)
	if err != nil {
		return err
	}
	if slot != nil && st.connected { // the server may be another one by now
		if problem := s.aheadProblem(slot); problem != nil {
			return problem
		}
	}
	repl, exact, err := s.config.connectReplication(ctx)
	if err != nil {
		return err
	}
	if err := repl.identify(ctx, &s.server); err != nil {
		repl.close()
		return s.config.serverError("identify the server", err)
	}
	if err := s.sameCluster(); err != nil {
		repl.close()
		return err
	}
	raw, err := startStream(ctx, repl, exact, s.config.startCommand(s.pos.end, s.server.version))
	if err != nil {
		repl.close()
		return s.config.serverError(fmt.Sprintf("start streaming from slot %q", s.config.slot), err)
	}
	every := s.config.statusInterval
	if s.server.silence > 0 {
		every = min(every, s.server.silence/3)
	}
	queue := slabCount
	if s.config.MaxQueueBytes > 0 {
		queue = int(max(1, min(s.config.MaxQueueBytes/slabBytes, 4096)))
	}
	st.recv = newReceiver(raw, &s.ack, every, queue)
	st.slab, st.off = nil, 0
	st.inTx, st.connected = false, true
	st.cut = s.pos.ord > 0
	st.tables = make(map[uint32]*table)
	s.task.Condition("", "")
	s.task.Progress(sdk.Progress{Phase: "streaming"})
	s.log.Info("streaming", "slot", s.config.slot, "from", s.pos.end.String(), "host", s.config.address())
	return nil
}

func (st *stream) disconnect() {
	if st.recv != nil {
		st.recv.close()
		st.recv = nil
	}
	st.slab = nil
}

// read appends what has come, waiting for something when there is nothing.
func (st *stream) read(ctx context.Context, out *sdk.Batch) error {
	s := st.src
	if st.recv == nil {
		if err := st.connect(ctx); err != nil {
			return err
		}
		st.scheduleHeartbeat()
	}
	for {
		if err := st.beat(ctx, out); err != nil {
			return err
		}
		if st.slab == nil {
			more, err := st.next(ctx, out)
			if err != nil {
				return st.broken(out, err)
			}
			if !more {
				return nil
			}
		}
		err := st.drain(ctx, out)
		if err != nil {
			return st.broken(out, err)
		}
		if s.emit.appended >= s.emit.limit || s.emit.bytes >= positionBytes {
			return st.store(out)
		}
	}
}

// next takes the next slab. While none is there it stores the position and then
// waits; more is false when the caller should return.
func (st *stream) next(ctx context.Context, out *sdk.Batch) (more bool, err error) {
	select {
	case sl, ok := <-st.recv.slabs:
		return st.taken(sl, ok)
	default:
	}
	if st.dirty && (!st.idle || st.asked && time.Since(st.stored) >= idleEvery || time.Since(st.stored) >= st.idleInterval()) {
		return false, st.store(out)
	}
	wait := time.NewTimer(st.waitTime())
	defer wait.Stop()
	select {
	case sl, ok := <-st.recv.slabs:
		return st.taken(sl, ok)
	case <-wait.C:
		return false, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

func (st *stream) idleInterval() time.Duration {
	return max(min(st.src.config.statusInterval, 10*time.Second)/2, idleEvery)
}

// waitTime is how long nothing needs to be done.
func (st *stream) waitTime() time.Duration {
	wait := st.idleInterval()
	if !st.heartbeat.IsZero() {
		wait = min(wait, max(0, time.Until(st.heartbeat)))
	}
	return wait
}

func (st *stream) taken(sl *slab, ok bool) (bool, error) {
	if !ok {
		err := st.recv.failure()
		if err == nil {
			err = errStreamEnded
		}
		return false, err
	}
	st.slab, st.off = sl, 0
	st.src.emit.tick()
	return true, nil
}

// broken decides what an error of the stream means. When it can pass, what was
// appended is put before a position, so that going on later repeats nothing. An
// error between the records of one message cannot pass: no position fits there.
func (st *stream) broken(out *sdk.Batch, err error) error {
	if st.torn || errors.Is(err, context.Canceled) && sqlState(err) == "" {
		return err
	}
	var se *sdk.Error
	coded := errors.As(err, &se)
	network := errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, errStreamEnded) || isNetwork(err)
	if coded && se.Code != sdk.Unavailable || !coded && !network && sqlState(err) == "" {
		return err
	}
	st.disconnect()
	if st.dirty {
		if perr := st.store(out); perr != nil {
			return perr
		}
	}
	e := st.src.config.serverError(fmt.Sprintf("stream from slot %q", st.src.config.slot), err)
	if errors.As(e, &se) && se.Code == sdk.Unavailable {
		se.After = unavailablePause
	}
	return e
}

func isNetwork(err error) bool {
	var ne interface{ Timeout() bool }
	return errors.As(err, &ne)
}

// drain handles the messages of the slab, until it is empty or enough has come.
func (st *stream) drain(ctx context.Context, out *sdk.Batch) error {
	e := st.src.emit
	for st.off < st.slab.n {
		b := st.slab.buf[st.off:st.slab.n]
		size := int(binary.BigEndian.Uint32(b[1:])) + 1
		before := e.appended
		if err := st.message(ctx, out, b[0], b[headBytes:size]); err != nil {
			st.torn = e.appended != before
			return err
		}
		st.off += size
		e.arena.reset()
		if e.bytes += size; e.appended >= e.limit || e.appended > 0 && e.bytes >= positionBytes {
			break
		}
	}
	if st.off >= st.slab.n {
		st.recv.release(st.slab)
		st.slab = nil
	}
	return nil
}

// message handles one message of the protocol.
func (st *stream) message(ctx context.Context, out *sdk.Batch, kind byte, b []byte) error {
	switch kind {
	case 'd':
	case 'E':
		return errorResponse(b)
	case 'c', 'C', 'Z':
		return errStreamEnded
	default: // notices and parameters
		return nil
	}
	const xlogHead = 1 + 8 + 8 + 8
	switch {
	case len(b) >= xlogHead+1 && b[0] == 'w':
		at := lsn(binary.BigEndian.Uint64(b[1:]))
		return st.change(ctx, out, at, b[xlogHead:])
	case len(b) == 1+8+8+1 && b[0] == 'k':
		st.keepalive(lsn(binary.BigEndian.Uint64(b[1:])), b[17] == 1)
		return nil
	}
	return sdk.Errorf(sdk.Internal, reasonInternal, "the server sent a replication message of unknown kind")
}

// keepalive moves the position while nothing is captured: everything before the
// server's place was sent, and there is nothing of ours in it.
func (st *stream) keepalive(end lsn, asked bool) {
	p := &st.src.pos
	st.asked = st.asked || asked
	if st.inTx || p.ord > 0 || end <= p.end || !st.src.config.ackKeepalive {
		return
	}
	p.end = end
	st.mark()
}

// change handles one message of pgoutput.
func (st *stream) change(ctx context.Context, out *sdk.Batch, at lsn, b []byte) error {
	kind := b[0]
	switch kind {
	case msgInsert, msgUpdate, msgDelete:
		return st.rowChange(ctx, out, kind, at, b[1:])
	case msgBegin:
		return st.begin(b[1:])
	case msgCommit:
		return st.end(out, b[1:])
	case msgRelation:
		return st.relation(ctx, b[1:])
	case msgType:
		r := reader{b: b[1:]}
		delete(st.src.types.byOID, r.uint32())
		return nil
	case msgOrigin:
		origin, name, err := decodeOrigin(b[1:])
		if err != nil {
			return st.damaged(err)
		}
		st.src.emit.source[sourceOrigin] = sdk.String(name)
		st.src.emit.source[sourceOriginLSN] = sdk.Int64(int64(origin))
		return nil
	case msgTruncate:
		return st.truncate(out, at, b[1:])
	case msgMessage:
		return st.logical(out, at, b[1:])
	}
	return sdk.Errorf(sdk.Internal, reasonInternal, "the server sent a pgoutput message of unknown kind %q", kind)
}

func (st *stream) damaged(err error) error {
	if se, ok := errors.AsType[*sdk.Error](err); ok {
		return se
	}
	return sdk.Errorf(sdk.Internal, reasonInternal, "read the stream: %w", err)
}

func (st *stream) begin(b []byte) error {
	m, err := decodeBegin(b)
	if err != nil {
		return st.damaged(err)
	}
	s := st.src
	st.inTx, st.commit, st.ord, st.skip = true, m.final, 0, 0
	if st.cut {
		st.cut = false
		switch {
		case m.final == s.pos.commit:
			st.skip, st.skipLSN = s.pos.ord, s.pos.lsn
		default:
			s.log.Warn("the transaction that was cut does not come again; nothing is skipped", "expected", s.pos.commit.String(), "got", m.final.String())
			s.pos.ord = 0
		}
	}
	e := s.emit
	e.txID = m.xid
	e.at(serverTime(m.time))
	e.source[sourceTxID] = sdk.Int64(int64(m.xid))
	e.source[sourceOrigin], e.source[sourceOriginLSN] = sdk.Null, sdk.Null
	e.source[cdc.SourceSnapshot] = sdk.Null
	return nil
}

func (st *stream) end(out *sdk.Batch, b []byte) error {
	m, err := decodeCommit(b)
	if err != nil {
		return st.damaged(err)
	}
	s := st.src
	if err := s.emit.endTransaction(out, m.end); err != nil {
		return err
	}
	st.inTx, st.ord, st.skip = false, 0, 0
	p := &s.pos
	p.end, p.lsnCommit, p.ord, p.commit = m.end, m.end, 0, 0
	s.emit.lastCommit = m.end
	st.mark()
	return s.fences.passed(s, out)
}

// advance notes that one message of the open transaction is done.
func (st *stream) advance(at lsn, n int64, kind string) {
	st.ord += n
	p := &st.src.pos
	p.lsn, p.commit, p.ord, p.txID, p.micros, p.messageType = at, st.commit, st.ord, st.src.emit.txID, st.src.emit.txTime, kind
	st.mark()
}

// mark notes that the position moved; it is worth storing at once when there are
// records before it.
func (st *stream) mark() {
	st.idle = st.src.emit.appended == 0 && (st.idle || !st.dirty)
	st.dirty = true
}

// skipped reports whether a message was done before a restart.
func (st *stream) skipped(at lsn, n int64) (bool, error) {
	if st.skip == 0 || st.ord >= st.skip {
		return false, nil
	}
	st.ord += n
	if st.ord >= st.skip && at != st.skipLSN {
		// The transaction does not come as it came before: the publication was
		// changed. Sending it again repeats records, but loses none.
		st.src.log.Warn("a transaction that was cut came back different and is sent again", "commit", st.commit.String(), "expected", st.skipLSN.String(), "got", at.String())
		st.src.pos.ord = 0
		return true, errResend
	}
	return true, nil
}

// errResend makes the stream start again without skipping anything.
var errResend = fmt.Errorf("the transaction is read again: %w", io.EOF)

func (st *stream) rowChange(ctx context.Context, out *sdk.Batch, kind byte, at lsn, b []byte) error {
	if done, err := st.skipped(at, 1); done || err != nil {
		return err
	}
	oid, err := decodeRow(kind, b, &st.old, &st.row)
	if err != nil {
		return st.damaged(err)
	}
	t := st.tables[oid]
	if t == nil {
		return sdk.Errorf(sdk.Internal, reasonInternal, "a row of relation %d came before its description", oid)
	}
	if t.captured {
		if err := st.emitRow(ctx, out, kind, at, t); err != nil {
			return err
		}
	}
	switch kind {
	case msgInsert:
		st.advance(at, 1, "INSERT")
	case msgUpdate:
		st.advance(at, 1, "UPDATE")
	default:
		st.advance(at, 1, "DELETE")
	}
	return nil
}

func (st *stream) emitRow(ctx context.Context, out *sdk.Batch, kind byte, at lsn, t *table) error {
	e := st.src.emit
	if !st.src.fences.idle() {
		handled, err := st.src.fences.filter(st, out, kind, at, t)
		if handled || err != nil {
			return err
		}
	}
	if t.hasEnums() {
		if err := st.freshLabels(ctx, t); err != nil {
			return err
		}
		t = st.tables[t.oid]
	}
	switch kind {
	case msgInsert:
		return e.insert(out, t, at, &st.row)
	case msgUpdate:
		return e.update(out, t, at, &st.old, &st.row)
	}
	return e.remove(out, t, at, &st.old)
}

// freshLabels reads a table's types again when a row has an enum label that was
// not known, which ALTER TYPE adds without the stream saying so.
func (st *stream) freshLabels(ctx context.Context, t *table) error {
	if t.labelsKnown(&st.row) && t.labelsKnown(&st.old) {
		return nil
	}
	st.src.types.forget()
	fresh, err := st.src.prepare(ctx, t.description(), t)
	if err != nil {
		return err
	}
	st.tables[t.oid] = fresh
	return nil
}

func (st *stream) relation(ctx context.Context, b []byte) error {
	m, err := decodeRelation(b)
	if err != nil {
		return st.damaged(err)
	}
	previous := st.tables[m.id]
	if previous == nil {
		previous = st.src.known[m.id]
	}
	t, err := st.src.prepare(ctx, m, previous)
	if err != nil {
		return err
	}
	st.tables[m.id] = t
	return nil
}

func (st *stream) truncate(out *sdk.Batch, at lsn, b []byte) error {
	var err error
	if st.oids, err = decodeTruncate(b, st.oids); err != nil {
		return st.damaged(err)
	}
	n := int64(len(st.oids))
	if done, err := st.skipped(at, n); done || err != nil {
		return err
	}
	for _, oid := range st.oids {
		t := st.tables[oid]
		if t == nil || !t.captured || st.src.fences.truncated(st.src, t) {
			continue
		}
		if err := st.src.emit.truncate(out, t, at); err != nil {
			return err
		}
	}
	st.advance(at, n, "TRUNCATE")
	return nil
}

// logical handles a message written by pg_logical_emit_message.
func (st *stream) logical(out *sdk.Batch, at lsn, b []byte) error {
	m, err := decodeMessage(b)
	if err != nil {
		return st.damaged(err)
	}
	s := st.src
	if m.transactional {
		if done, err := st.skipped(at, 1); done || err != nil {
			return err
		}
	} else if at <= s.pos.message {
		return nil
	}
	if s.config.messages.Allows(string(m.prefix)) {
		if err := st.emitMessage(out, at, m); err != nil {
			return err
		}
	}
	if m.transactional {
		st.advance(at, 1, "MESSAGE")
		return nil
	}
	s.pos.message, s.pos.lsn, s.pos.messageType = at, at, "MESSAGE"
	s.pos.lsnCommit, s.emit.lastCommit = at, at
	st.mark()
	return nil
}

func (st *stream) emitMessage(out *sdk.Batch, at lsn, m logicalMessage) error {
	s, e := st.src, st.src.emit
	if !m.transactional {
		e.at(time.Now().UnixMicro())
		e.source[sourceTxID] = sdk.Null
		e.source[cdc.SourceSnapshot] = sdk.Null
	}
	e.place(&s.messages.table, at)
	if m.transactional {
		if err := e.beginTransaction(out, at); err != nil {
			return err
		}
	}
	block := sdk.Null
	if e.tx.Open() && m.transactional {
		block = e.transactionBlock("message")
	}
	content := binaryValue(s.config.Binary, m.content, &e.arena)
	key, value := s.messages.data(str(m.prefix), content, e.envelope[cdc.FieldTsMs], sdk.Struct(e.source[:]), block)
	return e.append(out, s.messages.table.topic, key, value, nil)
}

// store hands the position on.
func (st *stream) store(out *sdk.Batch) error {
	s := st.src
	o := s.pos.offset()
	s.emit.tx.Store(o)
	if err := out.Position(sdk.Position{Partition: serverPartition(s.config.Prefix), Offset: o}); err != nil {
		return err
	}
	s.emit.appended, s.emit.bytes = 0, 0
	st.dirty, st.idle, st.asked = false, false, false
	st.stored = time.Now()
	s.progress(st.stored)
	return nil
}

func (st *stream) scheduleHeartbeat() {
	if every := st.src.config.HeartbeatInterval; every > 0 && st.heartbeat.IsZero() {
		st.heartbeat = time.Now().Add(every)
	}
}

// beat appends a heartbeat when one is due, between transactions only.
func (st *stream) beat(ctx context.Context, out *sdk.Batch) error {
	if st.heartbeat.IsZero() || st.inTx || time.Now().Before(st.heartbeat) {
		return nil
	}
	s := st.src
	st.heartbeat = time.Now().Add(s.config.HeartbeatInterval)
	if s.config.HeartbeatQuery != "" {
		if _, err := s.sql(ctx, s.config.HeartbeatQuery); err != nil {
			if sqlState(err) == "" {
				return err
			}
			s.log.Warn("heartbeat.action.query was refused", "err", serverText(err))
		}
	}
	s.emit.appended++
	if err := out.Append(s.heartbeats.Record(time.Now().UnixMilli())); err != nil {
		return err
	}
	st.dirty, st.idle = true, false
	return nil
}
