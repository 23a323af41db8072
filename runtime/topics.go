package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/millrace-io/millrace/logstore"
	"github.com/millrace-io/millrace/plugins/sdk"
)

// creation is one group of topic.creation.* keys.
type creation struct {
	include, exclude []*regexp.Regexp
	config           logstore.TopicConfig
}

// matches reports whether the group is for the topic.
func (c *creation) matches(topic string) bool {
	hit := func(rs []*regexp.Regexp) bool {
		return slices.ContainsFunc(rs, func(r *regexp.Regexp) bool { return r.MatchString(topic) })
	}
	return hit(c.include) && !hit(c.exclude)
}

// creations reads the topic.creation.* keys of a source's config: the groups in
// their order, then the default group. Problems are reported key by key.
func creations(config map[string]string) ([]creation, sdk.FieldErrors) {
	var groups []creation
	var errs sdk.FieldErrors
	names := sdk.SplitList(config["topic.creation.groups"])
	for _, name := range append(slices.DeleteFunc(names, func(n string) bool { return n == "default" }), "default") {
		prefix := "topic.creation." + name + "."
		g := creation{config: logstore.TopicConfig{Partitions: 1}}
		if name == "default" {
			g.include = []*regexp.Regexp{regexp.MustCompile("")}
		} else {
			g.include = patterns(config, prefix+"include", &errs)
			g.exclude = patterns(config, prefix+"exclude", &errs)
			if d := groupConfig(config, "topic.creation.default.", nil); d.Partitions > 0 {
				g.config = d
			}
		}
		g.config = overlay(g.config, groupConfig(config, prefix, &errs))
		groups = append(groups, g)
	}
	if len(names) > 0 && !hasPrefixed(config, "topic.creation.default.") {
		errs = append(errs, sdk.FieldError("topic.creation.groups", "config.invalid",
			"topic.creation.groups needs topic.creation.default.partitions as well, for topics that no group matches"))
	}
	return groups, errs
}

func hasPrefixed(config map[string]string, prefix string) bool {
	for k := range config {
		if strings.HasPrefix(k, prefix) {
			return true
		}
	}
	return false
}

func patterns(config map[string]string, key string, errs *sdk.FieldErrors) []*regexp.Regexp {
	var out []*regexp.Regexp
	for _, p := range sdk.SplitList(config[key]) {
		r, err := regexp.Compile("^(?:" + p + ")$")
		if err != nil {
			*errs = append(*errs, sdk.FieldError(key, "config.invalid", "%q is not a regular expression this worker can use: %v", p, err))
			continue
		}
		out = append(out, r)
	}
	return out
}

// groupConfig reads one group's keys; what is absent stays zero.
func groupConfig(config map[string]string, prefix string, errs *sdk.FieldErrors) logstore.TopicConfig {
	var t logstore.TopicConfig
	number := func(key string, low, high int64) int64 {
		v, given := config[prefix+key]
		if !given {
			return 0
		}
		n, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
		if (err != nil || n < low || n > high) && n != -1 {
			if errs != nil {
				*errs = append(*errs, sdk.FieldError(prefix+key, "config.invalid", "Invalid value %s for configuration %s: must be -1 or between %d and %d", v, prefix+key, low, high))
			}
			return 0
		}
		return max(n, 0)
	}
	t.Partitions = int32(number("partitions", 1, logstore.MaxPartitions))
	number("replication.factor", 1, 1<<15-1)
	t.RetentionTime = time.Duration(number("retention.ms", 0, 1<<43)) * time.Millisecond
	t.RetentionBytes = number("retention.bytes", 0, 1<<62)
	t.SegmentBytes = number("segment.bytes", 1<<10, 1<<31)
	if strings.Contains(config[prefix+"cleanup.policy"], string(logstore.CleanupCompact)) {
		t.Cleanup = logstore.CleanupCompact
	}
	return t
}

