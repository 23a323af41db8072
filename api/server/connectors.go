package server

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"

	"github.com/labstack/echo/v4"

	"github.com/millrace-io/millrace/plugins/sdk"
	"github.com/millrace-io/millrace/runtime"
	"github.com/millrace-io/millrace/runtime/plan"
)

// param returns a path segment, decoded once.
func param(c echo.Context, name string) (string, error) {
	v, err := url.PathUnescape(c.Param(name))
	if err != nil {
		return "", echo.NewHTTPError(http.StatusBadRequest, "the path is not percent-encoded as it should be")
	}
	return v, nil
}

// named makes a handler of one that works on what the path names, as
// /connectors/:name does.
func named(segment string, h func(c echo.Context, name string) error) echo.HandlerFunc {
	return func(c echo.Context) error {
		name, err := param(c, segment)
		if err != nil {
			return err
		}
		return h(c, name)
	}
}

// expanded is one connector of GET /connectors?expand=...
type expanded struct {
	Info   *runtime.Info   `json:"info,omitempty"`
	Status *runtime.Status `json:"status,omitempty"`
}

func (s *Server) listConnectors(c echo.Context) error {
	names := s.o.Worker.Names()
	wants := c.QueryParams()["expand"]
	if len(wants) == 0 {
		return answer(c, http.StatusOK, names)
	}
	out := make(map[string]expanded, len(names))
	for _, name := range names {
		var e expanded
		for _, want := range wants {
			switch want {
			case "info":
				if info, err := s.o.Worker.Info(name); err == nil {
					e.Info = &info
				}
			case "status":
				if status, err := s.o.Worker.Status(name); err == nil {
					e.Status = &status
				}
			}
		}
		out[name] = e
	}
	return answer(c, http.StatusOK, out)
}

func (s *Server) createConnector(c echo.Context) error {
	body, err := object(c)
	if err != nil {
		return err
	}
	if err := only(body, "a new connector", "name", "config", "initial_state"); err != nil {
		return err
	}
	raw, ok := body["config"]
	if !ok {
		return invalid("a new connector needs the member \"config\", an object of keys and values")
	}
	m, err := members(raw, `"config"`)
	if err != nil {
		return err
	}
	config, err := configMap(m)
	if err != nil {
		return err
	}
	given, err := text("name", body["name"])
	if err != nil {
		return err
	}
	name := config["name"]
	if given != nil {
		name = strings.TrimSpace(*given)
	}
	target, err := initialState(body["initial_state"])
	if err != nil {
		return err
	}
	info, err := s.o.Worker.Create(c.Request().Context(), name, config, target)
	if err != nil {
		return err
	}
	return created(c, info)
}

func initialState(raw json.RawMessage) (plan.Target, error) {
	v, err := text("initial_state", raw)
	if err != nil || v == nil {
		return plan.Started, err
	}
	switch strings.ToUpper(*v) {
	case "RUNNING":
		return plan.Started, nil
	case "PAUSED":
		return plan.Paused, nil
	case "STOPPED":
		return plan.Stopped, nil
	}
	return "", sdk.FieldError("initial_state", "request.invalid", "initial_state %q is none of RUNNING, PAUSED and STOPPED", *v)
}

// created answers 201 with the address of the new connector.
func created(c echo.Context, info runtime.Info) error {
	r := c.Request()
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	c.Response().Header().Set(echo.HeaderLocation, scheme+"://"+r.Host+"/connectors/"+url.PathEscape(info.Name))
	return answer(c, http.StatusCreated, info)
}

func (s *Server) getConnector(c echo.Context, name string) error {
	info, err := s.o.Worker.Info(name)
	if err != nil {
		return err
	}
	return answer(c, http.StatusOK, info)
}

func (s *Server) deleteConnector(c echo.Context, name string) error {
	if err := s.o.Worker.Delete(c.Request().Context(), name); err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}

