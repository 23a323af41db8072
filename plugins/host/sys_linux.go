package host

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"
)

// descriptorPath is the path of a descriptor in the child that is about to be
// executed.
func descriptorPath(_ string, fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// processAttributes gives the process a group of its own and ties it to the
// thread that starts it.
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// killGroup ends a process and what it has started.
func killGroup(pid int) { _ = syscall.Kill(-pid, syscall.SIGKILL) } // it may be gone

// clockTick is USER_HZ, which Linux fixes at 100 for programs.
const clockTick = 10 * time.Millisecond

// usage reads what a process uses.
func usage(pid int) (rssBytes int64, cpu time.Duration) {
	var size, resident int64
	statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0, 0
	}
	if _, err := fmt.Sscan(string(statm), &size, &resident); err != nil {
		return 0, 0
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0
	}
	// The fields are counted from the end of the name, which may hold anything.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	const user, system = 11, 12
	if len(fields) > system {
		for _, f := range fields[user : system+1] {
			n, err := strconv.ParseInt(string(f), 10, 64)
			if err != nil {
				return 0, 0
			}
			cpu += time.Duration(n) * clockTick
		}
	}
	return resident * int64(os.Getpagesize()), cpu
}
