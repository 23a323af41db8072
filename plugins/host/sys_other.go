//go:build !linux

package host

import (
	"syscall"
	"time"
)

// descriptorPath is the path itself: executing a descriptor is a feature of
// Linux. Between the check and the start the file could be exchanged here.
func descriptorPath(path string, _ int) string { return path }

// processAttributes gives the process a group of its own.
func processAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// killGroup ends a process and what it has started.
func killGroup(pid int) { _ = syscall.Kill(-pid, syscall.SIGKILL) } // it may be gone

// usage is not known here.
func usage(int) (rssBytes int64, cpu time.Duration) { return 0, 0 }