func (s *Server) getConfig(c echo.Context, name string) error {
	info, err := s.o.Worker.Info(name)
	if err != nil {
		return err
	}
	return answer(c, http.StatusOK, info.Config)
}

func (s *Server) putConfig(c echo.Context, name string) error {
	body, err := object(c)
	if err != nil {
		return err
	}
	config, err := configMap(body)
	if err != nil {
		return err
	}
	info, isNew, err := s.o.Worker.Put(c.Request().Context(), name, config)
	switch {
	case err != nil:
		return err
	case isNew:
		return created(c, info)
	}
	return answer(c, http.StatusOK, info)
}

func (s *Server) patchConfig(c echo.Context, name string) error {
	body, err := object(c)
	if err != nil {
		return err
	}
	patch := make(map[string]*string, len(body))
	for k, raw := range body {
		if patch[k], err = text(k, raw); err != nil {
			return err
		}
	}
	info, err := s.o.Worker.Patch(c.Request().Context(), name, patch)
	if err != nil {
		return err
	}
	return answer(c, http.StatusOK, info)
}

func (s *Server) getStatus(c echo.Context, name string) error {
	status, err := s.o.Worker.Status(name)
	if err != nil {
		return err
	}
	return answer(c, http.StatusOK, status)
}

func (s *Server) restartConnector(c echo.Context, name string) error {
	includeTasks, onlyFailed := flag(c, "includeTasks", false), flag(c, "onlyFailed", false)
	status, err := s.o.Worker.Restart(c.Request().Context(), name, includeTasks, onlyFailed)
	switch {
	case err != nil:
		return err
	case includeTasks || onlyFailed:
		return answer(c, http.StatusAccepted, status)
	}
	return c.NoContent(http.StatusNoContent)
}

// setTarget makes the handler that starts, pauses or stops a connector.
func (s *Server) setTarget(target plan.Target, status int) func(echo.Context, string) error {
	return func(c echo.Context, name string) error {
		if err := s.o.Worker.SetTarget(c.Request().Context(), name, target); err != nil {
			return err
		}
		return c.NoContent(status)
	}
}

func (s *Server) getTasks(c echo.Context, name string) error {
	tasks, err := s.o.Worker.Tasks(name)
	if err != nil {
		return err
	}
	return answer(c, http.StatusOK, tasks)
}

// task returns the connector and the number of a task path; what is no number is
// a path that does not exist.
func task(c echo.Context) (name string, id int, err error) {
	if name, err = param(c, "name"); err != nil {
		return "", 0, err
	}
	id, ok := runtime.ParseTaskNumber(c.Param("task"))
	if !ok {
		return "", 0, echo.ErrNotFound
	}
	return name, id, nil
}

func (s *Server) getTaskStatus(c echo.Context) error {
	name, id, err := task(c)
	if err != nil {
		return err
	}
	status, err := s.o.Worker.TaskStatus(name, id)
	if err != nil {
		return err
	}
	return answer(c, http.StatusOK, status)
}

func (s *Server) restartTask(c echo.Context) error {
	name, id, err := task(c)
	if err != nil {
		return err
	}
	if err := s.o.Worker.RestartTask(c.Request().Context(), name, id); err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}

// refuseInternal answers the paths that Connect's workers use among themselves.
func (s *Server) refuseInternal(echo.Context) error {
	return echo.NewHTTPError(http.StatusForbidden, "this path is for workers among themselves; this worker has no others")
}

func (s *Server) getActiveTopics(c echo.Context, name string) error {
	return answer(c, http.StatusOK, map[string]any{name: map[string]any{"topics": s.o.Worker.ActiveTopics(name)}})
}

func (s *Server) resetActiveTopics(c echo.Context, name string) error {
	if err := s.o.Worker.ResetTopics(c.Request().Context(), name); err != nil {
		return err
	}
	return c.NoContent(http.StatusAccepted)
}
