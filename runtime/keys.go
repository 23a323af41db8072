package runtime

import (
	"fmt"
	"slices"
	"strings"

	"github.com/millrace-io/millrace/plugins/sdk"
)

// defineWorkerKeys declares the keys that every source or sink has, whatever its
// class; the table follows Kafka Connect 4.3. Their values are read where they
// are used. converters are the worker's own, shown as defaults; version is that
// of the class.
func defineWorkerKeys(d *sdk.Def, classType, version string, converters map[string]string) {
	defineCommon(d, version, converters)
	defineErrors(d)
	if classType == "sink" {
		defineSink(d)
	} else {
		defineSource(d)
	}
}

func defineCommon(d *sdk.Def, version string, converters map[string]string) {
	d.Group("Common")
	d.String(new(string), "name", "Globally unique name to use for this connector.", sdk.Required(), sdk.Display("Connector name"), sdk.Check(func(s string) error {
		if err := CheckName(s); err != nil {
			return fmt.Errorf("String must be non-empty and may not contain control sequences")
		}
		return nil
	}))
	d.String(new(string), "connector.class", "Name or alias of the connector's class.", sdk.Required(), sdk.Display("Connector class"), sdk.Width("LONG"))
	d.String(new(string), "connector.plugin.version", "Version of the connector: an exact version or a range.", sdk.Default(version), sdk.Medium(), sdk.Display("Connector version"), sdk.Check(func(s string) error { return checkVersion(s, version) }))
	d.Int(new(int), "tasks.max", "Maximum number of tasks to use for this connector.", sdk.Default("1"), sdk.AtLeast(1), sdk.Width("SHORT"), sdk.Display("Tasks max"))
	d.Bool(new(bool), "tasks.max.enforce", "Whether a connector that wants more tasks than tasks.max allows fails (deprecated).", sdk.Default("true"), sdk.Low(), sdk.Width("SHORT"), sdk.Display("Enforce tasks max"))
	for _, side := range []struct{ key, display string }{
		{"key.converter", "Key converter"}, {"value.converter", "Value converter"}, {"header.converter", "Header converter"},
	} {
		d.Class(new(string), side.key, "Converter between the connector's data and the bytes in the log; without it, the worker's and all its settings.",
			sdk.Default(converters[side.key]), sdk.Low(), sdk.Width("SHORT"), sdk.Display(side.display+" class"))
		d.String(new(string), side.key+".plugin.version", "Version of the converter.", sdk.Default(version), sdk.Low(), sdk.Width("SHORT"), sdk.Display(side.display+" version"))
	}
	d.Group("Transforms")
	d.List(new([]string), "transforms", "Aliases of the transformations to apply to records.", sdk.Default(""), sdk.Low(), sdk.Width("LONG"), sdk.Display("Transforms"), notYet("transforms"))
	d.Group("Predicates")
	d.List(new([]string), "predicates", "Aliases of the predicates that transformations use.", sdk.Default(""), sdk.Low(), sdk.Width("LONG"), sdk.Display("Predicates"), notYet("predicates"))
	d.Group("Common")
	d.String(new(string), "config.action.reload", "What to do when a value from a config provider changes.", sdk.Default("restart"), sdk.Low(), sdk.Display("Reload Action"), sdk.OneOf("none", "restart"))
}

func defineErrors(d *sdk.Def) {
	d.Group("Error Handling")
	d.Long(new(int64), "errors.retry.timeout", "How long a failed operation is tried again, in milliseconds; 0 not at all, -1 without end.", sdk.Default("0"), sdk.Medium(), sdk.Display("Retry Timeout for Errors"))
	d.Long(new(int64), "errors.retry.delay.max.ms", "Longest pause between two tries, in milliseconds.", sdk.Default("60000"), sdk.Medium(), sdk.Display("Maximum Delay Between Retries for Errors"))
	d.String(new(string), "errors.tolerance", "What a record that cannot be processed does: none fails the task, all skips the record.", sdk.Default("none"), sdk.Medium(), sdk.Width("SHORT"), sdk.Display("Error Tolerance"), sdk.OneOf("none", "all"))
	d.Bool(new(bool), "errors.log.enable", "Whether every error is logged, tolerated ones included.", sdk.Default("false"), sdk.Medium(), sdk.Width("SHORT"), sdk.Display("Log Errors"))
	d.Bool(new(bool), "errors.log.include.messages", "Whether the log of an error names the record.", sdk.Default("false"), sdk.Medium(), sdk.Width("SHORT"), sdk.Display("Log Error Details"))
}

