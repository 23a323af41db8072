package disk

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the figures of one log.
type metrics struct {
	units       prometheus.Counter
	bytes       prometheus.Counter
	commits     prometheus.Histogram
	groups      prometheus.Histogram
	refused     prometheus.Counter
	blocked     prometheus.Counter
	full        prometheus.Counter
	checkpoints prometheus.Histogram
	corrupt     prometheus.Counter
	failed      prometheus.Gauge
}

// secondsBuckets go from a fast disk's sync to a stalled one.
func secondsBuckets() []float64 { return prometheus.ExponentialBuckets(50e-6, 2.5, 16) }

// newMetrics registers the metrics; a nil registerer keeps them unseen.
func newMetrics(r prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "millrace_log_" + name, Help: help})
	}
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: "millrace_log_" + name, Help: help, Buckets: buckets})
	}
	m := &metrics{
		units:       counter("units_total", "Units committed."),
		bytes:       counter("journal_bytes_total", "Bytes written to the journal."),
		commits:     histogram("commit_seconds", "Time of one write and sync of the journal.", secondsBuckets()),
		groups:      histogram("commit_units", "Units that one write and sync committed.", prometheus.ExponentialBuckets(1, 2, 12)),
		refused:     counter("units_refused_total", "Units that were accepted and not committed."),
		blocked:     counter("appends_blocked_total", "Appends that waited for room in the queue."),
		full:        counter("disk_full_total", "Reservations of space that failed because the disk was full."),
		checkpoints: histogram("checkpoint_seconds", "Time of one checkpoint.", secondsBuckets()),
		corrupt:     counter("corrupt_total", "Reads that met damage in committed data."),
		failed:      prometheus.NewGauge(prometheus.GaugeOpts{Name: "millrace_log_failed", Help: "1 when the log has stopped after a storage error."}),
	}
	if r == nil {
		return m, nil
	}
	for i, c := range m.all() {
		if err := r.Register(c); err != nil {
			for _, done := range m.all()[:i] {
				r.Unregister(done)
			}
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) all() []prometheus.Collector {
	return []prometheus.Collector{
		m.units, m.bytes, m.commits, m.groups, m.refused, m.blocked, m.full, m.checkpoints, m.corrupt, m.failed,
	}
}

func (m *metrics) unregister(r prometheus.Registerer) {
	if r == nil {
		return
	}
	for _, c := range m.all() {
		r.Unregister(c)
	}
}

func (m *metrics) committed(units, bytes int, took time.Duration) {
	m.units.Add(float64(units))
	m.bytes.Add(float64(bytes))
	m.commits.Observe(took.Seconds())
	m.groups.Observe(float64(units))
}

func (m *metrics) checkpointed(took time.Duration) { m.checkpoints.Observe(took.Seconds()) }
