package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// connectTimeout bounds reaching the server and logging in.
const connectTimeout = 15 * time.Second

// sessionParams make values come as the same text in snapshot and stream.
var sessionParams = map[string]string{
	"client_encoding":    "UTF8",
	"DateStyle":          "ISO",
	"IntervalStyle":      "postgres",
	"extra_float_digits": "3",
	"bytea_output":       "hex",
	"TimeZone":           "UTC",
	"lc_monetary":        "C",
	"application_name":   "millrace",
}

// untimed switches off what would end a long session.
const untimed = "SET statement_timeout=0; SET idle_in_transaction_session_timeout=0"

// conn is a connection for statements. It is used by one goroutine.
type conn struct{ *pgconn.PgConn }

// connConfig makes the settings of a connection; the password is set apart so
// that no text of the settings ever holds it.
func (c *config) connConfig() (*pgconn.Config, error) {
	var dsn strings.Builder
	add := func(key, value string) {
		if value != "" {
			fmt.Fprintf(&dsn, "%s='%s' ", key, strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(value))
		}
	}
	add("host", c.Host)
	add("port", fmt.Sprint(c.Port))
	add("user", c.User)
	add("dbname", c.database)
	add("sslmode", c.sslMode)
	add("sslcert", c.sslCert)
	add("sslkey", c.sslKey)
	add("sslrootcert", c.sslRootCert)
	add("sslpassword", c.sslPassword.Reveal())
	cfg, err := pgconn.ParseConfig(dsn.String())
	if err != nil {
		return nil, c.tlsConfigError(err)
	}
	cfg.Password = c.Password.Reveal()
	cfg.ConnectTimeout = connectTimeout
	dialer := &net.Dialer{Timeout: connectTimeout}
	if !c.keepAlive {
		dialer.KeepAlive = -1
	}
	cfg.DialFunc = dialer.DialContext
	for k, v := range sessionParams {
		cfg.RuntimeParams[k] = v
	}
	return cfg, nil
}

// connect opens a connection for statements.
func (c *config) connect(ctx context.Context) (*conn, error) {
	cfg, err := c.connConfig()
	if err != nil {
		return nil, err
	}
	pc, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, c.connectError(err)
	}
	db := &conn{pc}
	statements := append([]string{untimed}, splitStatements(c.initialStatements)...)
	for _, s := range statements {
		if _, err := db.rows(ctx, s); err != nil {
			db.close()
			return nil, c.serverError("prepare the session", err)
		}
	}
	return db, nil
}

// splitStatements splits at single semicolons; two stand for one.
func splitStatements(text string) []string {
	var out []string
	for _, s := range strings.Split(strings.ReplaceAll(text, ";;", "\x00"), ";") {
		if s = strings.TrimSpace(strings.ReplaceAll(s, "\x00", ";")); s != "" {
			out = append(out, s)
		}
	}
	return out
}

// exactReader gives what is asked for and not a byte more once exact is set, so
// that a connection can be taken over behind the last message read.
type exactReader struct {
	r     io.Reader
	exact bool
}

func (e *exactReader) Read(p []byte) (int, error) {
	if e.exact && len(p) > 1 {
		p = p[:1]
	}
	return e.r.Read(p)
}

// connectReplication opens a connection that speaks the replication protocol. Its
// reader can be made exact.
func (c *config) connectReplication(ctx context.Context) (*conn, *exactReader, error) {
	cfg, err := c.connConfig()
	if err != nil {
		return nil, nil, err
	}
	var reader *exactReader
	cfg.RuntimeParams["replication"] = "database"
	cfg.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		reader = &exactReader{r: r}
		return pgproto3.NewFrontend(reader, w)
	}
	pc, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, nil, c.replicationError(err)
	}
	return &conn{pc}, reader, nil
}

// closeTimeout bounds saying goodbye.
const closeTimeout = 2 * time.Second

func (db *conn) close() {
	if db == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout) //nolint:forbidigo // closing has its own limit, whatever the caller's context
	defer cancel()
	_ = db.Close(ctx)
}

// rows runs statements by the simple protocol and returns the rows of the last
// one as text; a null is a nil.
func (db *conn) rows(ctx context.Context, sql string) ([][]*string, error) {
	results, err := db.Exec(ctx, sql).ReadAll()
	if err != nil {
		return nil, err
	}
	if len(results) == 0 {
		return nil, nil
	}
	last := results[len(results)-1]
	if last.Err != nil {
		return nil, last.Err
	}
	rows := make([][]*string, len(last.Rows))
	for i, r := range last.Rows {
		rows[i] = make([]*string, len(r))
		for j, v := range r {
			if v != nil {
				s := string(v)
				rows[i][j] = &s
			}
		}
	}
	return rows, nil
}

// row runs a statement that gives one row.
func (db *conn) row(ctx context.Context, sql string) ([]string, error) {
	rows, err := db.rows(ctx, sql)
	if err != nil {
		return nil, err
	}
	if len(rows) != 1 {
		return nil, errNoRow
	}
	out := make([]string, len(rows[0]))
	for i := range out {
		out[i] = val(rows[0][i])
	}
	return out, nil
}

var errNoRow = errors.New("one row was expected")

func val(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

func quoteIdent(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }

// quoteLiteral quotes a text whatever standard_conforming_strings says.
func quoteLiteral(s string) string {
	s = strings.ReplaceAll(s, "'", "''")
	if strings.Contains(s, `\`) {
		return " E'" + strings.ReplaceAll(s, `\`, `\\`) + "'"
	}
	return "'" + s + "'"
}
