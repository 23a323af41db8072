package main

import (
	"github.com/millrace-io/millrace/connectors/internal/cdc"
)

// position is how far the source has come. The members up to messageType are
// Debezium's; a position written by Debezium has only those.
type position struct {
	lsn         lsn    // of the last message handled
	lsnCommit   lsn    // end of the last finished transaction that was seen
	txID        uint32 // of the transaction of lsn
	micros      int64  // time of that transaction
	messageType string

	// end is where streaming goes on: everything before it is stored. It is the
	// end of a transaction, or a place the server reached with nothing to send.
	end lsn
	// commit and ord name the transaction that is being sent, by the start of its
	// commit record, and how many of its messages are done.
	commit lsn
	ord    int64
	// message is the place of the last message outside any transaction.
	message lsn

	systemID string
	timeline int64

	snapshot     bool // rows are still being read
	snapshotDone bool // a snapshot was finished
	fence        string
	horizon      lsn // above it no transaction is part of the snapshot
}

const (
	keyServer = "server"
	keyTable  = "table"
)

// serverPartition is the partition of the stream's position.
func serverPartition(prefix string) map[string]any { return map[string]any{keyServer: prefix} }

// tablePartition is the partition of a table's snapshot progress.
func tablePartition(prefix, table string) map[string]any {
	return map[string]any{keyServer: prefix, keyTable: table}
}

// offset makes the stored form.
func (p *position) offset() map[string]any {
	o := map[string]any{"lsn": int64(p.lsn), "end_lsn": int64(p.end)}
	if p.micros != 0 {
		o["ts_usec"] = p.micros
	}
	if p.txID != 0 {
		o["txId"] = int64(p.txID)
	}
	if p.lsnCommit != 0 {
		o["lsn_commit"] = int64(p.lsnCommit)
	}
	if p.ord > 0 {
		o["commit_lsn"], o["ord"] = int64(p.commit), p.ord
	}
	if p.message != 0 {
		o["message_lsn"] = int64(p.message)
	}
	if p.systemID != "" {
		o["systemid"], o["timeline"] = p.systemID, p.timeline
	}
	if p.horizon != 0 {
		o["snapshot_horizon"] = int64(p.horizon)
	}
	if p.snapshot {
		o["snapshot"], o["snapshot_completed"], o["last_snapshot_record"] = "INITIAL", false, false
		return o
	}
	if p.messageType != "" {
		o["lsn_proc"], o["messageType"] = int64(p.lsn), p.messageType
	} else if p.snapshotDone {
		o["snapshot"], o["snapshot_completed"], o["last_snapshot_record"] = "INITIAL", true, true
	}
	return o
}

// readPosition reads a stored offset, ours or Debezium's.
func readPosition(o map[string]any) position {
	p := position{
		lsn: lsn(cdc.Int(o, "lsn")), lsnCommit: lsn(cdc.Int(o, "lsn_commit")), txID: uint32(cdc.Int(o, "txId")), micros: cdc.Int(o, "ts_usec"),
		messageType: cdc.Text(o, "messageType"), end: lsn(cdc.Int(o, "end_lsn")), commit: lsn(cdc.Int(o, "commit_lsn")), ord: cdc.Int(o, "ord"),
		message: lsn(cdc.Int(o, "message_lsn")), systemID: cdc.Text(o, "systemid"), timeline: cdc.Int(o, "timeline"), horizon: lsn(cdc.Int(o, "snapshot_horizon")),
	}
	_, inSnapshot := o["snapshot"]
	p.snapshot = inSnapshot && !cdc.Flag(o, "snapshot_completed")
	p.snapshotDone = inSnapshot && cdc.Flag(o, "snapshot_completed")
	if p.end == 0 { // Debezium's: the smallest place that is safe
		switch {
		case p.lsnCommit != 0:
			p.end = p.lsnCommit
		case cdc.Int(o, "lsn_proc") != 0:
			p.end = lsn(cdc.Int(o, "lsn_proc"))
		default:
			p.end = p.lsn
		}
	}
	return p
}
