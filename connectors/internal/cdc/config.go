package cdc

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/millrace-io/millrace/plugins/sdk"
)

// Config holds the keys that the sources share. A connector embeds it, defines
// its own keys beside it and calls Check when all are bound.
type Config struct {
	Prefix   string
	Host     string
	Port     int
	User     string
	Password sdk.Secret

	TableInclude, TableExclude   []string
	ColumnInclude, ColumnExclude []string
	IgnoreBuiltin                bool
	MessageKeys                  string
	mask, truncate               map[string]string

	Tombstones     bool
	Skipped        []string
	NoChange       bool // skip.messages.without.change
	Headers        bool
	Decimal        string
	Time           string
	Binary         string
	Placeholder    string
	SchemaAdjust   string
	FieldAdjust    string
	PropagateType  []string
	PropagateTypes []string
	Comments       bool
	OnConversion   string
	UnknownTypes   bool

	SnapshotMode      string
	SnapshotTables    []string
	SnapshotFetch     int
	SnapshotDelay     time.Duration
	StreamingDelay    time.Duration
	SnapshotOverrides []string
	overrides         map[string]string
	SnapshotResume    bool
	LockTimeout       time.Duration

	Delimiter         string
	HeartbeatInterval time.Duration
	HeartbeatQuery    string
	heartbeatPrefix   string
	heartbeatName     string
	Transactions      bool
	transactionTopic  string

	MaxBatch      int
	MaxQueue      int
	MaxQueueBytes int64
	QueryTimeout  time.Duration
	GuardrailMax  int
	Guardrail     string

	// What Check makes of the above.
	Capture    Capture
	Snapshot   Patterns // nil: all captured tables
	Keys       []KeyRule
	Masks      []Mask
	propagate  Patterns
	propagates Patterns
}

// Dialect is where the sources' shared keys differ.
type Dialect struct {
	Port      string
	TimeModes []string
	TimeMode  string
	Fetch     string
	Strategy  string // class of the topic naming strategy
	Comments  string // why comments have no effect, "" where they have
}

func notYet(what string) sdk.Option { return sdk.Ignored(what) }

// Define declares the shared keys.
func (c *Config) Define(d *sdk.Def, dialect Dialect) {
	c.defineConnection(d, dialect)
	c.defineTables(d)
	c.defineEvents(d, dialect)
	c.defineSnapshot(d, dialect)
	c.defineTopics(d, dialect)
	c.defineLimits(d)
	c.defineIgnored(d, dialect)
}

func (c *Config) defineConnection(d *sdk.Def, dialect Dialect) {
	d.Group("Connection")
	d.String(&c.Prefix, "topic.prefix", "Logical name of the database: the prefix of topics and schema names. It must not change later.",
		sdk.Required(), sdk.NonEmpty(), sdk.Check(checkPrefix))
	d.String(&c.Host, "database.hostname", "Address of the database server.", sdk.Required(), sdk.NonEmpty())
	d.Int(&c.Port, "database.port", "Port of the database server.", sdk.Default(dialect.Port), sdk.Between(1, 65535))
	d.String(&c.User, "database.user", "User to connect as.", sdk.Required(), sdk.NonEmpty())
	d.Secret(&c.Password, "database.password", "Password of the user.")
	d.Millis(&c.QueryTimeout, "database.query.timeout.ms", "Time limit of a catalog query; reading rows has none.", sdk.Default("600000"), sdk.AtLeast(0), sdk.Low())
}

func checkPrefix(s string) error {
	for i := range len(s) {
		u := uint16(s[i])
		if !isLetter(u) && !isDigit(u) && u != '.' && u != '_' && u != '-' {
			return fmt.Errorf("only letters, digits, dot, underscore and hyphen may be used")
		}
	}
	return nil
}

func (c *Config) defineTables(d *sdk.Def) {
	d.Group("Tables and columns")
	d.List(&c.TableInclude, "table.include.list", "Tables to capture: regular expressions that match the whole of <schema>.<table>, case ignored.")
	d.List(&c.TableExclude, "table.exclude.list", "Tables to leave out; not together with table.include.list.")
	d.List(&c.ColumnInclude, "column.include.list", "Columns to have in the events, as <schema>.<table>.<column>.", sdk.Medium())
	d.List(&c.ColumnExclude, "column.exclude.list", "Columns to leave out; key columns stay in the key.", sdk.Medium())
	d.Bool(&c.IgnoreBuiltin, "table.ignore.builtin", "Leave out tables that the system or an extension keeps for itself.", sdk.Default("true"), sdk.Low())
	d.String(&c.MessageKeys, "message.key.columns", "Key columns of tables, as <table regex>:<column>,<column>;<table regex>:<column>.", sdk.Medium())
	d.Prefixed(&c.mask, "column.mask.")
	d.Prefixed(&c.truncate, "column.truncate.")
}

