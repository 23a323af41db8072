package wire

import (
	"fmt"
	"net"
	"os"
	"syscall"
)

// CheckPeer wants the process at the other end of a unix socket to be pid, and
// to belong to this user.
func CheckPeer(conn net.Conn, pid int) error {
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return fmt.Errorf("%T is not a unix socket", conn)
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return err
	}
	var cred *syscall.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil {
		return err
	}
	switch {
	case credErr != nil:
		return fmt.Errorf("ask for peer credentials: %w", credErr)
	case int(cred.Uid) != os.Geteuid():
		return fmt.Errorf("peer has user id %d, this process %d", cred.Uid, os.Geteuid())
	case int(cred.Pid) != pid:
		return fmt.Errorf("peer is process %d, expected %d", cred.Pid, pid)
	}
	return nil
}
