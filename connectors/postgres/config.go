package main

import (
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/millrace-io/millrace/connectors/internal/cdc"
	"github.com/millrace-io/millrace/plugins/sdk"
)

// config is everything a user can set.
type config struct {
	cdc.Config

	database                     string
	schemaInclude, schemaExclude []string
	slot                         string
	dropSlot                     bool
	failover                     bool
	streamParams                 string
	slotRetries                  int
	slotRetryDelay               time.Duration
	slotTimeout                  time.Duration
	publication                  string
	publicationMode              string
	viaRoot                      bool
	identities                   string
	mismatch                     string
	flushMode                    string
	ackKeepalive                 bool
	statusInterval               time.Duration
	sslMode                      string
	sslCert, sslKey, sslRootCert string
	sslPassword                  sdk.Secret
	keepAlive                    bool
	initialStatements            string
	hstoreMode                   string
	intervalMode                 string
	moneyDigits                  int
	messageInclude               []string
	messageExclude               []string
	driver                       map[string]string

	// What check makes of the above.
	placeholder    string
	placeholderHex bool
	messages       cdc.Filter
	identityRules  []identityRule
}

// identityRule sets the replica identity of tables.
type identityRule struct {
	tables   cdc.Pattern
	identity string
}

var dialect = cdc.Dialect{
	Port:      "5432",
	TimeMode:  "adaptive",
	TimeModes: []string{"adaptive", "adaptive_time_microseconds", "connect", "isostring", "microseconds", "nanoseconds"},
	Fetch:     "10240",
	Strategy:  "io.debezium.schema.SchemaTopicNamingStrategy",
	Comments:  "the reference connector gives none for Postgres either.",
}

// Define declares the keys.
func (c *config) Define(d *sdk.Def) {
	c.Config.Define(d, dialect)
	c.defineServer(d)
	c.defineSlot(d)
	c.defineTypes(d)
	c.defineIgnored(d)
}

func (c *config) defineServer(d *sdk.Def) {
	d.Group("Server")
	d.String(&c.database, "database.dbname", "Database to capture; one per connector.", sdk.Required(), sdk.NonEmpty())
	d.List(&c.schemaInclude, "schema.include.list", "Schemas to capture: regular expressions that match the whole name.", sdk.Medium())
	d.List(&c.schemaExclude, "schema.exclude.list", "Schemas to leave out; not together with schema.include.list.", sdk.Medium())
	d.String(&c.sslMode, "database.sslmode", "Encryption of the connection.", sdk.Default("prefer"), sdk.Medium(),
		sdk.OneOf("disable", "allow", "prefer", "require", "verify-ca", "verify-full"))
	d.String(&c.sslCert, "database.sslcert", "File of the client certificate, PEM.", sdk.Medium())
	d.String(&c.sslKey, "database.sslkey", "File of the client's key, PEM.", sdk.Medium())
	d.Secret(&c.sslPassword, "database.sslpassword", "Password of the client's key.", sdk.Medium())
	d.String(&c.sslRootCert, "database.sslrootcert", "File of the authorities that sign the server's certificate, PEM.", sdk.Medium())
	d.Bool(&c.keepAlive, "database.tcpKeepAlive", "Probe idle connections.", sdk.Default("true"), sdk.Low())
	d.String(&c.initialStatements, "database.initial.statements", "Statements run on each new connection, separated by semicolons (;; for one of its own).", sdk.Low())
	d.Prefixed(&c.driver, "driver.")
}

var slotName = regexp.MustCompile(`^[a-z0-9_]{1,63}$`)