func (c *Config) defineEvents(d *sdk.Def, dialect Dialect) {
	d.Group("Events")
	d.Bool(&c.Tombstones, "tombstones.on.delete", "Follow a delete with a record without value, for compaction.", sdk.Default("true"), sdk.Medium())
	d.List(&c.Skipped, "skipped.operations", "Operations without events: c, u, d, t, or none.", sdk.Default("t"), sdk.Medium(), sdk.Check(checkSkipped))
	d.Bool(&c.NoChange, "skip.messages.without.change", "Leave out updates that change no captured column; needs the whole old row.", sdk.Default("false"), sdk.Low())
	d.Bool(&c.Headers, "extended.headers.enabled", "Give row events the context headers.", sdk.Default("true"), sdk.Low())
	d.String(&c.Decimal, "decimal.handling.mode", "Form of decimal numbers.", sdk.Default("precise"), sdk.Medium(), sdk.OneOf("precise", "string", "double"))
	d.String(&c.Time, "time.precision.mode", "Form of times.", sdk.Default(dialect.TimeMode), sdk.Medium(), sdk.OneOf(dialect.TimeModes...))
	d.String(&c.Binary, "binary.handling.mode", "Form of binary values.", sdk.Default("bytes"), sdk.Low(), sdk.OneOf("bytes", "base64", "base64-url-safe", "hex"))
	d.String(&c.Placeholder, "unavailable.value.placeholder", "Stands for a value that the database did not send; hex:... gives bytes.", sdk.Default("__debezium_unavailable_value"), sdk.Low())
	d.String(&c.SchemaAdjust, "schema.name.adjustment.mode", "How schema names are made valid.", sdk.Default("none"), sdk.Medium(), sdk.OneOf("none", "avro", "avro_unicode"))
	d.String(&c.FieldAdjust, "field.name.adjustment.mode", "How field names are made valid.", sdk.Default("none"), sdk.Medium(), sdk.OneOf("none", "avro", "avro_unicode"))
	d.List(&c.PropagateType, "column.propagate.source.type", "Columns whose database type is given in schema parameters.", sdk.Low())
	d.List(&c.PropagateTypes, "datatype.propagate.source.type", "Types whose columns tell it in schema parameters.", sdk.Low())
	comments := []sdk.Option{sdk.Default("false"), sdk.Low()}
	if dialect.Comments != "" {
		comments = append(comments, sdk.Ignored(dialect.Comments))
	}
	d.Bool(&c.Comments, "include.schema.comments", "Tell column comments.", comments...)
	d.String(&c.OnConversion, "event.converting.failure.handling.mode", "What to do with a value that cannot be converted: fail, or null with (warn) or without (skip) a line in the log.",
		sdk.Default("warn"), sdk.Low(), sdk.OneOf("fail", "warn", "skip"))
}

func checkSkipped(s string) error {
	ops := sdk.SplitList(s)
	for _, op := range ops {
		if !slices.Contains([]string{"c", "u", "d", "t", "none"}, op) {
			return fmt.Errorf("%q is no operation; use c, u, d, t or none", op)
		}
		if op == "none" && len(ops) > 1 {
			return fmt.Errorf("none stands alone")
		}
	}
	return nil
}

func (c *Config) defineSnapshot(d *sdk.Def, dialect Dialect) {
	d.Group("Snapshot")
	d.String(&c.SnapshotMode, "snapshot.mode", "When rows that exist are read: initial (once), initial_only (once, then nothing), no_data (never; schema_only is the old name), always, when_needed.",
		sdk.Default("initial"), sdk.Check(checkMode), sdk.Recommend("always", "initial", "initial_only", "no_data", "never", "when_needed"))
	d.List(&c.SnapshotTables, "snapshot.include.collection.list", "Captured tables whose rows are read; all without it.", sdk.Medium())
	d.Int(&c.SnapshotFetch, "snapshot.fetch.size", "Rows read at a time.", sdk.Default(dialect.Fetch), sdk.AtLeast(0), sdk.Low(), sdk.Ignored("rows come in one stream that is slowed by its reader."))
	d.Millis(&c.SnapshotDelay, "snapshot.delay.ms", "Pause before the snapshot.", sdk.Default("0"), sdk.AtLeast(0), sdk.Low())
	d.Millis(&c.StreamingDelay, "streaming.delay.ms", "Pause between snapshot and streaming.", sdk.Default("0"), sdk.AtLeast(0), sdk.Low())
	d.List(&c.SnapshotOverrides, "snapshot.select.statement.overrides", "Tables whose rows are read by a statement of their own, given under this key + .<schema>.<table>.", sdk.Low())
	d.Prefixed(&c.overrides, "snapshot.select.statement.overrides.")
	d.Bool(&c.SnapshotResume, "snapshot.resume", "Go on with a snapshot that was cut, instead of starting it again.", sdk.Default("true"), sdk.Medium())
	d.Millis(&c.LockTimeout, "snapshot.lock.timeout.ms", "How long reading a table waits for its lock.", sdk.Default("10000"), sdk.AtLeast(0), sdk.Low())
}

