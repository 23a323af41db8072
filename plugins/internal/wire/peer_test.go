package wire_test

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/millrace-io/millrace/plugins/internal/wire"
)

func TestOnlyTheExpectedProcessIsAPeer(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Skip(err)
	}
	defer l.Close()
	c, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := wire.CheckPeer(c, os.Getpid()); err != nil {
		t.Errorf("ourselves: %v", err)
	}
	if err := wire.CheckPeer(c, os.Getppid()); err == nil {
		t.Error("somebody else is accepted")
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Skip(err)
	}
	defer tcp.Close()
	d, err := net.Dial("tcp", tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := wire.CheckPeer(d, os.Getpid()); err == nil {
		t.Error("TCP is accepted")
	}
}
