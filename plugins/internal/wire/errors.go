package wire

import (
	"context"
	"errors"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"

	"github.com/millrace-io/millrace/plugins/internal/pb"
	"github.com/millrace-io/millrace/plugins/sdk"
)

// maxFieldErrors bounds the errors of one validation: a config has some hundred
// keys at most.
const maxFieldErrors = 1000

// grpcCode maps the SDK's codes to gRPC's, for plugins and tools that know only
// those.
func grpcCode(c sdk.Code) codes.Code {
	switch c {
	case sdk.Invalid:
		return codes.InvalidArgument
	case sdk.NotFound:
		return codes.NotFound
	case sdk.Exists:
		return codes.AlreadyExists
	case sdk.Conflict:
		return codes.FailedPrecondition
	case sdk.Unavailable:
		return codes.Unavailable
	case sdk.Corrupt:
		return codes.DataLoss
	case sdk.Internal:
	}
	return codes.Internal
}

// sdkCode is grpcCode backwards; ok is false for the codes that a broken
// connection also gives.
func sdkCode(c codes.Code) (code sdk.Code, ok bool) {
	switch c {
	case codes.InvalidArgument, codes.OutOfRange:
		return sdk.Invalid, true
	case codes.NotFound:
		return sdk.NotFound, true
	case codes.AlreadyExists:
		return sdk.Exists, true
	case codes.FailedPrecondition, codes.Aborted:
		return sdk.Conflict, true
	case codes.DataLoss:
		return sdk.Corrupt, true
	default:
		return sdk.Internal, false
	}
}

// ErrorToPB turns an error into a message; nil gives nil.
func ErrorToPB(err error) *pb.Error {
	if err == nil {
		return nil
	}
	out := &pb.Error{Code: string(sdk.Internal), Msg: Text(err.Error())}
	e, ok := errors.AsType[*sdk.Error](err)
	switch {
	case ok:
		out.Code, out.Reason, out.Key, out.AfterNs = string(e.Code), Text(e.Reason), Text(e.Key), int64(e.After)
	case errors.Is(err, context.DeadlineExceeded):
		out.Code = string(sdk.Unavailable)
	}
	return out
}

// ErrorFromPB is ErrorToPB backwards.
func ErrorFromPB(m *pb.Error) error {
	if m == nil {
		return nil
	}
	return errorFromPB(m)
}

func errorFromPB(m *pb.Error) *sdk.Error {
	return &sdk.Error{
		Code: knownCode(m.GetCode()), Reason: m.GetReason(), Key: m.GetKey(), Msg: m.GetMsg(),
		After: max(0, time.Duration(m.GetAfterNs())),
	}
}

func knownCode(s string) sdk.Code {
	switch c := sdk.Code(s); c {
	case sdk.Invalid, sdk.NotFound, sdk.Exists, sdk.Conflict, sdk.Unavailable, sdk.Corrupt, sdk.Internal:
		return c
	}
	return sdk.Internal
}

// FieldErrorsToPB turns the errors of a validation into messages.
func FieldErrorsToPB(errs sdk.FieldErrors) []*pb.Error {
	var out []*pb.Error
	for _, e := range errs[:min(len(errs), maxFieldErrors)] {
		m := ErrorToPB(e)
		m.Field = true
		out = append(out, m)
	}
	return out
}

// FieldErrorsFromPB is FieldErrorsToPB backwards.
func FieldErrorsFromPB(ms []*pb.Error) sdk.FieldErrors {
	var out sdk.FieldErrors
	for _, m := range ms {
		out = append(out, errorFromPB(m))
	}
	return out
}

// ToStatus turns a plugin's error into the status of its call or stream.
func ToStatus(err error) error {
	if err == nil {
		return nil
	}
	details := []protoadapt.MessageV1{}
	code := sdk.CodeOf(err)
	if fields, ok := errors.AsType[sdk.FieldErrors](err); ok {
		code = sdk.Invalid
		for _, m := range FieldErrorsToPB(fields) {
			details = append(details, protoadapt.MessageV1Of(m))
		}
	} else {
		details = append(details, protoadapt.MessageV1Of(ErrorToPB(err)))
	}
	s := status.New(grpcCode(code), Text(err.Error()))
	if with, detailErr := s.WithDetails(details...); detailErr == nil {
		s = with
	}
	return s.Err()
}

// FromStatus turns the status of a call or stream into the error that the plugin
// gave: a *sdk.Error or sdk.FieldErrors. ok is false when the status does not
// come from the plugin's code but from the connection.
func FromStatus(err error) (out error, ok bool) {
	s, isStatus := status.FromError(err)
	if err == nil || !isStatus {
		return err, false
	}
	var fields []*pb.Error
	for _, d := range s.Details() {
		m, isError := d.(*pb.Error)
		if !isError {
			continue
		}
		if !m.GetField() {
			return errorFromPB(m), true
		}
		fields = append(fields, m)
	}
	if len(fields) > 0 {
		return FieldErrorsFromPB(fields), true
	}
	if code, known := sdkCode(s.Code()); known {
		return &sdk.Error{Code: code, Msg: s.Message()}, true
	}
	return err, false
}

// Text makes a string fit for a message: valid UTF-8 of at most MaxText bytes.
func Text(s string) string {
	if len(s) > MaxText {
		s = s[:MaxText] + "..."
	}
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "\uFFFD")
	}
	return s
}
