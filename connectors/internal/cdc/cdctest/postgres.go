// Package cdctest starts the database servers that tests of the sources run
// against.
package cdctest

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Server is a running server that nobody else uses.
type Server struct {
	Host     string
	Port     int
	User     string
	Password string

	bin, dir string // "" for a server that was given
}

// postgresBin is where Debian installs the server's programs.
const postgresBin = "/usr/lib/postgresql/15/bin"

// RunPostgres runs the tests of a package with a server that is started on first
// use and ended behind the last test.
type RunPostgres struct {
	server *Server
	err    error
	tried  bool
}

// Get returns the server, starting it when it does not run. Without one the test
// is skipped, or fails when REQUIRE_SERVERS is 1.
func (r *RunPostgres) Get(t testing.TB) *Server {
	t.Helper()
	if !r.tried {
		r.tried = true
		r.server, r.err = startPostgres(nil)
	}
	if r.err == nil {
		return r.server
	}
	const help = "install postgresql-15, or set MILLRACE_TEST_POSTGRES to the URL of a server with wal_level=logical, as postgres://user:password@host:port/db"
	if os.Getenv("REQUIRE_SERVERS") == "1" {
		t.Fatalf("no Postgres server: %v; %s", r.err, help)
	}
	t.Skipf("no Postgres server: %v; %s", r.err, help)
	return nil
}

// Stop ends the server.
func (r *RunPostgres) Stop() {
	if r.server != nil {
		r.server.Stop()
	}
}

// StartPostgres starts a server of its own for one test, with further settings.
func StartPostgres(t testing.TB, settings ...string) *Server {
	t.Helper()
	if os.Getenv("MILLRACE_TEST_POSTGRES") != "" {
		t.Skip("the test needs a server of its own, and MILLRACE_TEST_POSTGRES gives one to share")
	}
	s, err := startPostgres(settings)
	if err != nil {
		if os.Getenv("REQUIRE_SERVERS") == "1" {
			t.Fatalf("no Postgres server: %v; install postgresql-15", err)
		}
		t.Skipf("no Postgres server: %v", err)
	}
	t.Cleanup(s.Stop)
	return s
}

func startPostgres(settings []string) (*Server, error) {
	if given := os.Getenv("MILLRACE_TEST_POSTGRES"); given != "" {
		return parseServer(given)
	}
	if _, err := os.Stat(filepath.Join(postgresBin, "initdb")); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "millrace-pg")
	if err != nil {
		return nil, err
	}
	s := &Server{Host: "127.0.0.1", User: "postgres", Password: "secret", bin: postgresBin, dir: dir}
	if s.Port, err = freePort(); err != nil {
		return nil, err
	}
	if err := s.init(settings); err != nil {
		_ = os.RemoveAll(dir)
		return nil, err
	}
	return s, s.Start()
}

func parseServer(given string) (*Server, error) {
	u, err := url.Parse(given)
	if err != nil {
		return nil, fmt.Errorf("read MILLRACE_TEST_POSTGRES: %w", err)
	}
	port, err := strconv.Atoi(u.Port())
	if err != nil {
		port = 5432
	}
	password, _ := u.User.Password()
	return &Server{Host: u.Hostname(), Port: port, User: u.User.Username(), Password: password}, nil
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// command runs a program as a user who may run a server.
func (s *Server) command(name string, args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(s.bin, name), args...)
	cmd.Dir = "/"
	cmd.Env = []string{"HOME=/tmp", "LC_ALL=C.UTF-8", "PATH=/usr/bin:/bin"}
	if os.Getuid() == 0 {
		u, err := user.Lookup("postgres")
		if err != nil {
			return err
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		if err := os.Chown(s.dir, uid, gid); err != nil {
			return err
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	}
	out, err := os.CreateTemp("", "millrace-pg-out")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out // a file: the server inherits it and a pipe would stay open
	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(out.Name())
		return fmt.Errorf("%s: %w: %s", name, err, text)
	}
	return nil
}

func (s *Server) init(settings []string) error {
	pw := filepath.Join(s.dir, "pw")
	if err := os.WriteFile(pw, []byte(s.Password+"\n"), 0o644); err != nil {
		return err
	}
	data := filepath.Join(s.dir, "data")
	if err := s.command("initdb", "-D", data, "-U", s.User, "-A", "trust", "--no-sync", "--locale=C.UTF-8", "-E", "UTF8", "--pwfile="+pw); err != nil {
		return err
	}
	conf := append([]string{
		"listen_addresses = '127.0.0.1'", "port = " + strconv.Itoa(s.Port), "unix_socket_directories = '" + s.dir + "'",
		"wal_level = logical", "max_wal_senders = 20", "max_replication_slots = 20", "wal_sender_timeout = 5s",
		"shared_buffers = 32MB", "fsync = off", "full_page_writes = off",
	}, settings...)
	if err := s.appendTo("postgresql.conf", conf...); err != nil {
		return err
	}
	hba := "host all all 127.0.0.1/32 scram-sha-256\nhost replication all 127.0.0.1/32 scram-sha-256\nlocal all all trust\n"
	return os.WriteFile(filepath.Join(data, "pg_hba.conf"), []byte(hba), 0o644)
}

func (s *Server) appendTo(file string, lines ...string) error {
	f, err := os.OpenFile(filepath.Join(s.dir, "data", file), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(strings.Join(lines, "\n") + "\n")
	return err
}

// HBA replaces the server's access rules and makes it read them.
func (s *Server) HBA(rules string) error {
	data := filepath.Join(s.dir, "data")
	if err := os.WriteFile(filepath.Join(data, "pg_hba.conf"), []byte(rules), 0o644); err != nil {
		return err
	}
	return s.command("pg_ctl", "-D", data, "reload")
}

// Start starts a server that was ended.
func (s *Server) Start() error {
	return s.command("pg_ctl", "-D", filepath.Join(s.dir, "data"), "-l", filepath.Join(s.dir, "log"), "-w", "-t", "30", "start")
}

// Crash ends the server without a clean shutdown, keeping its data.
func (s *Server) Crash() error {
	return s.command("pg_ctl", "-D", filepath.Join(s.dir, "data"), "-m", "immediate", "-w", "stop")
}

// Stop ends the server and removes its data.
func (s *Server) Stop() {
	if s.dir == "" {
		return
	}
	_ = s.Crash()
	_ = os.RemoveAll(s.dir)
}
