package serve

import (
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"

	"github.com/millrace-io/millrace/plugins/internal/wire"
	"github.com/millrace-io/millrace/plugins/sdk"
)

// stackLines is how much of a panic's stack is logged: the author's frames are
// the first ones.
const stackLines = 24

// guard calls an author's method; a panic becomes an error that says which one.
func (s *server) guard(what string, f func() error) error { return guard(s.log, what, f) }

func guard(log *slog.Logger, what string, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			log.Error("plugin panicked", slog.String("call", what), slog.String("panic", fmt.Sprint(p)), slog.String("stack", stack()))
			err = sdk.Errorf(sdk.Internal, "plugin.panic", "%s panicked: %s; the stack is in the log", what, wire.Text(fmt.Sprint(p)))
		}
	}()
	return f()
}

// stack returns the frames from the one that panicked on.
func stack() string {
	s := string(debug.Stack())
	if _, after, ok := strings.Cut(s, "\npanic("); ok {
		if _, rest, ok := strings.Cut(after, "\n\t"); ok {
			_, s, _ = strings.Cut(rest, "\n")
		}
	}
	lines := strings.SplitN(s, "\n", stackLines+1)
	return strings.Join(lines[:min(len(lines), stackLines)], "\n")
}