func (c *config) defineSlot(d *sdk.Def) {
	d.Group("Slot and publication")
	var plugin string
	d.String(&plugin, "plugin.name", "Output plugin of the slot; pgoutput only, which every server has.", sdk.Default("pgoutput"), sdk.Medium(), sdk.Check(func(s string) error {
		if s != "pgoutput" {
			return fmt.Errorf("only pgoutput is supported; it is part of every server since version 10, set plugin.name=pgoutput or leave the key out, and use a new slot.name")
		}
		return nil
	}))
	d.String(&c.slot, "slot.name", "Name of the replication slot.", sdk.Default("debezium"), sdk.Medium(), sdk.Check(func(s string) error {
		if !slotName.MatchString(s) {
			return fmt.Errorf("a slot's name has 1 to 63 of the characters a-z, 0-9 and underscore")
		}
		return nil
	}))
	d.Bool(&c.dropSlot, "slot.drop.on.stop", "Drop the slot when the connector stops; for tests, changes made meanwhile are lost.", sdk.Default("false"), sdk.Medium())
	d.Bool(&c.failover, "slot.failover", "Make the slot with failover, from version 17 on.", sdk.Default("false"), sdk.Low())
	d.String(&c.streamParams, "slot.stream.params", "Further options of START_REPLICATION, as k=v;k=v.", sdk.Low())
	d.Int(&c.slotRetries, "slot.max.retries", "How often a slot in use or a slow creation is tried again.", sdk.Default("6"), sdk.AtLeast(0), sdk.Low())
	d.Millis(&c.slotRetryDelay, "slot.retry.delay.ms", "Pause between those tries.", sdk.Default("10000"), sdk.AtLeast(0), sdk.Low())
	d.Millis(&c.slotTimeout, "create.slot.command.timeout", "Time limit of creating a slot, in milliseconds; it waits for every running transaction.", sdk.Default("90000"), sdk.AtLeast(1), sdk.Low())
	d.String(&c.publication, "publication.name", "Name of the publication.", sdk.Default("dbz_publication"), sdk.Medium(), sdk.NonEmpty())
	d.String(&c.publicationMode, "publication.autocreate.mode", "filtered: make and alter a publication of the captured tables; all_tables: make one of all tables, which needs a superuser; no_tables: make an empty one; disabled: it must exist.",
		sdk.Default("filtered"), sdk.Medium(), sdk.OneOf("all_tables", "disabled", "filtered", "no_tables"))
	d.Bool(&c.viaRoot, "publish.via.partition.root", "Give changes of partitions as those of the partitioned table.", sdk.Default("false"), sdk.Medium())
	d.String(&c.identities, "replica.identity.autoset.values", "Replica identities to set, as <table regex>:<DEFAULT|FULL|NOTHING|INDEX name>,...", sdk.Low())
	d.String(&c.mismatch, "offset.mismatch.strategy", "What to do when the slot is ahead of the stored position: trust_offset fails, because changes are missing; trust_slot and trust_greater_lsn go on from the slot; no_validation does not look.",
		sdk.Default("trust_offset"), sdk.Medium(), sdk.OneOf("no_validation", "trust_offset", "trust_slot", "trust_greater_lsn"))
	d.String(&c.flushMode, "lsn.flush.mode", "connector and connector_and_driver confirm what is durable; manual confirms nothing.",
		sdk.Default("connector_and_driver"), sdk.Low(), sdk.OneOf("connector", "manual", "connector_and_driver"))
	d.Bool(&c.ackKeepalive, "ack.keepalive", "Confirm the server's own position while nothing is captured, so that an idle database can forget its log.", sdk.Default("true"), sdk.Low())
	d.Millis(&c.statusInterval, "status.update.interval.ms", "Time between confirmations to the server.", sdk.Default("10000"), sdk.AtLeast(1), sdk.Low())
}

func (c *config) defineTypes(d *sdk.Def) {
	d.Group("Types")
	d.String(&c.hstoreMode, "hstore.handling.mode", "Form of hstore.", sdk.Default("json"), sdk.Low(), sdk.OneOf("json", "map"))
	d.String(&c.intervalMode, "interval.handling.mode", "Form of interval: microseconds or ISO text.", sdk.Default("numeric"), sdk.Low(), sdk.OneOf("numeric", "string"))
	d.Int(&c.moneyDigits, "money.fraction.digits", "Digits after the point of money.", sdk.Default("2"), sdk.Between(-15, 15), sdk.Low())
	d.Bool(&c.UnknownTypes, "include.unknown.datatypes", "Give columns of types without a form of their own as text; false leaves them out.", sdk.Default("true"), sdk.Medium())
	d.List(&c.messageInclude, "message.prefix.include.list", "Prefixes of logical messages to capture.", sdk.Medium())
	d.List(&c.messageExclude, "message.prefix.exclude.list", "Prefixes of logical messages to leave out.", sdk.Medium())
}

// ignoredKeys are this connector's keys without effect, and why.
var ignoredKeys = []struct{ name, fallback, doc, why string }{
	{"schema.refresh.mode", "columns_diff", "When table definitions are read again.", "they are read when the server says that they changed."},
	{"xmin.fetch.interval.ms", "0", "How often the slot's xmin is read.", "source.xmin is always null."},
	{"lsn.flush.timeout.ms", "30000", "Time limit of a confirmation.", "confirmations do not wait."},
	{"lsn.flush.timeout.action", "fail", "What happens then.", "confirmations do not wait."},
	{"snapshot.isolation.mode", "serializable", "Isolation of the snapshot.", "a repeatable read on the slot's exported snapshot is as consistent."},
	{"snapshot.locking.mode", "none", "Locks of the snapshot.", "reading takes no lock but the one of SELECT."},
	{"database.sslfactory", "", "Class of the TLS factory.", "Java classes cannot run here."},
	{"database.jdbc.driver", "", "Class of the driver.", "Java classes cannot run here."},
	{"database.protocol", "", "Protocol of the driver's URL.", "there is no driver."},
	{"unavailable.value.mode", "placeholder", "How values that the server did not send are marked.", "the placeholder is used."},
	{"numeric.special.handling", "null", "What NaN becomes in precise decimals.", "it follows event.converting.failure.handling.mode."},
	{"slot.drop.on.delete", "ask", "Drop the slot with the connector.", "the connector is not told of its deletion; drop the slot by hand."},
}