// checkMode names what a refused mode would need.
func checkMode(s string) error {
	switch s {
	case "initial", "initial_only", "no_data", "never", "schema_only", "always", "when_needed":
		return nil
	case "custom", "configuration_based":
		return fmt.Errorf("%s runs Java code or combinations that do not exist here; use initial, initial_only, no_data, always or when_needed", s)
	}
	return fmt.Errorf("String must be one of: initial, initial_only, no_data, never, always, when_needed")
}

func (c *Config) defineTopics(d *sdk.Def, dialect Dialect) {
	d.Group("Topics")
	d.String(&c.Delimiter, "topic.delimiter", "Stands between the parts of a topic's name.", sdk.Default("."), sdk.Medium(), sdk.NonEmpty())
	var strategy string
	d.Class(&strategy, "topic.naming.strategy", "How topics are named; the built-in way only.", sdk.Default(dialect.Strategy), sdk.Medium(), sdk.Check(func(s string) error {
		if s != dialect.Strategy && s != "io.debezium.schema.SchemaTopicNamingStrategy" && s != "io.debezium.schema.DefaultTopicNamingStrategy" {
			return fmt.Errorf("Java classes cannot run here; leave the key out and rename topics with a transform")
		}
		return nil
	}))
	d.Millis(&c.HeartbeatInterval, "heartbeat.interval.ms", "Time between heartbeat records; 0 for none. They are not needed to let an idle database forget its log.", sdk.Default("0"), sdk.AtLeast(0), sdk.Medium())
	d.String(&c.HeartbeatQuery, "heartbeat.action.query", "Statement run with each heartbeat.", sdk.Low())
	d.String(&c.heartbeatPrefix, "topic.heartbeat.prefix", "Heartbeats go to <this>.<topic.prefix>.", sdk.Default("__debezium-heartbeat"), sdk.Low())
	d.String(&c.heartbeatName, "topic.heartbeat.name", "The whole name of the heartbeat topic.", sdk.Low())
	d.Bool(&c.Transactions, "provide.transaction.metadata", "Write begin and end of transactions to a topic and number their events.", sdk.Default("false"), sdk.Low())
	d.String(&c.transactionTopic, "topic.transaction", "Transactions go to <topic.prefix>.<this>.", sdk.Default("transaction"), sdk.Low())
}

func (c *Config) defineLimits(d *sdk.Def) {
	d.Group("Limits")
	d.Int(&c.MaxBatch, "max.batch.size", "Records between two stored positions, at most.", sdk.Default("2048"), sdk.AtLeast(1), sdk.Medium())
	d.Int(&c.MaxQueue, "max.queue.size", "Records queued.", sdk.Default("8192"), sdk.AtLeast(1), sdk.Medium(), sdk.Ignored("queues are bounded in bytes."))
	d.Long(&c.MaxQueueBytes, "max.queue.size.in.bytes", "Bytes read ahead of the worker; 0 lets the connector choose.", sdk.Default("0"), sdk.AtLeast(0), sdk.Medium())
	d.Int(&c.GuardrailMax, "guardrail.collections.max", "Most tables that may be captured; 0 for any number.", sdk.Default("0"), sdk.AtLeast(0), sdk.Low())
	d.String(&c.Guardrail, "guardrail.collections.limit.action", "What happens beyond guardrail.collections.max.", sdk.Default("warn"), sdk.Low(), sdk.OneOf("warn", "fail"))
}

