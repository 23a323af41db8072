package wire_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/millrace-io/millrace/plugins/internal/wire"
	"github.com/millrace-io/millrace/plugins/sdk"
)

func TestEveryErrorSurvivesTheBoundary(t *testing.T) {
	full := func(c sdk.Code) *sdk.Error {
		return &sdk.Error{Code: c, Reason: "some.reason", Key: "some.key", Msg: "what, where, why"}
	}
	for _, c := range []struct {
		name string
		in   error
		want sdk.Error
		grpc codes.Code
	}{
		{"invalid", full(sdk.Invalid), *full(sdk.Invalid), codes.InvalidArgument},
		{"not found", full(sdk.NotFound), *full(sdk.NotFound), codes.NotFound},
		{"exists", full(sdk.Exists), *full(sdk.Exists), codes.AlreadyExists},
		{"conflict", full(sdk.Conflict), *full(sdk.Conflict), codes.FailedPrecondition},
		{"unavailable", full(sdk.Unavailable), *full(sdk.Unavailable), codes.Unavailable},
		{"corrupt", full(sdk.Corrupt), *full(sdk.Corrupt), codes.DataLoss},
		{"internal", full(sdk.Internal), *full(sdk.Internal), codes.Internal},
		{"retry", sdk.Retry(errors.New("later"), 3*time.Second), sdk.Error{Code: sdk.Unavailable, Msg: "later", After: 3 * time.Second}, codes.Unavailable},
		{"unmarked", errors.New("plain"), sdk.Error{Code: sdk.Internal, Msg: "plain"}, codes.Internal},
		{"wrapped", fmt.Errorf("outside: %w", full(sdk.NotFound)), sdk.Error{Code: sdk.NotFound, Reason: "some.reason", Key: "some.key", Msg: "outside: what, where, why"}, codes.NotFound},
		{"unknown code", &sdk.Error{Code: "surprise", Msg: "m"}, sdk.Error{Code: sdk.Internal, Msg: "m"}, codes.Internal},
		{"deadline", context.DeadlineExceeded, sdk.Error{Code: sdk.Unavailable, Msg: "context deadline exceeded"}, codes.Internal},
		{"not UTF-8", &sdk.Error{Code: sdk.Invalid, Msg: "a\xffb"}, sdk.Error{Code: sdk.Invalid, Msg: "a\uFFFDb"}, codes.InvalidArgument},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := wire.ToStatus(c.in)
			if got := status.Code(s); got != c.grpc {
				t.Errorf("gRPC code is %s, want %s", got, c.grpc)
			}
			out, ok := wire.FromStatus(s)
			got, isError := errors.AsType[*sdk.Error](out)
			if !ok || !isError || *got != c.want {
				t.Errorf("got %#v, want %#v", out, c.want)
			}
			direct, isError := errors.AsType[*sdk.Error](wire.ErrorFromPB(wire.ErrorToPB(c.in)))
			if !isError || *direct != c.want {
				t.Errorf("as a message: %#v, want %#v", direct, c.want)
			}
		})
	}
}

func TestFieldErrorsStayAList(t *testing.T) {
	in := sdk.FieldErrors{sdk.FieldError("a", "r.a", "a is wrong"), sdk.FieldError("", "r.b", "all of it is wrong")}
	out, ok := wire.FromStatus(wire.ToStatus(fmt.Errorf("validate: %w", in)))
	got, isList := errors.AsType[sdk.FieldErrors](out)
	if !ok || !isList || len(got) != 2 || got[0].Key != "a" || got[0].Reason != "r.a" || got[1].Msg != "all of it is wrong" {
		t.Errorf("got %#v", out)
	}
}

func TestErrorsOfTheConnectionAreNotThePlugins(t *testing.T) {
	for _, err := range []error{nil, errors.New("no status"), status.Error(codes.Unavailable, "connection lost"), status.Error(codes.Canceled, "")} {
		if out, ok := wire.FromStatus(err); ok {
			t.Errorf("%v was taken for %v", err, out)
		}
	}
	// A plugin in another language that knows only gRPC's codes.
	out, ok := wire.FromStatus(status.Error(codes.InvalidArgument, "bad key"))
	if !ok || sdk.CodeOf(out) != sdk.Invalid || out.Error() != "bad key" {
		t.Errorf("got %v", out)
	}
	if wire.ToStatus(nil) != nil || wire.ErrorToPB(nil) != nil || wire.ErrorFromPB(nil) != nil {
		t.Error("nil becomes an error")
	}
}

func TestLongTextsAreCut(t *testing.T) {
	if got := wire.Text(strings.Repeat("ä", wire.MaxText)); len(got) > wire.MaxText+10 || !strings.HasSuffix(got, "...") {
		t.Errorf("%d bytes are left", len(got))
	}
}
