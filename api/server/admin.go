package server

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/millrace-io/millrace/api"
	"github.com/millrace-io/millrace/plugins/sdk"
)

// connectLevel is the level of Kafka Connect's API that this server speaks.
// Clients read its first two numbers.
const connectLevel = "4.3.0"

// healthTimeout is how long the deciding goroutine may take to answer.
const healthTimeout = 10 * time.Second

func (s *Server) root(c echo.Context) error {
	return answer(c, http.StatusOK, api.Root{
		Version: connectLevel, Commit: s.o.Commit, KafkaClusterID: s.o.ClusterID, Server: "millrace/" + s.o.Version,
	})
}

type healthState struct {
	Status  string `json:"status"`
	Message string `json:"message"`
}

func (s *Server) health(c echo.Context) error {
	if !s.ready() {
		return answer(c, http.StatusServiceUnavailable, healthState{"starting", "Worker is still starting up."})
	}
	ctx, cancel := context.WithTimeout(c.Request().Context(), healthTimeout)
	defer cancel()
	if !s.o.Worker.Healthy(ctx) {
		return answer(c, http.StatusInternalServerError, healthState{"unhealthy", "Worker was unable to handle this request and may be unable to handle other requests."})
	}
	return answer(c, http.StatusOK, healthState{"healthy", "Worker has completed startup and is ready to handle requests."})
}

// live says that the process turns over, whatever its connectors do.
func (s *Server) live(c echo.Context) error {
	return answer(c, http.StatusOK, api.Message{Message: "alive"})
}

// readiness says that the log is recovered and requests are served.
func (s *Server) readiness(c echo.Context) error {
	if !s.ready() {
		return answer(c, http.StatusServiceUnavailable, api.Message{Message: "starting"})
	}
	return answer(c, http.StatusOK, api.Message{Message: "ready"})
}

func (s *Server) listLoggers(c echo.Context) error {
	return answer(c, http.StatusOK, s.o.Levels.All())
}

func (s *Server) getLogger(c echo.Context, name string) error {
	l, ok := s.o.Levels.Get(name)
	if !ok {
		return sdk.Errorf(sdk.NotFound, "logger.not_found", "Logger %s not found.", name)
	}
	return answer(c, http.StatusOK, l)
}

func (s *Server) putLogger(c echo.Context, name string) error {
	body, err := object(c)
	if err != nil {
		return err
	}
	level, err := text("level", body["level"])
	switch {
	case err != nil:
		return err
	case level == nil:
		return invalid("Desired 'level' parameter was not specified in request.")
	}
	changed, err := s.o.Levels.Set(name, *level)
	if err != nil {
		return err
	}
	if strings.EqualFold(c.QueryParam("scope"), "cluster") {
		return c.NoContent(http.StatusNoContent)
	}
	return answer(c, http.StatusOK, changed)
}
