// Package server is the worker's REST API: the paths, statuses and bodies of
// Kafka Connect's, so that its clients work unchanged, and a few of our own
// beside them (/topics, /livez, /readyz, /metrics).
package server

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/millrace-io/millrace/runtime"
	"github.com/millrace-io/millrace/runtime/plan"
)

// Limits of one request. A config with a value of 1 MiB still passes.
const (
	maxBody        = 2 << 20
	maxHeader      = 32 << 10
	requestTimeout = 90 * time.Second
	headerTimeout  = 5 * time.Second
	idleTimeout    = 60 * time.Second
)

// Options are what a Server is made of.
type Options struct {
	Worker    *runtime.Worker
	Version   string // Millrace's own, such as "0.1.0"
	Commit    string
	ClusterID string
	Levels    *Levels // what /admin/loggers changes
	// Token, when it is not empty, is asked of every request but /livez and
	// /readyz, as "Authorization: Bearer".
	Token    string
	Gatherer prometheus.Gatherer // what /metrics shows; nil for none
	Logger   *slog.Logger        // nil discards
}

// Server answers the REST API. Use it as an http.Handler, or by HTTP.
type Server struct {
	o    Options
	echo *echo.Echo
}

// New makes a Server.
func New(o Options) *Server {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{o: o, echo: echo.New()}
	s.echo.HTTPErrorHandler = s.answerError
	s.echo.Pre(s.shapePath)
	s.echo.Use(s.authenticate, s.gate)
	s.routes()
	return s
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
	defer cancel()
	s.echo.ServeHTTP(w, r.WithContext(ctx))
}

// HTTP returns an http.Server with the API's limits.
func (s *Server) HTTP() *http.Server {
	return &http.Server{
		Handler: s, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		ErrorLog: slog.NewLogLogger(s.o.Logger.Handler(), slog.LevelDebug),
	}
}

// routes is the whole surface.
func (s *Server) routes() {
	s.get("/", s.root)
	s.get("/health", s.health)
	s.get("/livez", s.live)
	s.get("/readyz", s.readiness)
	if s.o.Gatherer != nil {
		s.get("/metrics", echo.WrapHandler(promhttp.HandlerFor(s.o.Gatherer, promhttp.HandlerOpts{})))
	}

	s.get("/connectors", s.listConnectors)
	s.echo.POST("/connectors", s.createConnector)
	s.get("/connectors/:name", named("name", s.getConnector))
	s.echo.DELETE("/connectors/:name", named("name", s.deleteConnector))
	s.get("/connectors/:name/config", named("name", s.getConfig))
	s.echo.PUT("/connectors/:name/config", named("name", s.putConfig))
	s.echo.PATCH("/connectors/:name/config", named("name", s.patchConfig))
	s.get("/connectors/:name/status", named("name", s.getStatus))
	s.echo.POST("/connectors/:name/restart", named("name", s.restartConnector))
	s.echo.PUT("/connectors/:name/pause", named("name", s.setTarget(plan.Paused, http.StatusAccepted)))
	s.echo.PUT("/connectors/:name/resume", named("name", s.setTarget(plan.Started, http.StatusAccepted)))
	s.echo.PUT("/connectors/:name/stop", named("name", s.setTarget(plan.Stopped, http.StatusNoContent)))
	s.get("/connectors/:name/tasks", named("name", s.getTasks))
	s.echo.POST("/connectors/:name/tasks", s.refuseInternal)
	s.echo.PUT("/connectors/:name/fence", s.refuseInternal)
	s.get("/connectors/:name/tasks/:task/status", s.getTaskStatus)
	s.echo.POST("/connectors/:name/tasks/:task/restart", s.restartTask)
	s.get("/connectors/:name/topics", named("name", s.getActiveTopics))
	s.echo.PUT("/connectors/:name/topics/reset", named("name", s.resetActiveTopics))
	s.get("/connectors/:name/offsets", named("name", s.getOffsets))
	s.echo.PATCH("/connectors/:name/offsets", named("name", s.patchOffsets))
	s.echo.DELETE("/connectors/:name/offsets", named("name", s.deleteOffsets))

	s.get("/connector-plugins", s.listPlugins)
	s.get("/connector-plugins/:plugin/config", named("plugin", s.getPluginConfig))
	s.echo.PUT("/connector-plugins/:plugin/config/validate", named("plugin", s.validate))

	s.get("/admin/loggers", s.listLoggers)
	s.get("/admin/loggers/:logger", named("logger", s.getLogger))
	s.echo.PUT("/admin/loggers/:logger", named("logger", s.putLogger))

	s.get("/topics", s.listTopics)
	s.get("/topics/:topic", named("topic", s.getTopic))
	s.get("/topics/:topic/records", named("topic", s.getRecords))
	s.options()
}

// get adds a GET route and the HEAD beside it.
func (s *Server) get(path string, h echo.HandlerFunc) {
	s.echo.GET(path, h)
	s.echo.HEAD(path, h)
}

// options adds an OPTIONS route to every path, which names its methods.
func (s *Server) options() {
	methods := make(map[string][]string)
	for _, r := range s.echo.Routes() {
		methods[r.Path] = append(methods[r.Path], r.Method)
	}
	for path, m := range methods {
		allow := strings.Join(sorted(append(m, http.MethodOptions)), ",")
		s.echo.OPTIONS(path, func(c echo.Context) error {
			c.Response().Header().Set(echo.HeaderAllow, allow)
			return c.Blob(http.StatusOK, "text/plain", []byte(strings.ReplaceAll(allow, ",", ", ")))
		})
	}
}

// shapePath makes one trailing slash mean nothing and routes on the escaped
// path, so that an encoded slash in a name survives.
func (s *Server) shapePath(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		u := c.Request().URL
		path := u.EscapedPath()
		if strings.Contains(path, "//") {
			return echo.NewHTTPError(http.StatusBadRequest, "the path holds two slashes in a row")
		}
		if len(path) > 1 {
			path = strings.TrimSuffix(path, "/")
		}
		u.RawPath = path
		return next(c)
	}
}

// open reports whether a path is answered without a token and before the worker
// is ready.
func open(path string) bool { return path == "/livez" || path == "/readyz" }

// authenticate asks for the bearer token. Digests are compared, so that the time
// taken tells nothing about the token.
func (s *Server) authenticate(next echo.HandlerFunc) echo.HandlerFunc {
	if s.o.Token == "" {
		return next
	}
	want := sha256.Sum256([]byte(s.o.Token))
	return func(c echo.Context) error {
		scheme, token, _ := strings.Cut(c.Request().Header.Get(echo.HeaderAuthorization), " ")
		got := sha256.Sum256([]byte(token))
		if open(c.Path()) || strings.EqualFold(scheme, "bearer") && subtle.ConstantTimeCompare(got[:], want[:]) == 1 {
			return next(c)
		}
		c.Response().Header().Set(echo.HeaderWWWAuthenticate, "Bearer")
		return echo.NewHTTPError(http.StatusUnauthorized, "this worker asks for a token: send it as Authorization: Bearer TOKEN")
	}
}

// gate answers 503 until the worker is ready.
func (s *Server) gate(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		if open(c.Path()) || c.Path() == "/health" || s.ready() {
			return next(c)
		}
		h := c.Response().Header()
		h.Set(echo.HeaderRetryAfter, "1")
		h.Set("X-Connect-Gate", "starting")
		return echo.NewHTTPError(http.StatusServiceUnavailable, "the worker is starting; try again in a moment")
	}
}

func (s *Server) ready() bool {
	select {
	case <-s.o.Worker.Ready():
		return true
	default:
		return false
	}
}
