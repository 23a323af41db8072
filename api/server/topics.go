package server

import (
	"context"
	"encoding/base64"
	"net/http"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/labstack/echo/v4"

	"github.com/millrace-io/millrace/api"
	"github.com/millrace-io/millrace/plugins/sdk"
	"github.com/millrace-io/millrace/runtime"
)

// Limits of one look into a topic.
const (
	maxRecords  = 1000
	defaultPeek = 100
	maxWait     = 30 * time.Second
)

func (s *Server) listTopics(c echo.Context) error {
	topics := []api.Topic{}
	for _, t := range s.o.Worker.Topics() {
		topics = append(topics, describeTopic(t))
	}
	return answer(c, http.StatusOK, topics)
}

func describeTopic(t runtime.TopicDetail) api.Topic {
	out := api.Topic{Name: t.Name, ID: t.ID.String(), Internal: t.Config.Internal, Cleanup: string(t.Config.Cleanup), Partitions: []api.Partition{}}
	for n, p := range t.Partitions {
		out.Partitions = append(out.Partitions, api.Partition{Partition: n, Start: p.Start, End: p.End})
	}
	return out
}

func (s *Server) getTopic(c echo.Context, name string) error {
	for _, t := range s.o.Worker.Topics() {
		if t.Name == name {
			return answer(c, http.StatusOK, describeTopic(t))
		}
	}
	return sdk.Errorf(sdk.NotFound, "topic.not_found", "topic %q does not exist", name)
}

// getRecords shows records of one partition: ?partition=0&offset=N|earliest|latest
// &limit=100&wait=MILLISECONDS. It waits for records as long as asked and answers
// with those that came.
func (s *Server) getRecords(c echo.Context, name string) error {
	partition, err := number(c, "partition", 0)
	if err != nil {
		return err
	}
	limit, err := number(c, "limit", defaultPeek)
	if err != nil {
		return err
	}
	wait, err := number(c, "wait", 0)
	if err != nil {
		return err
	}
	offset := runtime.Earliest
	switch c.QueryParam("offset") {
	case "", "earliest":
	case "latest":
		offset = runtime.Latest
	default:
		if offset, err = number(c, "offset", 0); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(c.Request().Context(), min(max(time.Duration(wait)*time.Millisecond, 50*time.Millisecond), maxWait))
	defer cancel()
	out := api.Records{Records: []api.Record{}}
	out.Next, err = s.o.Worker.Records(ctx, runtime.Spot{Topic: name, Partition: int32(partition), Offset: offset}, int(min(limit, maxRecords)), func(r runtime.RecordView) {
		out.Records = append(out.Records, view(r))
	})
	if err != nil {
		return err
	}
	return answer(c, http.StatusOK, out)
}

func number(c echo.Context, name string, def int64) (int64, error) {
	v := c.QueryParam(name)
	if v == "" {
		return def, nil
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil || n < 0 {
		return 0, sdk.FieldError(name, "request.invalid", "%s=%s is not a number from 0 on", name, v)
	}
	return n, nil
}

func view(r runtime.RecordView) api.Record {
	out := api.Record{Offset: r.Offset, Timestamp: r.Timestamp}
	binary := !utf8.Valid(r.Key) || !utf8.Valid(r.Value)
	if binary {
		out.Encoding = "base64"
	}
	show := func(b []byte) *string {
		if b == nil {
			return nil
		}
		s := string(b)
		if binary {
			s = base64.StdEncoding.EncodeToString(b)
		}
		return &s
	}
	out.Key, out.Value = show(r.Key), show(r.Value)
	for _, h := range r.Headers {
		v := string(h.Value)
		if !utf8.Valid(h.Value) || !binary && len(v) > 0 && v[0] < ' ' {
			v = base64.StdEncoding.EncodeToString(h.Value)
		}
		out.Headers = append(out.Headers, api.Header{Key: h.Key, Value: &v})
	}
	return out
}
