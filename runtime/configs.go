package runtime

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/millrace-io/millrace/plugins/sdk"
	"github.com/millrace-io/millrace/runtime/plan"
)

// Keys and values of the configs table have Kafka Connect's form.
type (
	connectorRow struct {
		Properties map[string]string `json:"properties"`
	}
	targetRow struct {
		State   plan.Target `json:"state"` // as workers before Kafka 3.5 read it
		StateV2 plan.Target `json:"state.v2"`
	}
	commitRow struct {
		Tasks int `json:"tasks"`
	}
)

func connectorKey(name string) string { return "connector-" + name }
func targetKey(name string) string    { return "target-state-" + name }
func commitKey(name string) string    { return "commit-" + name }

func jsonEntry(key string, v any) (entry, error) {
	b, err := json.Marshal(v)
	return entry{key, b}, err
}

func targetEntry(name string, t plan.Target) (entry, error) {
	row := targetRow{State: t, StateV2: t}
	if t == plan.Stopped {
		row.State = plan.Paused
	}
	return jsonEntry(targetKey(name), row)
}

// loadConnectors makes the connectors that the configs table holds.
func (w *Worker) loadConnectors() error {
	for key, value := range w.configs.snapshot() {
		name, ok := strings.CutPrefix(key, "connector-")
		if !ok {
			continue
		}
		var row connectorRow
		if err := json.Unmarshal(value, &row); err != nil {
			return fmt.Errorf("config of connector %q: %w", name, err)
		}
		c := &connector{name: name, config: row.Properties, reported: make(map[string]string)}
		c.plan = plan.Connector{Exists: true, Target: plan.Started, Revision: 1}
		if b, ok := w.configs.get(targetKey(name)); ok {
			var t targetRow
			if err := json.Unmarshal(b, &t); err != nil {
				return fmt.Errorf("target state of connector %q: %w", name, err)
			}
			c.plan.Target = t.StateV2
		}
		if b, ok := w.configs.get(commitKey(name)); ok && c.plan.Target == plan.Paused {
			var n commitRow
			if err := json.Unmarshal(b, &n); err != nil {
				return fmt.Errorf("task count of connector %q: %w", name, err)
			}
			for range n.Tasks {
				c.tasks = append(c.tasks, &task{config: row.Properties})
				c.plan.Tasks = append(c.plan.Tasks, plan.Task{Wanted: true, Revision: 1})
			}
		}
		w.connectors[name] = c
	}
	return nil
}

// putTaskCount stores how many tasks a connector has, so that a paused one shows
// them after a restart.
func (w *Worker) putTaskCount(ctx context.Context, name string, n int) error {
	e, err := jsonEntry(commitKey(name), commitRow{n})
	if err != nil {
		return err
	}
	return w.configs.put(ctx, w.writer, e)
}

// find returns a connector that exists. The caller holds w.mu.
func (w *Worker) find(name string) (*connector, error) {
	c := w.connectors[name]
	if c == nil || !c.plan.Exists {
		return nil, sdk.Errorf(sdk.NotFound, "connector.not_found", "Connector %s not found", name)
	}
	return c, nil
}

// CheckName refuses names that cannot be a connector's.
func CheckName(name string) error {
	if name == "" {
		return sdk.FieldError("name", "config.invalid", "Invalid value for configuration name: String must be non-empty")
	}
	if !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl) {
		return sdk.FieldError("name", "config.invalid", "Invalid value %q for configuration name: String may not contain control sequences", name)
	}
	return nil
}

// Create makes a connector. An initial target of "" means started. When it
// returns, the config is durable and visible; tasks come up afterwards.
func (w *Worker) Create(ctx context.Context, name string, config map[string]string, initial plan.Target) (Info, error) {
	w.configMu.Lock()
	defer w.configMu.Unlock()
	config, err := w.accept(ctx, name, config)
	if err != nil {
		return Info{}, err
	}
	w.mu.Lock()
	_, missing := w.find(name)
	w.mu.Unlock()
	if missing == nil {
		return Info{}, sdk.Errorf(sdk.Exists, "connector.exists", "Connector %s already exists", name)
	}
	if initial == "" {
		initial = plan.Started
	}
	return w.store(ctx, name, config, initial)
}

// Put creates a connector or replaces its config as a whole; the target state
// stays. created says which it was.
func (w *Worker) Put(ctx context.Context, name string, config map[string]string) (info Info, created bool, err error) {
	w.configMu.Lock()
	defer w.configMu.Unlock()
	config, err = w.accept(ctx, name, config)
	if err != nil {
		return Info{}, false, err
	}
	w.mu.Lock()
	c, missing := w.find(name)
	target := plan.Started
	if missing == nil {
		target = c.plan.Target
	}
	w.mu.Unlock()
	info, err = w.store(ctx, name, config, target)
	return info, missing != nil, err
}

