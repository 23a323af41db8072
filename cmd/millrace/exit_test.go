package main

import (
	"errors"
	"os/exec"
)

func asExit(err error, to **exec.ExitError) bool { return errors.As(err, to) }
