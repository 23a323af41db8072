package runtime

import (
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

// collector tells Prometheus what the worker sees at the moment it is asked, so
// that no series outlives its task. Names are those that dashboards for Kafka
// Connect use; those that begin with connect_ are ours.
type collector struct{ w *Worker }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// Describe leaves the series to Collect: which there are depends on the tasks.
func (c *collector) Describe(chan<- *prometheus.Desc) {}

// Collect emits one value per series.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
	}
	tasks := 0
	names := c.w.Names()
	for _, name := range names {
		s, err := c.w.Status(name)
		if err != nil {
			continue
		}
		tasks += len(s.Tasks)
		c.connector(s, gauge)
		c.tasks(s, gauge, counter)
		c.process(s, gauge, counter)
	}
	gauge(desc("kafka_connect_worker_connector_count", "Connectors of this worker."), float64(len(names)))
	gauge(desc("kafka_connect_worker_task_count", "Tasks of this worker."), float64(tasks))
	c.w.mu.Lock()
	n := c.w.startups
	c.w.mu.Unlock()
	counter(desc("kafka_connect_worker_connector_startup_attempts_total", "Starts of connectors."), float64(n.connectors))
	counter(desc("kafka_connect_worker_connector_startup_failure_total", "Starts of connectors that failed."), float64(n.connectorFailures))
	counter(desc("kafka_connect_worker_task_startup_attempts_total", "Starts of tasks."), float64(n.tasks))
	counter(desc("kafka_connect_worker_task_startup_failure_total", "Tasks that failed."), float64(n.taskFailures))
}

type emit func(d *prometheus.Desc, v float64, labels ...string)

func (c *collector) connector(s Status, gauge emit) {
	gauge(desc("kafka_connect_connector_status", "State of the connector.", "connector", "status"), 1, s.Name, strings.ToLower(string(s.Connector.State)))
	gauge(desc("kafka_connect_connector_connector_type", "Type of the connector.", "connector", "type"), 1, s.Name, s.Type)
	counts := map[State]int{}
	for _, t := range s.Tasks {
		counts[t.State]++
	}
	for state, label := range map[State]string{StateRunning: "running", StatePaused: "paused", StateFailed: "failed", StateUnassigned: "unassigned", StateRestarting: "restarting"} {
		gauge(desc("kafka_connect_worker_connector_"+label+"_task_count", "Tasks of the connector that are "+label+".", "connector"), float64(counts[state]), s.Name)
	}
	gauge(desc("kafka_connect_worker_connector_total_task_count", "Tasks of the connector.", "connector"), float64(len(s.Tasks)), s.Name)
	for _, l := range s.Lag {
		gauge(desc("connect_sink_lag_records", "Records of a partition that the sink has not committed.", "connector", "topic", "partition"),
			float64(l.Records), s.Name, l.Topic, strconv.Itoa(int(l.Partition)))
	}
}

func (c *collector) tasks(s Status, gauge, counter emit) {
	for _, t := range s.Tasks {
		gauge(desc("kafka_connect_connector_task_status", "State of the task.", "connector", "task", "status"), 1, s.Name, strconv.Itoa(t.ID), strings.ToLower(string(t.State)))
	}
	for _, d := range s.Details {
		task, n := strconv.Itoa(d.ID), d.Records
		series := func(name, help string, v int64) {
			counter(desc(name, help, "connector", "task"), float64(v), s.Name, task)
		}
		if s.Type == "sink" {
			series("kafka_connect_sink_task_sink_record_read_total", "Records handed to the sink's process.", n.Read)
			series("kafka_connect_sink_task_sink_record_send_total", "Records taken by the sink.", n.Written)
		} else {
			series("kafka_connect_source_task_source_record_poll_total", "Records read by the source.", n.Read)
			series("kafka_connect_source_task_source_record_write_total", "Records sent towards the log.", n.Written)
			if d.Progress != nil {
				gauge(desc("connect_source_lag_seconds", "Age of the newest record when it was read.", "connector", "task"), d.Progress.Lag.Seconds(), s.Name, task)
			}
		}
		for name, v := range map[string]int64{"total_record_failures": n.Failed, "total_records_skipped": n.Skipped, "total_retries": n.Retries} {
			gauge(desc("kafka_connect_task_error_"+name, "Records that failed, were skipped, or calls made again.", "connector", "task"), float64(v), s.Name, task)
		}
		series("connect_task_restarts_total", "Restarts of the task by itself.", d.Restarts)
	}
}

func (c *collector) process(s Status, gauge, counter emit) {
	up := 0.0
	if p := s.Process; p != nil {
		up = 1
		gauge(desc("connect_plugin_process_rss_bytes", "Resident memory of the plugin's process.", "connector"), float64(p.RSSBytes), s.Name)
		counter(desc("connect_plugin_process_cpu_seconds_total", "CPU time of the plugin's process since its start.", "connector"), p.CPUSeconds, s.Name)
		counter(desc("connect_plugin_process_restarts_total", "Plugin processes that ended unasked.", "connector"), float64(p.Restarts), s.Name)
	}
	gauge(desc("connect_plugin_process_up", "Whether the plugin's process runs.", "connector"), up, s.Name)
}