// ignored are shared keys without effect, and why.
var ignored = []struct{ name, fallback, doc, why string }{
	{"snapshot.max.threads", "1", "Tables read at a time.", "one reader is used."},
	{"snapshot.max.threads.multiplier", "1", "Chunks per reader.", "one reader is used."},
	{"legacy.snapshot.max.threads", "false", "One reader per table.", "one reader is used."},
	{"snapshot.query.mode", "select_all", "How rows are selected.", "snapshot.select.statement.overrides does what is needed."},
	{"snapshot.tables.order.by.row.count", "disabled", "Order of the tables.", "tables are read by name."},
	{"incremental.snapshot.chunk.size", "1024", "Rows per chunk of an incremental snapshot.", "incremental snapshots do not exist yet."},
	{"incremental.snapshot.allow.schema.changes", "false", "Allow schema changes during an incremental snapshot.", "incremental snapshots do not exist yet."},
	{"incremental.snapshot.watermarking.strategy", "insert_insert", "How windows are marked.", "nothing is written to the database."},
	{"read.only", "false", "Write nothing to the database.", "nothing is written to it, except by heartbeat.action.query and to make slot and publication."},
	{"signal.data.collection", "", "Table of signals.", "signals are not read yet."},
	{"signal.poll.interval.ms", "5000", "Time between looks for signals.", "signals are not read yet."},
	{"signal.file", "file-signals.txt", "File of signals.", "signals are not read yet."},
	{"signal.kafka.topic", "", "Topic of signals.", "signals are not read yet."},
	{"signal.kafka.bootstrap.servers", "", "Brokers of the signal topic.", "signals are not read yet."},
	{"signal.kafka.groupId", "kafka-signal", "Consumer group of the signal topic.", "signals are not read yet."},
	{"signal.kafka.poll.timeout.ms", "100", "Time limit of a poll.", "signals are not read yet."},
	{"signal.emit.failure.max.retries", "0", "Retries of a signal.", "signals are not read yet."},
	{"notification.enabled.channels", "", "Where notifications go.", "progress is shown in the connector's status."},
	{"notification.sink.topic.name", "", "Topic of notifications.", "progress is shown in the connector's status."},
	{"topic.cache.size", "10000", "Topic names kept.", "each table keeps its own."},
	{"poll.interval.ms", "500", "Time between polls.", "changes are handed on as they come."},
	{"errors.max.retries", "-1", "Retries of a failed connection.", "the worker retries without limit, with growing pauses."},
	{"retriable.restart.connector.wait.ms", "10000", "Pause before a retry.", "the worker chooses the pause."},
	{"event.processing.failure.handling.mode", "fail", "What to do with an event that cannot be processed.", "such an event always fails the task, so that nothing is lost."},
	{"connection.validation.timeout.ms", "60000", "Time limit of the check of a connection.", "the worker has a limit of its own."},
	{"custom.metric.tags", "", "Labels of metrics.", "metrics carry connector and task."},
	{"statistics.metrics.enabled", "false", "More metrics.", "they do not exist."},
	{"sourceinfo.struct.maker", "", "Class that makes the source block.", "the built-in one is used."},
	{"transaction.metadata.factory", "", "Class that makes transaction metadata.", "the built-in one is used."},
	{"include.column.defaults", "true", "Give column defaults in schemas.", "they are always given."},
	{"exactly.once.headers", "false", "Give positions in headers.", "positions are stored with the records, none comes twice."},
	{"snapshot.new.tables", "none", "What to do with tables added later.", "their changes are captured from then on; their rows are not read."},
	{"snapshot.wal.budget", "0", "Most log kept during a snapshot.", "the size is not watched yet."},
}

func (c *Config) defineIgnored(d *sdk.Def, _ Dialect) {
	d.Group("Accepted for compatibility")
	refuse := func(name, doc, why string, allowed ...string) {
		var unused string
		fallback := ""
		if len(allowed) > 0 {
			fallback = allowed[0]
		}
		d.String(&unused, name, doc, sdk.Default(fallback), sdk.Low(), sdk.Check(func(s string) error {
			if s == "" || slices.Contains(allowed, s) {
				return nil
			}
			return fmt.Errorf("%s", why)
		}))
	}
	refuse("converters", "Custom converters.", "Java converters cannot run here; leave the key out")
	refuse("post.processors", "Post processors.", "post processors are not supported; leave the key out")
	refuse("signal.enabled.channels", "Channels of signals.", "only the channel source is accepted, and it is not read yet", "source")
	refuse("snapshot.mode.custom.name", "Class of a custom snapshot mode.", "Java classes cannot run here; leave the key out")
	for _, k := range ignored {
		var unused string
		opts := []sdk.Option{notYet(k.why), sdk.Low()}
		if k.fallback != "" {
			opts = append(opts, sdk.Default(k.fallback))
		}
		d.String(&unused, k.name, k.doc, opts...)
	}
}