// overlay returns base with the settings that over has.
func overlay(base, over logstore.TopicConfig) logstore.TopicConfig {
	if over.Partitions > 0 {
		base.Partitions = over.Partitions
	}
	if over.RetentionTime > 0 {
		base.RetentionTime = over.RetentionTime
	}
	if over.RetentionBytes > 0 {
		base.RetentionBytes = over.RetentionBytes
	}
	if over.SegmentBytes > 0 {
		base.SegmentBytes = over.SegmentBytes
	}
	if over.Cleanup != "" {
		base.Cleanup = over.Cleanup
	}
	return base
}

// ensureTopic returns a topic that a connector writes to, creating it by the
// connector's topic.creation.* keys, with one partition otherwise.
func (w *Worker) ensureTopic(ctx context.Context, name string, groups []creation) (logstore.Topic, error) {
	if t, ok := w.log.Catalog().Lookup(name); ok {
		return t, refuseInternal(t)
	}
	if err := logstore.ValidTopicName(name); err != nil {
		return logstore.Topic{}, sdk.Errorf(sdk.Invalid, "topic.invalid", "%w; change the connector's topic name", err)
	}
	if strings.HasPrefix(name, "__") {
		return logstore.Topic{}, sdk.Errorf(sdk.Invalid, "topic.internal", "topic %q cannot be written by a connector: names that begin with __ are the log's own", name)
	}
	i := slices.IndexFunc(groups, func(g creation) bool { return g.matches(name) })
	config := logstore.TopicConfig{Partitions: 1}
	if i >= 0 {
		config = groups[i].config
	}
	t, err := w.log.CreateTopic(ctx, name, config)
	if errors.Is(err, logstore.ErrExists) {
		t, _ = w.log.Catalog().Lookup(name)
		return t, refuseInternal(t)
	}
	if err != nil {
		return t, fmt.Errorf("create topic %q: %w", name, err)
	}
	w.logger.Info("topic created", "topic", name, "partitions", t.Config.Partitions)
	return t, nil
}

func refuseInternal(t logstore.Topic) error {
	if t.Config.Internal {
		return sdk.Errorf(sdk.Invalid, "topic.internal", "topic %q belongs to the worker and cannot be written by a connector", t.Name)
	}
	return nil
}

// activeTopicKey is the key in the status table that says a connector has used a
// topic, in Connect's form.
func activeTopicKey(topic, connector string) string {
	return "status-topic-" + topic + ":connector-" + connector
}

// trackTopic notes that a connector has used a topic.
func (w *Worker) trackTopic(ctx context.Context, connector, topic string, task int) {
	key := activeTopicKey(topic, connector)
	if _, known := w.status.get(key); known {
		return
	}
	value, err := json.Marshal(map[string]any{"topic": map[string]any{
		"name": topic, "connector": connector, "task": task, "discoverTimestamp": time.Now().UnixMilli(),
	}})
	if err == nil {
		err = w.status.put(ctx, w.writer, entry{key, value})
	}
	if err != nil && ctx.Err() == nil {
		w.logger.Warn("topic is not tracked", "connector", connector, "topic", topic, "err", err)
	}
}

// ActiveTopics returns the topics a connector has used since its creation or the
// last reset, sorted; none for a connector that does not exist.
func (w *Worker) ActiveTopics(connector string) []string {
	topics := []string{}
	for k := range w.status.snapshot() {
		if t, ok := strings.CutPrefix(k, "status-topic-"); ok {
			if t, ok := strings.CutSuffix(t, ":connector-"+connector); ok {
				topics = append(topics, t)
			}
		}
	}
	slices.Sort(topics)
	return topics
}

// ResetTopics forgets which topics a connector has used.
func (w *Worker) ResetTopics(ctx context.Context, connector string) error {
	var gone []entry
	for _, t := range w.ActiveTopics(connector) {
		gone = append(gone, entry{activeTopicKey(t, connector), nil})
	}
	if len(gone) == 0 {
		return nil
	}
	return w.status.put(ctx, w.writer, gone...)
}
