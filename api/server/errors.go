package server

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"

	"github.com/labstack/echo/v4"

	"github.com/millrace-io/millrace/api"
	"github.com/millrace-io/millrace/plugins/sdk"
)

// statusOf is the one table from an error's code to an HTTP status.
func statusOf(code sdk.Code) int {
	switch code {
	case sdk.Invalid:
		return http.StatusBadRequest
	case sdk.NotFound:
		return http.StatusNotFound
	case sdk.Exists, sdk.Conflict:
		return http.StatusConflict
	case sdk.Unavailable:
		return http.StatusServiceUnavailable
	case sdk.Corrupt, sdk.Internal:
	}
	return http.StatusInternalServerError
}

// answerError writes every answer that is no success: Connect's two members, and
// our code and field in headers. An unknown cause is logged, not sent.
func (s *Server) answerError(err error, c echo.Context) {
	if c.Response().Committed {
		return
	}
	e := api.Error{}
	var coded *sdk.Error
	var large *http.MaxBytesError
	var framework *echo.HTTPError
	switch {
	case errors.As(err, &large):
		e.Status, e.Code = http.StatusRequestEntityTooLarge, "request.too_large"
		e.Message = "the body is larger than 2 MiB, which no config needs; send less"
	case errors.As(err, &framework):
		e.Status = framework.Code
		e.Message, _ = framework.Message.(string)
		if e.Message == "" || e.Message == http.StatusText(e.Status) {
			e.Message = "HTTP " + strconv.Itoa(e.Status) + " " + http.StatusText(e.Status)
		}
	case errors.As(err, &coded) && coded.Code != sdk.Internal:
		e.Status, e.Message, e.Code, e.Field = statusOf(coded.Code), coded.Error(), coded.Reason, coded.Key
	case errors.Is(err, context.DeadlineExceeded):
		e.Status, e.Message = http.StatusInternalServerError, "Request timed out. The worker did not finish it in time; it was cancelled, so that it can be sent again."
	default:
		e.Status, e.Message = http.StatusInternalServerError, "the worker met an error of its own; its log says more"
		s.o.Logger.Error("request failed", "method", c.Request().Method, "path", c.Path(), "err", err)
	}
	h := c.Response().Header()
	if e.Code != "" {
		h.Set(api.CodeHeader, e.Code)
	}
	if e.Field != "" {
		h.Set(api.FieldHeader, e.Field)
	}
	if err := answer(c, e.Status, e); err != nil {
		s.o.Logger.Debug("answer is not sent", "err", err)
	}
}

// answer writes v as JSON without a charset, as Connect does.
func answer(c echo.Context, status int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return c.Blob(status, "application/json", b)
}