// Check compiles the lists and reports what contradicts. It is called with the
// fields bound.
func (c *Config) Check(schemaKey string, schemaInclude, schemaExclude []string) sdk.FieldErrors {
	var errs sdk.FieldErrors
	compile := func(key string, items []string, to *Patterns) {
		ps, err := ParsePatterns(items)
		if err != nil {
			errs = append(errs, sdk.FieldError(key, "config.invalid", "%w", err))
		}
		*to = ps
	}
	exclusive := func(stem string, include, exclude []string) {
		if len(include) > 0 && len(exclude) > 0 {
			errs = append(errs, sdk.FieldError(stem+".exclude.list", "config.invalid",
				"%s.include.list and %s.exclude.list cannot both be set; remove one", stem, stem))
		}
	}
	compile("table.include.list", c.TableInclude, &c.Capture.Tables.Include)
	compile("table.exclude.list", c.TableExclude, &c.Capture.Tables.Exclude)
	compile(schemaKey+".include.list", schemaInclude, &c.Capture.Schemas.Include)
	compile(schemaKey+".exclude.list", schemaExclude, &c.Capture.Schemas.Exclude)
	compile("column.include.list", c.ColumnInclude, &c.Capture.Columns.Include)
	compile("column.exclude.list", c.ColumnExclude, &c.Capture.Columns.Exclude)
	compile("snapshot.include.collection.list", c.SnapshotTables, &c.Snapshot)
	compile("column.propagate.source.type", c.PropagateType, &c.propagate)
	compile("datatype.propagate.source.type", c.PropagateTypes, &c.propagates)
	exclusive("table", c.TableInclude, c.TableExclude)
	exclusive("column", c.ColumnInclude, c.ColumnExclude)
	exclusive(schemaKey, schemaInclude, schemaExclude)
	var err error
	if c.Keys, err = ParseKeyRules(c.MessageKeys); err != nil {
		errs = append(errs, sdk.FieldError("message.key.columns", "config.invalid", "%w", err))
	}
	if c.Masks, err = ParseMasks(c.maskKeys()); err != nil {
		errs = append(errs, sdk.FieldError("column.mask", "config.invalid", "%w", err))
	}
	for _, t := range c.SnapshotOverrides {
		if c.Override(t) == "" {
			errs = append(errs, sdk.FieldError("snapshot.select.statement.overrides", "config.invalid",
				"the statement for %s is missing; set snapshot.select.statement.overrides.%s", t, t))
		}
	}
	return errs
}

func (c *Config) maskKeys() map[string]string {
	keys := make(map[string]string)
	for k, v := range c.mask {
		keys["column.mask."+k] = v
	}
	for k, v := range c.truncate {
		keys["column.truncate."+k] = v
	}
	return keys
}

// Override returns the statement that reads a table's rows, "" without one.
func (c *Config) Override(table string) string {
	if !slices.Contains(c.SnapshotOverrides, table) {
		return ""
	}
	return c.overrides[table]
}

// Skips reports whether an operation has no events.
func (c *Config) Skips(op string) bool { return slices.Contains(c.Skipped, op) }

// Names returns the names that the config asks for.
func (c *Config) Names() Names {
	return Names{Prefix: c.Prefix, Delimiter: c.Delimiter, SchemaAdjust: c.SchemaAdjust, FieldAdjust: c.FieldAdjust}
}

// HeartbeatTopic returns the topic of heartbeats.
func (c *Config) HeartbeatTopic() string {
	if c.heartbeatName != "" {
		return c.heartbeatName
	}
	return sanitizeTopic(c.heartbeatPrefix + c.Delimiter + c.Prefix)
}

// TransactionTopic returns the topic of transaction metadata.
func (c *Config) TransactionTopic() string { return c.Names().Named(c.transactionTopic) }

// Propagates reports whether a column tells its type in schema parameters, by
// its name or that of its type.
func (c *Config) Propagates(t TableID, column, db, typ string) bool {
	return c.propagate.Match(t.String()+"."+column) ||
		c.propagates.Match(db+"."+t.String()+"."+typ) || c.propagates.Match(t.String()+"."+typ) || c.propagates.Match(typ)
}

// NoData reports whether the mode reads no rows.
func (c *Config) NoData() bool {
	switch strings.ToLower(c.SnapshotMode) {
	case "no_data", "never", "schema_only":
		return true
	}
	return false
}
