package host_test

import "syscall"

// forgetParent takes back the parent-death signal.
func forgetParent() error {
	if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, syscall.PR_SET_PDEATHSIG, 0, 0); errno != 0 {
		return errno
	}
	return nil
}