// Patch merges changes into a connector's config: nil removes a key. The merged
// config is validated as a whole, and no other change can come in between.
func (w *Worker) Patch(ctx context.Context, name string, patch map[string]*string) (Info, error) {
	w.configMu.Lock()
	defer w.configMu.Unlock()
	w.mu.Lock()
	c, err := w.find(name)
	if err != nil {
		w.mu.Unlock()
		return Info{}, err
	}
	config, target := maps.Clone(c.config), c.plan.Target
	w.mu.Unlock()
	if v, ok := patch["name"]; ok && (v == nil || *v != name) {
		return Info{}, sdk.FieldError("name", "config.invalid", "the name of connector %s cannot be changed; create another one", name)
	}
	for k, v := range patch {
		if v == nil {
			delete(config, k)
		} else {
			config[k] = *v
		}
	}
	if config, err = w.accept(ctx, name, config); err != nil {
		return Info{}, err
	}
	return w.store(ctx, name, config, target)
}

// accept checks a config and returns it with its name.
func (w *Worker) accept(ctx context.Context, name string, config map[string]string) (map[string]string, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	if n, ok := config["name"]; ok && n != name {
		return nil, sdk.FieldError("name", "config.invalid", "Connector name configuration (%s) doesn't match connector name in the URL (%s)", n, name)
	}
	config = maps.Clone(config)
	if config == nil {
		config = make(map[string]string)
	}
	config["name"] = name
	v, err := w.Validate(ctx, config)
	if err != nil {
		return nil, err
	}
	return config, v.Err()
}

// store makes a config durable, then the wanted one. The caller holds w.configMu.
func (w *Worker) store(ctx context.Context, name string, config map[string]string, target plan.Target) (Info, error) {
	row, err := jsonEntry(connectorKey(name), connectorRow{config})
	if err != nil {
		return Info{}, err
	}
	state, err := targetEntry(name, target)
	if err != nil {
		return Info{}, err
	}
	if err := w.configs.put(ctx, w.writer, row, state); err != nil {
		return Info{}, storeError(err)
	}
	class, _ := w.o.Finder.Lookup(config["connector.class"])
	w.mu.Lock()
	defer w.mu.Unlock()
	defer w.wakeUp()
	c := w.connectors[name]
	if c == nil {
		c = &connector{name: name, reported: make(map[string]string)}
		w.connectors[name] = c
	}
	anew := !c.plan.Exists
	c.config, c.plan.Exists, c.plan.Target = config, true, target
	c.plan.Stale = c.plan.Process != plan.Absent && class.Path != c.class.Path
	if !c.plan.Stale {
		c.class = class
	}
	c.restart()
	info := c.info(class.Type)
	if anew {
		c.want(nil)
		info.Tasks = []TaskID{}
	}
	return info, nil
}

// restart makes the connector start anew: its task configs are asked for again.
// The caller holds w.mu.
func (c *connector) restart() {
	c.plan.Revision++
	c.plan.Failed, c.plan.RetryAt, c.attempts = false, time.Time{}, 0
	c.restarting = c.failure != nil
	if c.plan.Target != plan.Started {
		c.failure = nil // it is held, and starts anew when it may
	}
}

// Delete removes a connector. Its source offsets and its consumer group stay,
// for a connector of the same name that may come later, as in Kafka Connect.
func (w *Worker) Delete(ctx context.Context, name string) error {
	w.configMu.Lock()
	defer w.configMu.Unlock()
	w.mu.Lock()
	_, err := w.find(name)
	w.mu.Unlock()
	if err != nil {
		return err
	}
	if err := w.configs.put(ctx, w.writer, entry{connectorKey(name), nil}, entry{targetKey(name), nil}, entry{commitKey(name), nil}); err != nil {
		return storeError(err)
	}
	w.mu.Lock()
	c := w.connectors[name]
	c.plan.Exists = false
	c.plan.Revision++
	c.failure, c.restarting = nil, false
	w.mu.Unlock()
	w.wakeUp()
	return storeError(w.ResetTopics(ctx, name))
}

