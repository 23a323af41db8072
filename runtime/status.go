package runtime

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/millrace-io/millrace/logstore"
	"github.com/millrace-io/millrace/plugins/host"
	"github.com/millrace-io/millrace/plugins/sdk"
	"github.com/millrace-io/millrace/runtime/plan"
)

// State is what is seen of a connector or a task; clients know no others.
type State string

// The states, by Kafka Connect's names. A task is never StateStopped.
const (
	StateUnassigned State = "UNASSIGNED"
	StateRunning    State = "RUNNING"
	StatePaused     State = "PAUSED"
	StateStopped    State = "STOPPED"
	StateFailed     State = "FAILED"
	StateRestarting State = "RESTARTING"
)

// ConnectorStatus is the state of a connector. All its members are strings:
// clients decode it so.
type ConnectorStatus struct {
	State    State  `json:"state"`
	WorkerID string `json:"worker_id"`
	Version  string `json:"version"`
	Trace    string `json:"trace,omitempty"`
}

// TaskStatus is the state of a task.
type TaskStatus struct {
	ID       int    `json:"id"`
	State    State  `json:"state"`
	WorkerID string `json:"worker_id"`
	Version  string `json:"version"`
	Trace    string `json:"trace,omitempty"`
}

// Condition is a state under a stable dotted code, for people and alerts.
type Condition struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// TaskDetail is what is known of a task beyond Connect's status.
type TaskDetail struct {
	ID        int            `json:"id"`
	Condition *Condition     `json:"condition,omitempty"`
	Progress  *sdk.Progress  `json:"progress,omitempty"`
	Records   *host.Counters `json:"records,omitempty"`
	Restarts  int64          `json:"restarts"`
	RetryAt   *time.Time     `json:"retry_at,omitempty"`
}

// ProcessDetail is what is known of a connector's process.
type ProcessDetail struct {
	PID        int     `json:"pid"`
	RSSBytes   int64   `json:"rss_bytes"`
	CPUSeconds float64 `json:"cpu_seconds"`
	Restarts   int64   `json:"restarts"`
}

// Lag is how far a sink is behind on one partition.
type Lag struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Records   int64  `json:"records"`
}

// Status is the whole status of a connector: Connect's members first, then ours.
type Status struct {
	Name      string          `json:"name"`
	Connector ConnectorStatus `json:"connector"`
	Tasks     []TaskStatus    `json:"tasks"`
	Type      string          `json:"type"`

	Condition *Condition     `json:"condition,omitempty"`
	Details   []TaskDetail   `json:"details,omitempty"`
	Process   *ProcessDetail `json:"process,omitempty"`
	Lag       []Lag          `json:"lag,omitempty"`
}

// Status returns a connector's status.
func (w *Worker) Status(name string) (Status, error) {
	w.mu.Lock()
	c, err := w.find(name)
	if err != nil {
		w.mu.Unlock()
		return Status{}, sdk.Errorf(sdk.NotFound, "connector.not_found", "No status found for connector %s", name)
	}
	s := w.statusOf(c)
	w.detail(c, &s)
	process, config := c.process, c.config
	restarts := c.restarts
	w.mu.Unlock()
	if process != nil {
		rss, cpu := process.Usage()
		s.Process = &ProcessDetail{process.PID(), rss, cpu.Seconds(), restarts}
	}
	if s.Type == "sink" {
		for tp, n := range w.lag(groupOf(name, config), config) {
			s.Lag = append(s.Lag, Lag{tp.Topic, tp.Partition, n})
		}
		sortLag(s.Lag)
	}
	return s, nil
}

// TaskStatus returns one task's status.
func (w *Worker) TaskStatus(name string, id int) (TaskStatus, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if c, err := w.find(name); err == nil {
		for _, t := range w.statusOf(c).Tasks {
			if t.ID == id {
				return t, nil
			}
		}
	}
	return TaskStatus{}, sdk.Errorf(sdk.NotFound, "task.not_found", "No status found for task %s-%d", name, id)
}

// statusOf tells the states from what is seen. The caller holds w.mu.
func (w *Worker) statusOf(c *connector) Status {
	s := Status{Name: c.name, Type: w.typeOf(c.config), Tasks: []TaskStatus{}}
	s.Connector = ConnectorStatus{State: c.state(), WorkerID: w.o.ID, Version: c.class.Version, Trace: trace(c.failure)}
	for i, t := range c.tasks {
		if c.plan.Tasks[i].Wanted {
			s.Tasks = append(s.Tasks, TaskStatus{ID: i, State: c.taskState(i), WorkerID: w.o.ID, Version: c.class.Version, Trace: trace(t.failure)})
		}
	}
	return s
}