func defineSink(d *sdk.Def) {
	d.Group("Common")
	d.List(new([]string), "topics", "Topics to read, separated by commas.", sdk.Default(""), sdk.Width("LONG"), sdk.Display("Topics"), sdk.Check(distinct))
	d.String(new(string), "topics.regex", "Regular expression of the topics to read.", sdk.Default(""), sdk.Width("LONG"), sdk.Display("Topics regex"))
	d.Group("Error Handling")
	d.String(new(string), "errors.deadletterqueue.topic.name", "Topic for records that could not be processed; empty means none.", sdk.Default(""), sdk.Medium(), sdk.Display("Dead Letter Queue Topic Name"))
	d.Short(new(int), "errors.deadletterqueue.topic.replication.factor", "Replication factor of the dead letter topic.", sdk.Default("3"), sdk.Medium(), sdk.Display("Dead Letter Queue Topic Replication Factor"),
		sdk.Ignored("the embedded log keeps one copy."))
	d.Bool(new(bool), "errors.deadletterqueue.context.headers.enable", "Whether dead letters carry headers that say what went wrong.", sdk.Default("false"), sdk.Medium(), sdk.Display("Enable Error Context Headers"))
}

func defineSource(d *sdk.Def) {
	d.Group("Topic Creation")
	d.List(new([]string), "topic.creation.groups", "Groups of settings for the topics that the source creates.", sdk.Default(""), sdk.Low(), sdk.Width("LONG"), sdk.Display("Topic Creation Groups"), sdk.Check(distinct))
	d.Group("Exactly Once Support")
	d.String(new(string), "exactly.once.support", "Whether the source must be exactly once; every source is, into the log.", sdk.Default("requested"), sdk.Medium(), sdk.Width("SHORT"), sdk.Display("Exactly once support"), anyCase("requested", "required"))
	d.String(new(string), "transaction.boundary", "Where units of records end.", sdk.Default("poll"), sdk.Medium(), sdk.Width("SHORT"), sdk.Display("Transaction Boundary"), anyCase("poll", "interval", "connector"),
		sdk.Ignored("a unit ends at each position that the source reports."))
	d.Long(new(int64), "transaction.boundary.interval.ms", "Interval of transactions.", sdk.Low(), sdk.Width("SHORT"), sdk.Display("Transaction boundary interval"), sdk.AtLeast(0), sdk.Ignored("a unit ends at each position that the source reports."))
	d.Group("offsets.topic")
	d.String(new(string), "offsets.storage.topic", "Topic of its own for the connector's offsets.", sdk.Low(), sdk.Width("LONG"), sdk.Display("Offsets topic"), sdk.NonEmpty(), sdk.Ignored("offsets are part of the worker's log."))
}

// notYet refuses what this version cannot do, rather than pass over it.
func notYet(what string) sdk.Option {
	return sdk.Check(func(s string) error {
		if s != "" {
			return fmt.Errorf("%s are not supported by this version; remove the key", what)
		}
		return nil
	})
}

// distinct refuses empty and repeated items of a list.
func distinct(s string) error {
	items := sdk.SplitList(s)
	seen := make(map[string]bool)
	for _, i := range items {
		switch {
		case i == "":
			return fmt.Errorf("List may not hold empty items")
		case seen[i]:
			return fmt.Errorf("List holds %q twice", i)
		}
		seen[i] = true
	}
	return nil
}

func anyCase(values ...string) sdk.Option {
	return sdk.Check(func(s string) error {
		if !slices.ContainsFunc(values, func(v string) bool { return strings.EqualFold(v, s) }) {
			return fmt.Errorf("String must be one of: %v", values)
		}
		return nil
	})
}