// SetTarget starts (resumes), pauses or stops a connector. It returns when the
// wish is durable; the state follows.
func (w *Worker) SetTarget(ctx context.Context, name string, target plan.Target) error {
	w.configMu.Lock()
	defer w.configMu.Unlock()
	w.mu.Lock()
	c, err := w.find(name)
	w.mu.Unlock()
	if err != nil {
		return sdk.Errorf(sdk.NotFound, "connector.not_found", "Unknown connector %s", name)
	}
	e, err := targetEntry(name, target)
	if err != nil {
		return err
	}
	if err := w.configs.put(ctx, w.writer, e); err != nil {
		return storeError(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	defer w.wakeUp()
	switch {
	case target == plan.Stopped:
		c.want(nil)
		c.plan.Planned, c.plan.Failed = 0, false
		c.failure, c.restarting = nil, false
	case target == plan.Started && c.plan.Target != plan.Started:
		c.plan.Revision++ // resuming asks for task configs again
	}
	c.plan.Target = target
	return nil
}

// Restart restarts the connector and, as the flags say, its tasks. It returns
// the status as it is about to be.
func (w *Worker) Restart(_ context.Context, name string, includeTasks, onlyFailed bool) (Status, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c, err := w.find(name)
	if err != nil {
		return Status{}, sdk.Errorf(sdk.NotFound, "connector.not_found", "Unknown connector: %s", name)
	}
	defer w.wakeUp()
	status := w.statusOf(c)
	if !onlyFailed || status.Connector.State == StateFailed {
		c.restart()
		status.Connector.State = StateRestarting
	}
	for i := range c.tasks {
		if i < len(status.Tasks) && includeTasks && (!onlyFailed || status.Tasks[i].State == StateFailed) {
			c.restartTask(i)
			status.Tasks[i].State = StateRestarting
		}
	}
	return status, nil
}

// RestartTask restarts one task, whatever its state.
func (w *Worker) RestartTask(_ context.Context, name string, id int) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	c, err := w.find(name)
	if err != nil {
		return sdk.Errorf(sdk.NotFound, "connector.not_found", "Unknown connector: %s", name)
	}
	if id < 0 || id >= len(c.tasks) || !c.plan.Tasks[id].Wanted {
		return sdk.Errorf(sdk.NotFound, "task.not_found", "Unknown task: %s-%d", name, id)
	}
	c.restartTask(id)
	w.wakeUp()
	return nil
}

// Names returns the connectors' names, sorted.
func (w *Worker) Names() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	names := []string{}
	for name, c := range w.connectors {
		if c.plan.Exists {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// TaskID names one task, in the form REST returns it.
type TaskID struct {
	Connector string `json:"connector"`
	Task      int    `json:"task"`
}

// Info is a connector with its config and tasks, in the form REST returns it.
type Info struct {
	Name   string            `json:"name"`
	Config map[string]string `json:"config"`
	Tasks  []TaskID          `json:"tasks"`
	Type   string            `json:"type"` // source, sink or unknown
}

// info describes the connector. The caller holds w.mu.
func (c *connector) info(classType string) Info {
	info := Info{Name: c.name, Config: maps.Clone(c.config), Tasks: []TaskID{}, Type: classType}
	for i, p := range c.plan.Tasks {
		if p.Wanted {
			info.Tasks = append(info.Tasks, TaskID{c.name, i})
		}
	}
	return info
}

// typeOf returns source, sink, or unknown for a class that is not there.
func (w *Worker) typeOf(config map[string]string) string {
	if class, ok := w.o.Finder.Lookup(config["connector.class"]); ok {
		return class.Type
	}
	return "unknown"
}

// Info returns a connector.
func (w *Worker) Info(name string) (Info, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c, err := w.find(name)
	if err != nil {
		return Info{}, err
	}
	return c.info(w.typeOf(c.config)), nil
}

// TaskInfo is one task with its config, in the form REST returns it.
type TaskInfo struct {
	ID     TaskID            `json:"id"`
	Config map[string]string `json:"config"`
}

// Tasks returns a connector's tasks with their configs.
func (w *Worker) Tasks(name string) ([]TaskInfo, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c, err := w.find(name)
	if err != nil {
		return nil, err
	}
	tasks := []TaskInfo{}
	for i, t := range c.tasks {
		if !c.plan.Tasks[i].Wanted {
			continue
		}
		config := maps.Clone(t.config)
		config["task.class"] = c.class.Name + "Task"
		tasks = append(tasks, TaskInfo{TaskID{name, i}, config})
	}
	return tasks, nil
}

// ParseTaskNumber reads a task's number as Connect's router does.
func ParseTaskNumber(s string) (int, bool) {
	n, err := strconv.ParseInt(s, 10, 32)
	return int(n), err == nil && n >= 0
}
