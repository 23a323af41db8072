package disk

import (
	"fmt"
	"sync"

	"github.com/millrace-io/millrace/logstore"
)

// bypassJob is one large run of batches on its way to its segment.
type bypassJob struct {
	request *request
	entry   *entry
}

// bypassPool writes large batches to their segments and syncs them, before the
// frames that refer to them. All that wait for one segment share a sync.
type bypassPool struct {
	log     *Log
	work    chan *segment
	workers sync.WaitGroup
}

func (b *bypassPool) start(l *Log) {
	b.log = l
	b.work = make(chan *segment, syncers)
	for range syncers {
		b.workers.Go(func() {
			for s := range b.work {
				b.run(s)
			}
		})
	}
}

func (b *bypassPool) stop() {
	close(b.work)
	b.workers.Wait()
}

// submit is called by the committer.
func (b *bypassPool) submit(job *bypassJob) {
	s := job.entry.seg
	s.ioMu.Lock()
	s.jobs = append(s.jobs, job)
	start := !s.running
	s.running = true
	s.ioMu.Unlock()
	if start {
		b.work <- s
	}
}

// run works off the jobs of a segment.
func (b *bypassPool) run(s *segment) {
	for {
		s.ioMu.Lock()
		jobs := s.jobs
		s.jobs = nil
		if len(jobs) == 0 {
			s.running = false
			s.ioMu.Unlock()
			return
		}
		s.ioMu.Unlock()
		b.end(jobs, b.write(s, jobs))
	}
}

func (b *bypassPool) write(s *segment, jobs []*bypassJob) error {
	for _, job := range jobs {
		if err := b.log.files.write(s, job.entry.data, job.entry.pos); err != nil {
			return err
		}
	}
	if err := b.log.files.sync(s); err != nil {
		return err
	}
	return b.log.syncDirs([]*segment{s})
}

// end tells the committer. No space is the units' failure, anything else the
// log's.
func (b *bypassPool) end(jobs []*bypassJob, err error) {
	l := b.log
	if isFull(err) {
		err = fmt.Errorf("%w: %w", logstore.ErrFull, err)
	} else if err != nil {
		l.fail(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, job := range jobs {
		r := job.request
		if err != nil {
			r.ioErr = err
		}
		r.waiting.Add(-1)
	}
	l.ioDone = true
	l.work.Signal()
}
