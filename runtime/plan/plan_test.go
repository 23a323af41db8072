package plan_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-io/millrace/runtime/plan"
)

func TestNext(t *testing.T) {
	now := time.Unix(1000, 0)
	later := now.Add(time.Second)
	up := plan.Task{Wanted: true, Revision: 1, Running: 1, Phase: plan.Up}
	with := func(change func(*plan.Task)) []plan.Task {
		t := up
		change(&t)
		return []plan.Task{t}
	}
	running := func(change func(*plan.Connector)) plan.Connector {
		c := plan.Connector{Exists: true, Target: plan.Started, Revision: 1, Planned: 1, Process: plan.Up, Tasks: []plan.Task{up}}
		change(&c)
		return c
	}
	cases := []struct {
		name string
		c    plan.Connector
		want []plan.Action
		wake time.Time
	}{
		{"all is well", running(func(*plan.Connector) {}), nil, time.Time{}},
		{"new", plan.Connector{Exists: true, Target: plan.Started, Revision: 1}, []plan.Action{{Verb: plan.StartProcess}}, time.Time{}},
		{"process waits for its retry", plan.Connector{Exists: true, Target: plan.Started, Revision: 1, RetryAt: later}, nil, later},
		{"process is up, not planned", running(func(c *plan.Connector) { c.Planned, c.Tasks = 0, nil }), []plan.Action{{Verb: plan.PlanTasks}}, time.Time{}},
		{"planning is under way", running(func(c *plan.Connector) { c.Planned, c.Tasks, c.Planning = 0, nil, true }), nil, time.Time{}},
		{"planning failed for good", running(func(c *plan.Connector) { c.Planned, c.Tasks, c.Failed = 0, nil, true }), nil, time.Time{}},
		{"task starts", running(func(c *plan.Connector) { c.Tasks = with(func(t *plan.Task) { t.Phase = plan.Absent }) }), []plan.Action{{Verb: plan.StartTask}}, time.Time{}},
		{"task waits for its retry", running(func(c *plan.Connector) {
			c.Tasks = with(func(t *plan.Task) { t.Phase, t.RetryAt = plan.Absent, later })
		}), nil, later},
		{"failed task waits for a human", running(func(c *plan.Connector) {
			c.Tasks = with(func(t *plan.Task) { t.Phase, t.Failed = plan.Absent, true })
		}), nil, time.Time{}},
		{"task waits until the new revision is planned", running(func(c *plan.Connector) {
			c.Revision = 2
			c.Tasks = with(func(t *plan.Task) { t.Phase = plan.Absent })
		}), []plan.Action{{Verb: plan.PlanTasks}}, time.Time{}},
		{"restarted task ends first", running(func(c *plan.Connector) { c.Tasks = with(func(t *plan.Task) { t.Revision = 2 }) }), []plan.Action{{Verb: plan.StopTask}}, time.Time{}},
		{"surplus task ends", running(func(c *plan.Connector) { c.Tasks = with(func(t *plan.Task) { t.Wanted = false }) }), []plan.Action{{Verb: plan.StopTask}}, time.Time{}},
		{"task that is still starting can be ended", running(func(c *plan.Connector) {
			c.Target = plan.Stopped
			c.Tasks = with(func(t *plan.Task) { t.Phase = plan.Starting })
		}), []plan.Action{{Verb: plan.StopTask}}, time.Time{}},
		{"ending task is left alone", running(func(c *plan.Connector) {
			c.Tasks = with(func(t *plan.Task) { t.Phase, t.Revision = plan.Stopping, 2 })
		}), nil, time.Time{}},
		{"pause", running(func(c *plan.Connector) { c.Target = plan.Paused }), []plan.Action{{Verb: plan.PauseTask}}, time.Time{}},
		{"paused", running(func(c *plan.Connector) {
			c.Target = plan.Paused
			c.Tasks = with(func(t *plan.Task) { t.Paused = true })
		}), nil, time.Time{}},
		{"paused starts nothing", plan.Connector{Exists: true, Target: plan.Paused, Revision: 1}, nil, time.Time{}},
		{"resume", running(func(c *plan.Connector) { c.Tasks = with(func(t *plan.Task) { t.Paused = true }) }), []plan.Action{{Verb: plan.ResumeTask}}, time.Time{}},
		{"stop ends tasks first", running(func(c *plan.Connector) { c.Target = plan.Stopped }), []plan.Action{{Verb: plan.StopTask}}, time.Time{}},
		{"stop ends the process next", running(func(c *plan.Connector) { c.Target, c.Tasks = plan.Stopped, nil }), []plan.Action{{Verb: plan.StopProcess}}, time.Time{}},
		{"stopped", running(func(c *plan.Connector) { c.Target, c.Tasks, c.Process = plan.Stopped, nil, plan.Absent }), nil, time.Time{}},
		{"a process of another class ends first", running(func(c *plan.Connector) { c.Stale, c.Tasks = true, nil }), []plan.Action{{Verb: plan.StopProcess}}, time.Time{}},
		{"a process of another class is gone", plan.Connector{Exists: true, Target: plan.Started, Revision: 2, Stale: true}, []plan.Action{{Verb: plan.StartProcess}}, time.Time{}},
		{"deleted while planning waits", running(func(c *plan.Connector) { c.Exists, c.Tasks, c.Planning = false, nil, true }), nil, time.Time{}},
		{"deleted and gone", running(func(c *plan.Connector) { c.Exists, c.Tasks, c.Process = false, nil, plan.Absent }), []plan.Action{{Verb: plan.Forget}}, time.Time{}},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			got, wake := plan.Next(&tc.c, now)
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Errorf("actions (-want +got):\n%s", d)
			}
			if !wake.Equal(tc.wake) {
				t.Errorf("wake = %v, want %v", wake, tc.wake)
			}
		})
	}
}

func TestBackoffGrowsToAMinute(t *testing.T) {
	want := []time.Duration{200 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, 32 * time.Second, time.Minute, time.Minute}
	for i, w := range want {
		if got := plan.Backoff(i + 1); got != w {
			t.Errorf("Backoff(%d) = %v, want %v", i+1, got, w)
		}
	}
}
