package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-io/millrace/plugins/sdk"
)

// The reasons of errors, stable for programs.
const (
	reasonUnreachable  = "source.unreachable"
	reasonTLS          = "source.tls"
	reasonAuth         = "source.auth"
	reasonNoDatabase   = "source.database_missing"
	reasonConnections  = "source.too_many_connections"
	reasonProtocol     = "source.replication_refused"
	reasonVersion      = "source.version"
	reasonWALLevel     = "source.wal_level"
	reasonPermission   = "source.permission"
	reasonSlotsFull    = "source.slots_exhausted"
	reasonSendersFull  = "source.senders_exhausted"
	reasonSlotWrong    = "source.slot_wrong"
	reasonSlotBusy     = "source.slot_busy"
	reasonSlotMissing  = "source.slot_missing"
	reasonSlotInvalid  = "source.slot_invalidated"
	reasonWALGone      = "source.wal_gone"
	reasonAhead        = "source.position_ahead"
	reasonBehind       = "source.server_behind"
	reasonCluster      = "source.wrong_cluster"
	reasonPublication  = "source.publication_missing"
	reasonNotPublished = "source.table_not_published"
	reasonIdentity     = "source.replica_identity"
	reasonNoTables     = "source.no_tables"
	reasonTableKind    = "source.table_not_capturable"
	reasonStandby      = "source.standby"
	reasonEncoding     = "source.encoding"
	reasonFamily       = "source.server_family"
	reasonConversion   = "source.conversion"
	reasonSchema       = "source.schema_mismatch"
	reasonTopics       = "source.topic_collision"
	reasonHeartbeat    = "source.heartbeat_query"
	reasonGuardrail    = "source.too_many_tables"
	reasonTimeout      = "source.slot_timeout"
	reasonServer       = "source.server_error"
	reasonInternal     = "source.protocol_error"
)

// fieldErr makes an error about one key.
func fieldErr(code sdk.Code, reason, key, format string, args ...any) *sdk.Error {
	e := sdk.Errorf(code, reason, format, args...)
	e.Key = key
	return e
}

func sqlState(err error) string {
	if pe, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pe.Code
	}
	return ""
}

// serverText is the server's own words, without position and context.
func serverText(err error) string {
	if pe, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pe.Message + " (SQLSTATE " + pe.Code + ")"
	}
	return err.Error()
}

func (c *config) target() string { return c.address() + "/" + c.database + " as " + c.User }

// connectError says why a connection could not be made, and which key to change.
func (c *config) connectError(err error) *sdk.Error {
	fail := func(code sdk.Code, reason, key, why string) *sdk.Error {
		e := fieldErr(code, reason, key, "cannot connect to %s: %s", c.target(), why)
		e.Err = err
		return e
	}
	switch state := sqlState(err); {
	case state == "28P01" || state == "28000" && strings.Contains(serverText(err), "password"):
		return fail(sdk.Invalid, reasonAuth, "database.password", serverText(err)+"; check database.user and database.password")
	case state == "28000" && strings.Contains(serverText(err), "no pg_hba.conf entry"):
		return fail(sdk.Invalid, reasonAuth, "database.user", serverText(err)+"; add an entry to pg_hba.conf, or set database.sslmode as the entry asks")
	case strings.HasPrefix(state, "28"):
		return fail(sdk.Invalid, reasonAuth, "database.user", serverText(err))
	case state == "3D000":
		return fail(sdk.Invalid, reasonNoDatabase, "database.dbname", serverText(err)+"; check database.dbname")
	case state == "53300":
		return fail(sdk.Unavailable, reasonConnections, "database.hostname", serverText(err)+"; raise max_connections or close other sessions")
	case state != "":
		return fail(sdk.Unavailable, reasonServer, "database.hostname", serverText(err))
	}
	if e := c.tlsError(err); e != nil {
		return e
	}
	// With prefer and allow a refusal is only the first half of the story: the
	// attempt without TLS failed too, and says why.
	if strings.Contains(err.Error(), "server refused TLS") && c.sslMode != "prefer" && c.sslMode != "allow" {
		return fail(sdk.Invalid, reasonTLS, "database.sslmode", "the server does not offer TLS; set database.sslmode=prefer or disable, or switch ssl on in the server")
	}
	if strings.Contains(err.Error(), "SCRAM") || strings.Contains(err.Error(), "password") {
		return fail(sdk.Invalid, reasonAuth, "database.password", "the server's login could not be answered; check database.password")
	}
	return fail(sdk.Unavailable, reasonUnreachable, "database.hostname", networkText(err))
}

// networkText names the network's trouble.
func networkText(err error) string {
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return "the name " + dns.Name + " does not resolve; check database.hostname"
	}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused; is the server running, and does it listen on this address (listen_addresses) and port?"
	case errors.Is(err, context.DeadlineExceeded), isTimeout(err):
		return "no answer in time; check address, port and firewalls"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return "the host cannot be reached; check address and routes"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		return "the connection was closed; the server may be starting or stopping"
	}
	for errors.Unwrap(err) != nil {
		err = errors.Unwrap(err)
	}
	return "the connection broke (" + err.Error() + ")"
}

func isTimeout(err error) bool {
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout()
}