func (c *connector) state() State {
	switch {
	case c.plan.Target == plan.Stopped && c.idle():
		return StateStopped
	case c.failure != nil && !c.restarting:
		return StateFailed
	case c.failure != nil || c.plan.Stale:
		return StateRestarting
	case c.plan.Target == plan.Paused:
		for _, t := range c.plan.Tasks {
			if t.Phase == plan.Up && !t.Paused {
				return StateRunning
			}
		}
		return StatePaused
	case c.plan.Process == plan.Up || c.plan.Process == plan.Stopping:
		return StateRunning
	}
	return StateUnassigned
}

func (c *connector) taskState(i int) State {
	p, t := c.plan.Tasks[i], c.tasks[i]
	switch {
	case t.failure != nil && !t.restarting:
		return StateFailed
	case t.failure != nil:
		return StateRestarting
	case p.Phase == plan.Up && p.Paused, p.Phase == plan.Absent && c.plan.Target == plan.Paused:
		return StatePaused
	case p.Phase == plan.Up:
		return StateRunning
	case p.Phase == plan.Stopping:
		if p.Paused {
			return StatePaused
		}
		return StateRunning
	}
	return StateUnassigned
}

// trace prints an error for people: the sentence first, then its causes.
func trace(err error) string {
	if err == nil {
		return ""
	}
	var b strings.Builder
	b.WriteString(strings.TrimSpace(err.Error()))
	b.WriteByte('\n')
	said := err.Error()
	for cause := errors.Unwrap(err); cause != nil; cause = errors.Unwrap(cause) {
		if text := cause.Error(); !strings.Contains(said, text) {
			b.WriteString("Caused by: " + text + "\n")
			said += text
		}
	}
	return b.String()
}

// detail adds what Connect does not know. The caller holds w.mu.
func (w *Worker) detail(c *connector, s *Status) {
	for i, t := range c.tasks {
		p := c.plan.Tasks[i]
		if !p.Wanted {
			continue
		}
		counters := t.counters
		d := TaskDetail{ID: i, Progress: t.progress, Records: &counters, Restarts: t.restarts}
		if t.condition.Code != "" {
			condition := t.condition
			d.Condition = &condition
		}
		if t.failure != nil {
			d.Condition = conditionOf(t.failure)
			if p.RetryAt.After(time.Now()) {
				at := p.RetryAt
				d.RetryAt = &at
			}
		}
		if s.Condition == nil {
			s.Condition = d.Condition
		}
		s.Details = append(s.Details, d)
	}
	if c.failure != nil {
		s.Condition = conditionOf(c.failure)
	}
}

// conditionOf names an error by its reason, or by its code.
func conditionOf(err error) *Condition {
	reason := sdk.ReasonOf(err)
	switch {
	case errors.Is(err, host.ErrProcessGone):
		reason = "plugin.exited"
	case reason == "":
		reason = "task." + string(sdk.CodeOf(err))
	}
	return &Condition{Code: reason, Message: strings.TrimSpace(err.Error())}
}

// statusRow is a row of the status table, in Connect's form.
type statusRow struct {
	State      State  `json:"state"`
	Trace      string `json:"trace"`
	WorkerID   string `json:"worker_id"`
	Generation int    `json:"generation"`
	Version    string `json:"version"`
}

// statusChanges returns what has changed of a connector's states since it was
// asked last. The caller holds w.mu.
func (w *Worker) statusChanges(c *connector) []entry {
	if w.draining {
		return nil
	}
	now := make(map[string]string, 1+len(c.tasks))
	if c.plan.Exists {
		s := w.statusOf(c)
		now["status-connector-"+c.name] = rowText(s.Connector.State, s.Connector.Trace, w.o.ID, s.Connector.Version)
		for _, t := range s.Tasks {
			now["status-task-"+c.name+"-"+strconv.Itoa(t.ID)] = rowText(t.State, t.Trace, w.o.ID, t.Version)
		}
	}
	var changes []entry
	for k, v := range now {
		if c.reported[k] != v {
			changes = append(changes, entry{k, []byte(v)})
		}
	}
	for k := range c.reported {
		if _, ok := now[k]; !ok {
			changes = append(changes, entry{k, nil})
		}
	}
	c.reported = now
	return changes
}

// storeStatus writes changes to the status table without waiting until they are
// durable: the table is for readers of the log, the truth is what is seen.
func (w *Worker) storeStatus(ctx context.Context, changes []entry) {
	if len(changes) == 0 {
		return
	}
	b, err := w.status.batch(changes)
	if err == nil {
		err = w.writer.Append(ctx, &logstore.Unit{Batches: []logstore.Batch{b}}, func(_ logstore.Result, err error) {
			if err == nil {
				w.status.apply(changes)
			}
		})
	}
	if err != nil {
		w.logger.Warn("status is not stored", "err", err)
	}
}

func rowText(s State, trace, worker, version string) string {
	b, err := json.Marshal(statusRow{s, trace, worker, 1, version})
	if err != nil {
		return ""
	}
	return string(b)
}

func sortLag(lag []Lag) {
	slices.SortFunc(lag, func(a, b Lag) int {
		return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition))
	})
}
