package runtime

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/millrace-io/millrace/plugins/host"
	"github.com/millrace-io/millrace/plugins/sdk"
	"github.com/millrace-io/millrace/runtime/plan"
)

// connector is what the worker knows of one connector; Worker.mu guards it. The
// plan holds what is decided on, the rest is what actions need and what statuses
// tell.
type connector struct {
	name   string
	config map[string]string // as the user wrote it, with name
	class  host.Class        // of the process; known once it was looked up
	plan   plan.Connector
	tasks  []*task // as long as plan.Tasks

	process    *host.Process
	attempts   int   // process starts and plannings that failed since the last progress
	failure    error // why the connector failed or is being restarted
	restarting bool
	restarts   int64

	reported map[string]string // what the status table was told last
}

// task is what the worker knows of one task; Worker.mu guards it.
type task struct {
	config     map[string]string
	run        *taskRun // while its phase is not Absent
	attempts   int
	failure    error
	restarting bool
	progress   *sdk.Progress
	condition  Condition
	counters   host.Counters
	restarts   int64
}

// pauser is a running stream that can be held.
type pauser interface {
	Pause()
	Resume()
}

// taskRun is one start of a task.
type taskRun struct {
	cancel context.CancelFunc // asks the task to end in order
	stream pauser             // set when it is up
}

// idle reports whether nothing of the connector runs.
func (c *connector) idle() bool {
	for _, t := range c.plan.Tasks {
		if t.Phase != plan.Absent {
			return false
		}
	}
	return c.plan.Process == plan.Absent && !c.plan.Planning
}

// begin takes an action up: it moves the phase and starts the goroutine that
// does it. The caller holds w.mu.
func (w *Worker) begin(ctx context.Context, c *connector, a plan.Action) {
	switch a.Verb {
	case plan.StartProcess:
		c.plan.Process = plan.Starting
		w.spawn(func() { w.startProcess(ctx, c) })
	case plan.StopProcess:
		c.plan.Process = plan.Stopping
		w.spawn(func() { w.stopProcess(ctx, c) })
	case plan.PlanTasks:
		c.plan.Planning = true
		q := question{process: c.process, class: c.class.Name, revision: c.plan.Revision, config: maps.Clone(c.config)}
		w.spawn(func() { w.planTasks(ctx, c, q) })
	case plan.StartTask:
		w.beginTask(ctx, c, a.Task)
	case plan.StopTask:
		c.plan.Tasks[a.Task].Phase = plan.Stopping
		c.tasks[a.Task].run.cancel()
	case plan.PauseTask:
		c.plan.Tasks[a.Task].Paused = true
		c.tasks[a.Task].run.stream.Pause()
	case plan.ResumeTask:
		c.plan.Tasks[a.Task].Paused = false
		c.tasks[a.Task].run.stream.Resume()
	case plan.Forget:
	}
}

func (w *Worker) spawn(f func()) {
	w.actions.Add(1)
	go func() {
		defer w.actions.Done()
		f()
		w.wakeUp()
	}()
}

// startProcess brings up the connector's process and watches it until it ends.
func (w *Worker) startProcess(ctx context.Context, c *connector) {
	w.mu.Lock()
	className := c.config["connector.class"]
	w.startups.connectors++
	w.mu.Unlock()
	class, err := w.findClass(ctx, className)
	var p *host.Process
	if err == nil {
		p, err = host.Start(ctx, class, c.name, w.o.Plugin)
	}
	w.mu.Lock()
	if err != nil {
		w.startups.connectorFailures++
		c.plan.Process = plan.Absent
		c.fail(err)
		w.mu.Unlock()
		w.logger.Error("plugin does not start", "connector", c.name, "err", err)
		return
	}
	c.plan.Process, c.plan.Stale = plan.Up, false
	c.class, c.process = class, p
	if c.failure != nil && c.restarting {
		c.failure, c.restarting = nil, false
	}
	w.mu.Unlock()
	w.wakeUp()
	<-p.Done()
	w.processEnded(c, p)
}

func (w *Worker) processEnded(c *connector, p *host.Process) {
	w.mu.Lock()
	defer w.mu.Unlock()
	asked := c.plan.Process == plan.Stopping
	c.plan.Process, c.process = plan.Absent, nil
	if asked {
		return
	}
	err := fmt.Errorf("plugin process ended: %w", p.Err())
	c.restarts++
	c.fail(&sdk.Error{Code: sdk.Unavailable, Reason: "plugin.exited", Err: err})
	w.logger.Error("plugin process ended; it is started again", "connector", c.name, "err", err, "retry_at", c.plan.RetryAt)
}

// fail notes why the connector cannot run and when to try again. The caller
// holds w.mu.
func (c *connector) fail(err error) {
	c.attempts++
	c.failure, c.restarting = err, true
	c.plan.RetryAt = time.Now().Add(plan.Backoff(c.attempts))
	if code := sdk.CodeOf(err); code == sdk.Invalid || code == sdk.NotFound && sdk.ReasonOf(err) != "plugin.unknown" {
		c.plan.Failed, c.restarting = true, false
	}
}

func (w *Worker) stopProcess(ctx context.Context, c *connector) {
	w.mu.Lock()
	p := c.process
	w.mu.Unlock()
	if p == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, w.o.DrainTimeout)
	defer cancel()
	if err := p.Close(ctx); err != nil {
		w.logger.Warn("plugin process was killed", "connector", c.name, "err", err)
	}
}

// question is what planTasks asks: the connector as it was when it was decided to
// ask, since it may change meanwhile.
type question struct {
	process  *host.Process
	class    string
	revision int64
	config   map[string]string
}