// tlsError recognises what TLS itself refused.
func (c *config) tlsError(err error) *sdk.Error {
	why := ""
	if e, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		why = e.Error() + "; set database.sslrootcert to the authority's certificate"
	} else if e, ok := errors.AsType[x509.HostnameError](err); ok {
		why = e.Error() + "; use the name in the certificate, or database.sslmode=verify-ca"
	} else if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		why = e.Error()
	} else if e, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		why = e.Error() + "; the port may not be a Postgres server"
	} else if strings.Contains(err.Error(), "tls: ") {
		i := strings.Index(err.Error(), "tls: ")
		why = err.Error()[i:]
	}
	if why == "" {
		return nil
	}
	e := fieldErr(sdk.Invalid, reasonTLS, "database.sslmode", "cannot connect to %s: TLS: %s", c.target(), why)
	e.Err = err
	return e
}

// tlsConfigError says which file of the TLS settings cannot be used.
func (c *config) tlsConfigError(err error) *sdk.Error {
	key := "database.sslmode"
	text := err.Error()
	switch {
	case c.sslRootCert != "" && strings.Contains(text, "CA"):
		key = "database.sslrootcert"
	case c.sslCert != "" || c.sslKey != "":
		key = "database.sslcert"
	}
	why := "the settings cannot be used"
	if i := strings.LastIndex(text, "): "); i >= 0 {
		why = text[i+3:]
	} else if i := strings.LastIndex(text, "unable to"); i >= 0 {
		why = strings.TrimSuffix(text[i:], ")")
	}
	return fieldErr(sdk.Invalid, reasonTLS, key, "TLS settings for %s: %s", c.address(), why)
}

// replicationError is connectError for the replication protocol, which poolers do
// not speak and which has entries of its own in pg_hba.conf.
func (c *config) replicationError(err error) *sdk.Error {
	text := serverText(err)
	switch state := sqlState(err); {
	case state == "28000" && strings.Contains(text, "replication"):
		e := fieldErr(sdk.Invalid, reasonProtocol, "database.user", "cannot open a replication connection to %s: %s; add \"host replication %s <address> scram-sha-256\" to pg_hba.conf", c.target(), text, c.User)
		e.Err = err
		return e
	case state == "42501" || strings.Contains(text, "must be superuser or replication role"):
		e := fieldErr(sdk.Invalid, reasonPermission, "database.user", "role %s lacks REPLICATION: %s. ALTER ROLE %s REPLICATION (RDS: GRANT rds_replication TO %s)", c.User, text, quoteIdent(c.User), quoteIdent(c.User))
		e.Err = err
		return e
	case state == "53300":
		e := fieldErr(sdk.Unavailable, reasonSendersFull, "database.hostname", "cannot open a replication connection to %s: %s; raise max_wal_senders", c.target(), text)
		e.Err = err
		return e
	case state == "08P01" || state == "42704" || strings.Contains(text, "unsupported startup parameter"):
		e := fieldErr(sdk.Invalid, reasonProtocol, "database.hostname", "cannot open a replication connection to %s: %s; a pooler (PgBouncer, RDS Proxy, Supabase pooler) does not speak the replication protocol: use the server's own port", c.target(), text)
		e.Err = err
		return e
	}
	return c.connectError(err)
}

// serverError classifies what the server said while something was done.
func (c *config) serverError(doing string, err error) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*sdk.Error](err); ok {
		return e
	}
	if errors.Is(err, context.Canceled) {
		return context.Canceled
	}
	coded := func(code sdk.Code, reason, key, advice string) *sdk.Error {
		e := fieldErr(code, reason, key, "%s at %s: %s%s", doing, c.address(), serverText(err), advice)
		e.Err = err
		return e
	}
	text := serverText(err)
	switch state := sqlState(err); {
	case state == "":
		return &sdk.Error{Code: sdk.Unavailable, Reason: reasonUnreachable, Key: "database.hostname", Msg: doing + " at " + c.address() + ": " + networkText(err), Err: err}
	case state == "55006":
		return coded(sdk.Unavailable, reasonSlotBusy, "slot.name", "")
	case state == "55000" && (strings.Contains(text, "can no longer") || strings.Contains(text, "cannot read from logical replication slot") || strings.Contains(text, "invalidated")):
		return coded(sdk.Invalid, reasonSlotInvalid, "slot.name", "; changes are gone: set snapshot.mode=when_needed for a new snapshot, or drop the slot and the stored position")
	case strings.Contains(text, "has already been removed"):
		return coded(sdk.Invalid, reasonWALGone, "slot.name", "; changes are gone: set snapshot.mode=when_needed for a new snapshot")
	case state == "42704" && strings.Contains(text, "replication slot"):
		return coded(sdk.Invalid, reasonSlotMissing, "slot.name", "")
	case state == "42704" && strings.Contains(text, "publication"):
		return coded(sdk.Invalid, reasonPublication, "publication.name", "; if it was dropped and made again while the slot lagged, only a new slot can read on")
	case state == "42501":
		return coded(sdk.Invalid, reasonPermission, "database.user", "")
	case state == "53400" || state == "53300":
		return coded(sdk.Unavailable, reasonSlotsFull, "slot.name", "")
	case strings.HasPrefix(state, "28"):
		return coded(sdk.Invalid, reasonAuth, "database.user", "")
	case strings.HasPrefix(state, "57"), strings.HasPrefix(state, "08"), strings.HasPrefix(state, "53"), strings.HasPrefix(state, "40"),
		strings.HasPrefix(state, "58"), state == "XX000", state == "55P03", state == "25P03":
		return coded(sdk.Unavailable, reasonServer, "database.hostname", "")
	}
	return coded(sdk.Invalid, reasonServer, "", "")
}
