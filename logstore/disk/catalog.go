package disk

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"

	"github.com/millrace-io/millrace/logstore"
)

// engineIdentity orders the requests of the engine itself.
const engineIdentity = "\x00engine"

// newCatalog makes a snapshot of the topics. The log's mutex is held, or nobody
// else has the log yet. The engine's own topics are not in it.
func (l *Log) newCatalog() *logstore.Catalog {
	topics := make(map[string]logstore.Topic, len(l.topics))
	for name, t := range l.topics {
		if !t.own {
			topics[name] = logstore.Topic{Name: name, ID: t.id, Config: t.config}
		}
	}
	return logstore.NewCatalog(topics, l.outdated)
}

// Catalog returns the topics as they are now. The engine's own three topics can
// be read and are not listed.
func (l *Log) Catalog() *logstore.Catalog {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.catalog
}

// topicsChanged puts a new snapshot in place. The log's mutex is held.
func (l *Log) topicsChanged() {
	old := l.outdated
	l.outdated = make(chan struct{})
	l.catalog = l.newCatalog()
	close(old)
}

// CreateTopic makes a topic durable.
func (l *Log) CreateTopic(ctx context.Context, name string, config logstore.TopicConfig) (logstore.Topic, error) {
	config, err := checkConfig(name, config)
	if err != nil {
		return logstore.Topic{}, err
	}
	var id logstore.TopicID
	_, _ = rand.Read(id[:]) // never fails
	t := newTopic(name, id, config)
	record, err := topicRecord(t, false)
	if err != nil {
		return logstore.Topic{}, err
	}
	l.mu.Lock()
	if err := l.claimName(name); err != nil {
		l.mu.Unlock()
		return logstore.Topic{}, err
	}
	l.mu.Unlock()
	free := func() {
		l.mu.Lock()
		delete(l.names, name)
		l.mu.Unlock()
	}
	if err := l.folderFree(name); err != nil {
		free()
		return logstore.Topic{}, err
	}
	done := make(chan error, 1)
	err = l.ask(&request{
		table: []tableRecord{record},
		apply: func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.topics[name] = t
			l.topicsChanged()
		},
		done: func(_ logstore.Result, err error) {
			free()
			done <- err
		},
	})
	if err != nil {
		free()
		return logstore.Topic{}, err
	}
	if err := wait(ctx, done); err != nil {
		return logstore.Topic{}, fmt.Errorf("create topic %q: %w", name, err)
	}
	return logstore.Topic{Name: name, ID: id, Config: config}, nil
}

// checkConfig fills in what is 0 and refuses what cannot be.
func checkConfig(name string, config logstore.TopicConfig) (logstore.TopicConfig, error) {
	if err := logstore.ValidTopicName(name); err != nil {
		return config, err
	}
	if config.Partitions == 0 {
		config.Partitions = 1
	}
	if config.Cleanup == "" {
		config.Cleanup = logstore.CleanupDelete
	}
	refuse := func(format string, args ...any) (logstore.TopicConfig, error) {
		return config, fmt.Errorf("topic %q: "+format+": %w", append(append([]any{name}, args...), logstore.ErrInvalid)...)
	}
	switch {
	case config.Partitions < 0 || config.Partitions > logstore.MaxPartitions:
		return refuse("%d partitions, 1 to %d are allowed", config.Partitions, logstore.MaxPartitions)
	case config.Cleanup != logstore.CleanupDelete && config.Cleanup != logstore.CleanupCompact:
		return refuse("cleanup %q is neither %q nor %q", config.Cleanup, logstore.CleanupDelete, logstore.CleanupCompact)
	case config.RetentionTime < 0 || config.RetentionBytes < 0:
		return refuse("retention of %v and %d bytes", config.RetentionTime, config.RetentionBytes)
	case config.SegmentBytes != 0 && (config.SegmentBytes < minSegmentBytes || config.SegmentBytes > maxSegmentBytes):
		return refuse("segments of %d bytes, %d to %d are allowed", config.SegmentBytes, minSegmentBytes, maxSegmentBytes)
	}
	return config, nil
}

// claimName keeps a name for a creation. The log's mutex is held.
func (l *Log) claimName(name string) error {
	if err := l.unusable(); err != nil {
		return err
	}
	if l.topics[name] != nil {
		return fmt.Errorf("topic %q: %w", name, logstore.ErrExists)
	}
	if l.names[name] {
		return fmt.Errorf("topic %q is being created or deleted: %w", name, logstore.ErrExists)
	}
	l.names[name] = true
	return nil
}

// folderFree refuses a topic whose folder holds something else already.
func (l *Log) folderFree(name string) error {
	entries, err := l.fs.ReadDir(topicsDir + "/" + name)
	if errors.Is(err, os.ErrNotExist) || err == nil && len(entries) == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("create topic %q: %w", name, err)
	}
	return fmt.Errorf("folder %q in the data directory belongs to no topic and is in the way: move it elsewhere: %w",
		topicsDir+"/"+name, logstore.ErrExists)
}

// DeleteTopic removes a topic, its records and the group offsets on it.
func (l *Log) DeleteTopic(ctx context.Context, name string) error {
	l.mu.Lock()
	t := l.topics[name]
	err := l.unusable()
	switch {
	case err != nil:
	case t == nil || t.deleting:
		err = fmt.Errorf("topic %q: %w", name, logstore.ErrNotFound)
	case t.own:
		err = fmt.Errorf("topic %q is the log's own: %w", name, logstore.ErrInvalid)
	}
	if err != nil {
		l.mu.Unlock()
		return err
	}
	t.deleting = true // nobody appends any more; what was accepted commits first
	l.mu.Unlock()

	done := make(chan error, 1)
	if err := l.ask(l.deletion(t, done)); err != nil {
		return err // the log has stopped
	}
	if err := wait(ctx, done); err != nil {
		return fmt.Errorf("delete topic %q: %w", name, err)
	}
	return nil
}

// deletion is the request that commits the end of a topic. When it fails the
// topic is as before.
func (l *Log) deletion(t *topic, done chan<- error) *request {
	r := &request{barrier: true}
	var mark tableRecord
	r.before = func() {
		mark, _ = topicRecord(t, true) // it was encoded before
		r.table = append(l.offsetsOn(t.name, false), mark)
	}
	r.apply = func() {
		l.offsetsOn(t.name, true)
		for _, p := range t.parts {
			p.remove(fmt.Errorf("topic %q was deleted: %w", t.name, logstore.ErrNotFound))
		}
		l.mu.Lock()
		delete(l.topics, t.name)
		l.names[t.name] = true
		l.topicsChanged()
		l.mu.Unlock()
	}
	r.done = func(_ logstore.Result, err error) {
		if err != nil {
			l.mu.Lock()
			t.deleting = false
			l.mu.Unlock()
			done <- err
			return
		}
		l.keeper.remove(t, done)
	}
	return r
}

// ask hands a request of the engine itself to the committer.
func (l *Log) ask(r *request) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.unusable(); err != nil {
		return err
	}
	if r.unit == nil {
		r.unit = &logstore.Unit{}
	}
	r.from = l.identity(engineIdentity)
	l.enqueue(r)
	return nil
}

// wait waits for an outcome or until ctx ends.
func wait(ctx context.Context, done <-chan error) error {
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