func (c *config) defineIgnored(d *sdk.Def) {
	d.Group("Accepted for compatibility")
	for _, k := range ignoredKeys {
		var unused string
		opts := []sdk.Option{sdk.Ignored(k.why), sdk.Low()}
		if k.fallback != "" {
			opts = append(opts, sdk.Default(k.fallback))
		}
		d.String(&unused, k.name, k.doc, opts...)
	}
}

// check compiles what Define bound and reports contradictions.
func (c *config) check() sdk.FieldErrors {
	errs := c.Config.Check("schema", c.schemaInclude, c.schemaExclude)
	c.placeholder = c.Placeholder
	if digits, ok := strings.CutPrefix(c.Placeholder, "hex:"); ok {
		b, err := hex.DecodeString(digits)
		if err != nil {
			errs = append(errs, sdk.FieldError("unavailable.value.placeholder", "config.invalid", "%q is not hexadecimal", digits))
		}
		c.placeholder, c.placeholderHex = string(b), true
	}
	var err error
	if c.messages.Include, err = cdc.ParsePatterns(c.messageInclude); err != nil {
		errs = append(errs, sdk.FieldError("message.prefix.include.list", "config.invalid", "%w", err))
	}
	if c.messages.Exclude, err = cdc.ParsePatterns(c.messageExclude); err != nil {
		errs = append(errs, sdk.FieldError("message.prefix.exclude.list", "config.invalid", "%w", err))
	}
	if c.identityRules, err = parseIdentities(c.identities); err != nil {
		errs = append(errs, sdk.FieldError("replica.identity.autoset.values", "config.invalid", "%w", err))
	}
	if _, err := c.streamOptions(); err != nil {
		errs = append(errs, sdk.FieldError("slot.stream.params", "config.invalid", "%w", err))
	}
	for _, k := range []string{"options", "connectTimeout"} {
		delete(c.driver, k)
	}
	return errs
}

func parseIdentities(text string) ([]identityRule, error) {
	var rules []identityRule
	for _, part := range sdk.SplitList(text) {
		i := strings.LastIndexByte(part, ':')
		if i <= 0 {
			return nil, fmt.Errorf("%q is not of the form <table>:<identity>", part)
		}
		p, err := cdc.ParsePattern(part[:i])
		if err != nil {
			return nil, err
		}
		identity := strings.TrimSpace(part[i+1:])
		upper := strings.ToUpper(identity)
		if index, ok := strings.CutPrefix(upper, "INDEX "); ok {
			identity = "USING INDEX " + quoteIdent(strings.TrimSpace(identity[len(identity)-len(index):]))
		} else if slices.Contains([]string{"DEFAULT", "FULL", "NOTHING"}, upper) {
			identity = upper
		} else {
			return nil, fmt.Errorf("%q is no replica identity; use DEFAULT, FULL, NOTHING or INDEX <name>", identity)
		}
		rules = append(rules, identityRule{p, identity})
	}
	return rules, nil
}

// streamOptions reads slot.stream.params.
func (c *config) streamOptions() ([][2]string, error) {
	var options [][2]string
	for _, part := range strings.Split(c.streamParams, ";") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		k, v, ok := strings.Cut(part, "=")
		k, v = strings.TrimSpace(k), strings.TrimSpace(v)
		if !ok || k == "" {
			return nil, fmt.Errorf("%q is not of the form k=v", part)
		}
		if slices.Contains([]string{"proto_version", "publication_names", "messages", "binary", "streaming", "two_phase"}, k) {
			return nil, fmt.Errorf("the option %q is set by the connector", k)
		}
		options = append(options, [2]string{k, v})
	}
	return options, nil
}

// operations are the operations to publish, for the publication's option publish.
func (c *config) operations() []string {
	var ops []string
	for _, o := range []struct{ op, name string }{
		{cdc.OpCreate, "insert"}, {cdc.OpUpdate, "update"}, {cdc.OpDelete, "delete"}, {cdc.OpTruncate, "truncate"},
	} {
		if !c.Skips(o.op) {
			ops = append(ops, o.name)
		}
	}
	return ops
}

func (c *config) address() string { return fmt.Sprintf("%s:%d", c.Host, c.Port) }

// captures reports whether a table is captured. The list of coordinate systems
// that PostGIS keeps beside the user's tables is not, unless it is asked for.
func (c *config) captures(t cdc.TableID) bool {
	if c.IgnoreBuiltin && t.Name == "spatial_ref_sys" {
		return false
	}
	return c.Capture.Table(t)
}