// planTasks asks the process for task configs and makes them the wanted ones.
func (w *Worker) planTasks(ctx context.Context, c *connector, q question) {
	limit := tasksMax(q.config)
	configs, err := q.process.PlanTasks(ctx, q.class, q.config, limit)
	if err == nil && len(configs) > limit && q.config["tasks.max.enforce"] != "false" {
		err = sdk.FieldError("tasks.max", "config.too_many_tasks", "the connector wants %d tasks, tasks.max allows %d; raise tasks.max", len(configs), limit)
	}
	w.mu.Lock()
	c.plan.Planning = false
	current := c.plan.Revision == q.revision && c.plan.Exists
	switch {
	case !current:
	case errors.Is(err, host.ErrProcessGone): // processEnded says the rest
	case err != nil:
		c.fail(err)
		w.logger.Error("connector has no task configs", "connector", c.name, "err", err)
	default:
		c.plan.Planned, c.plan.Failed = q.revision, false
		c.failure, c.restarting = nil, false
		c.want(configs)
	}
	known := len(c.tasks)
	w.mu.Unlock()
	if current && err == nil {
		if err := w.putTaskCount(ctx, c.name, known); err != nil {
			w.logger.Warn("number of tasks is not stored", "connector", c.name, "err", err)
		}
	}
}

// want makes configs the wanted tasks; a task whose config is unchanged goes on
// undisturbed. The caller holds w.mu.
func (c *connector) want(configs []map[string]string) {
	for i := range max(len(configs), len(c.tasks)) {
		if i == len(c.tasks) {
			c.tasks = append(c.tasks, &task{})
			c.plan.Tasks = append(c.plan.Tasks, plan.Task{})
		}
		p, t := &c.plan.Tasks[i], c.tasks[i]
		p.Wanted = i < len(configs)
		if p.Wanted && (p.Revision == 0 || !maps.Equal(t.config, configs[i])) {
			t.config = configs[i]
			c.restartTask(i)
		}
	}
	c.trim()
}

// restartTask makes a task start anew, whatever its state. The caller holds w.mu.
func (c *connector) restartTask(i int) {
	p, t := &c.plan.Tasks[i], c.tasks[i]
	p.Revision++
	p.Failed, p.RetryAt, t.attempts = false, time.Time{}, 0
	t.restarting = true
	if c.plan.Target != plan.Started {
		t.failure = nil // it is held, and starts anew when it may
	}
}

// trim drops tasks at the end that nobody wants and that are gone.
func (c *connector) trim() {
	n := len(c.tasks)
	for n > 0 && !c.plan.Tasks[n-1].Wanted && c.plan.Tasks[n-1].Phase == plan.Absent {
		n--
	}
	c.tasks, c.plan.Tasks = c.tasks[:n], c.plan.Tasks[:n]
}

// beginTask starts a task's goroutine. The caller holds w.mu.
func (w *Worker) beginTask(ctx context.Context, c *connector, i int) {
	p, t := &c.plan.Tasks[i], c.tasks[i]
	ctx, cancel := context.WithCancel(ctx)
	run := &taskRun{cancel: cancel}
	p.Phase, p.Running, p.Paused = plan.Starting, p.Revision, false
	t.run, t.progress, t.condition = run, nil, Condition{}
	w.startups.tasks++
	env := &taskEnv{
		w: w, c: c, id: i, process: c.process, class: c.class, config: t.config,
		logger: w.logger.With("connector", c.name, "task", i),
		up:     func(s pauser) { w.taskUp(c, i, run, s) },
	}
	w.spawn(func() {
		defer cancel()
		var err error
		if env.class.Type == "sink" {
			err = runSink(ctx, env)
		} else {
			err = runSource(ctx, env)
		}
		w.taskEnded(c, i, err)
	})
}

// taskUp notes that a task was opened.
func (w *Worker) taskUp(c *connector, i int, run *taskRun, s pauser) {
	w.mu.Lock()
	run.stream = s
	if p := &c.plan.Tasks[i]; p.Phase == plan.Starting {
		p.Phase = plan.Up
	}
	t := c.tasks[i]
	t.failure, t.restarting = nil, false
	w.mu.Unlock()
	w.wakeUp()
}

// maxUnavailable bounds the pause before a task whose system was away is started
// again: it should be back soon after its system is.
const maxUnavailable = 10 * time.Second

// taskEnded notes how a task ended and whether it comes back by itself.
func (w *Worker) taskEnded(c *connector, i int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p, t := &c.plan.Tasks[i], c.tasks[i]
	asked := p.Phase == plan.Stopping
	p.Phase, t.run = plan.Absent, nil
	switch {
	case asked || err == nil:
		if err != nil && !errors.Is(err, host.ErrProcessGone) && !errors.Is(err, context.Canceled) {
			w.logger.Warn("task did not end in order", "connector", c.name, "task", i, "err", err)
		}
	case errors.Is(err, host.ErrProcessGone):
		t.failure, t.restarting = err, true
		t.restarts++
	case sdk.CodeOf(err) == sdk.Unavailable:
		t.attempts++
		t.restarts++
		t.failure, t.restarting = err, true
		p.RetryAt = time.Now().Add(min(plan.Backoff(t.attempts), maxUnavailable))
		w.logger.Warn("task is started again", "connector", c.name, "task", i, "err", err, "retry_at", p.RetryAt)
	default:
		w.startups.taskFailures++
		t.failure, t.restarting = err, false
		p.Failed = p.Running == p.Revision
		w.logger.Error("task failed", "connector", c.name, "task", i, "err", err)
	}
	c.trim()
}

// progressed notes that something of a task became durable: the pauses before
// restarts begin anew.
func (w *Worker) progressed(c *connector, i int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c.attempts = 0
	if i < len(c.tasks) {
		c.tasks[i].attempts = 0
	}
}
