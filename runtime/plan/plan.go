// Package plan decides what a worker does next for one connector. It is a pure
// function from what is wanted and what is seen to actions: no clock, no
// goroutine, no I/O, so that every rule is a line of a table test.
package plan

import "time"

// Target is what the user wants of a connector; the names are those of
// Connect's config log.
type Target string

// The targets.
const (
	Started Target = "STARTED"
	Paused  Target = "PAUSED"
	Stopped Target = "STOPPED"
)

// Phase is where a process or a task stands.
type Phase uint8

// The phases, in the order a process or a task goes through them.
const (
	Absent   Phase = iota // not there
	Starting              // an action is bringing it up
	Up                    // there
	Stopping              // an action is ending it
)

// Connector is one connector: first what is wanted, then what is seen.
type Connector struct {
	Exists   bool   // false once it was deleted
	Target   Target // what the user wants
	Revision int64  // moves with every change of config and every restart

	Process  Phase
	Stale    bool      // the process is of another class than the config names
	Planned  int64     // the revision whose task configs are known, 0 for none
	Planning bool      // an action is asking for task configs
	Failed   bool      // the connector failed at Revision and waits for a human
	RetryAt  time.Time // no process and no planning before this
	Tasks    []Task
}

// Task is one task of a connector.
type Task struct {
	Wanted   bool  // the current task configs hold it
	Revision int64 // moves with its config and with every restart

	Phase   Phase
	Running int64     // the revision it was started with
	Paused  bool      // what it was last told
	Failed  bool      // it failed at Revision and waits for a human
	RetryAt time.Time // not started before this
}

// alive reports whether the task can be asked to end.
func (t *Task) alive() bool { return t.Phase == Starting || t.Phase == Up }

// outdated reports whether the task runs, but not as it is wanted now.
func (t *Task) outdated() bool { return !t.Wanted || t.Running != t.Revision }

// Verb is what an Action does.
type Verb uint8

// The verbs.
const (
	StartProcess Verb = iota
	StopProcess
	PlanTasks
	StartTask
	StopTask
	PauseTask
	ResumeTask
	Forget // the connector is gone and nothing of it is left
)

// Action is one thing to do. The executor moves the phase when it takes it up,
// so that the same action is not planned twice.
type Action struct {
	Verb Verb
	Task int
}

// Next returns the actions that lead from what is seen to what is wanted, and
// when to ask again if only time stands in the way (zero: not before something
// changes).
func Next(c *Connector, now time.Time) ([]Action, time.Time) {
	s := step{c: c, now: now}
	switch {
	case !c.Exists || c.Target == Stopped || c.Stale && c.Process != Absent:
		s.windDown()
	case c.Target == Paused:
		s.pause()
	default:
		s.run()
	}
	return s.actions, s.wake
}

type step struct {
	c       *Connector
	now     time.Time
	actions []Action
	wake    time.Time
}

func (s *step) add(v Verb, task int) { s.actions = append(s.actions, Action{v, task}) }

// due reports whether t has come; if not it asks to be woken then.
func (s *step) due(t time.Time) bool {
	if !t.After(s.now) {
		return true
	}
	if s.wake.IsZero() || t.Before(s.wake) {
		s.wake = t
	}
	return false
}

// windDown ends the tasks, then the process, then forgets a deleted connector.
func (s *step) windDown() {
	quiet := !s.c.Planning
	for i, t := range s.c.Tasks {
		if t.alive() {
			s.add(StopTask, i)
		}
		quiet = quiet && t.Phase == Absent
	}
	switch {
	case !quiet:
	case s.c.Process == Up:
		s.add(StopProcess, 0)
	case s.c.Process == Absent && !s.c.Exists:
		s.add(Forget, 0)
	}
}

// pause holds what runs and starts nothing.
func (s *step) pause() {
	for i, t := range s.c.Tasks {
		switch {
		case t.alive() && t.outdated():
			s.add(StopTask, i)
		case t.Phase == Up && !t.Paused:
			s.add(PauseTask, i)
		}
	}
}

// run brings up the process, asks for the task configs and aligns the tasks.
func (s *step) run() {
	c := s.c
	if c.Process == Absent && s.due(c.RetryAt) {
		s.add(StartProcess, 0)
	}
	current := c.Process == Up && c.Planned == c.Revision
	if c.Process == Up && !current && !c.Planning && !c.Failed && s.due(c.RetryAt) {
		s.add(PlanTasks, 0)
	}
	for i, t := range c.Tasks {
		switch {
		case t.alive() && t.outdated():
			s.add(StopTask, i)
		case t.Phase == Up && t.Paused:
			s.add(ResumeTask, i)
		case t.Phase == Absent && t.Wanted && !t.Failed && current && s.due(t.RetryAt):
			s.add(StartTask, i)
		}
	}
}
