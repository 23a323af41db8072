package main

import (
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/millrace-io/millrace/plugins/sdk"
)

// The values of format.class, by their last part.
const (
	formatJSON    = "JsonFormat"
	formatParquet = "ParquetFormat"
)

// config is what the keys of the sink say. Names are Confluent's.
type config struct {
	bucket, region, storeURL string
	pathStyle                bool
	accessKey                string
	secretKey                sdk.Secret
	ambient                  bool

	topicsDir, dirDelim, fileDelim string
	zeroPad                        int
	format, compression            string
	parquetCodec                   string
	decimals                       string

	flushSize      int
	rotateInterval time.Duration
	rotateSchedule time.Duration
	timezone       string
	nullValues     string

	guarantee, onForeign string
	probe                bool
	memoryMax            int64
}

func (c *config) define(d *sdk.Def) {
	c.defineStore(d)
	c.defineObjects(d)
	c.defineRotation(d)
	defineIgnored(d)
}

func (c *config) defineStore(d *sdk.Def) {
	d.Group("S3")
	d.String(&c.bucket, "s3.bucket.name", "Bucket to write to; it must exist.", sdk.Required(), sdk.NonEmpty())
	d.String(&c.region, "s3.region", "Region of the bucket.", sdk.Default("us-west-2"), sdk.Medium())
	d.String(&c.storeURL, "store.url", "Address of an S3-compatible server; without it, AWS.", sdk.Low(), sdk.Check(checkURL))
	d.Bool(&c.pathStyle, "s3.path.style.access.enabled", "Whether the bucket is part of the path rather than of the host name.", sdk.Default("true"), sdk.Low())
	d.String(&c.accessKey, "aws.access.key.id", "Access key; without it the default chain finds credentials: environment, profile, web identity, instance.", sdk.Default(""), sdk.Medium())
	d.Secret(&c.secretKey, "aws.secret.access.key", "Secret of the access key.", sdk.Default(""), sdk.Medium())
	d.Bool(&c.ambient, "aws.credentials.allow.ambient", "Whether the default chain may be used at all.", sdk.Default("true"), sdk.Low())
}

func (c *config) defineObjects(d *sdk.Def) {
	d.Group("Objects")
	d.String(&c.topicsDir, "topics.dir", "First element of every object's key; may be empty.", sdk.Default("topics"), sdk.Low())
	d.String(&c.dirDelim, "directory.delim", "Separates the elements of a key.", sdk.Default("/"), sdk.Medium())
	d.String(&c.fileDelim, "file.delim", "Separates topic, partition and offset in an object's name.", sdk.Default("+"), sdk.Medium())
	d.Int(&c.zeroPad, "filename.offset.zero.pad.width", "Digits of the offset in an object's name.", sdk.Default("10"), sdk.Low(), sdk.Between(0, 20))
	d.Class(&c.format, "format.class", "Format of the objects: JsonFormat (JSON lines) or ParquetFormat, with or without Confluent's package before it.", sdk.Required(), sdk.Check(func(s string) error {
		if f := lastPart(s); f != formatJSON && f != formatParquet {
			return fmt.Errorf("this version writes JsonFormat and ParquetFormat")
		}
		return nil
	}))
	d.String(&c.compression, "s3.compression.type", "Compression of JSON lines: none, gzip or zstd.", sdk.Default("none"), sdk.Low(), sdk.OneOf("none", "gzip", "zstd"))
	d.String(&c.parquetCodec, "parquet.codec", "Compression inside Parquet: snappy, gzip, zstd or none.", sdk.Default("snappy"), sdk.Low(), sdk.OneOf("snappy", "gzip", "zstd", "none"))
	d.String(&c.decimals, "json.decimal.format", "Decimals in JSON lines: BASE64 or NUMERIC.", sdk.Default("BASE64"), sdk.Low(), sdk.OneOf("BASE64", "NUMERIC"))
	d.String(&c.nullValues, "behavior.on.null.values", "What a record without value (a tombstone) does: fail the task or be ignored.", sdk.Default("fail"), sdk.Low(), sdk.OneOf("fail", "ignore"))
	d.Class(new(string), "partitioner.class", "How records are spread over directories; this version knows the DefaultPartitioner: one directory per partition.",
		sdk.Default("io.confluent.connect.storage.partitioner.DefaultPartitioner"), sdk.Medium(), sdk.Check(func(s string) error {
			if lastPart(s) != "DefaultPartitioner" {
				return fmt.Errorf("this version knows the DefaultPartitioner only")
			}
			return nil
		}))
}

func (c *config) defineRotation(d *sdk.Def) {
	d.Group("Rotation")
	d.Int(&c.flushSize, "flush.size", "Records after which an object is finished.", sdk.Required(), sdk.AtLeast(1))
	d.Millis(&c.rotateInterval, "rotate.interval.ms", "Span of record time after which an object is finished; -1 for none.", sdk.Default("-1"), sdk.AtLeast(-1))
	d.Millis(&c.rotateSchedule, "rotate.schedule.interval.ms", "Wall-clock time after which an object is finished, counted from midnight in timezone; -1 for none.", sdk.Default("-1"), sdk.Medium(), sdk.AtLeast(-1))
	d.String(&c.timezone, "timezone", "Time zone of the schedule, such as Europe/Berlin; empty means UTC.", sdk.Default(""), sdk.Medium(), sdk.Check(func(s string) error {
		_, err := time.LoadLocation(s)
		return err
	}))
	d.Group("Delivery")
	d.String(&c.guarantee, "delivery.guarantee", "conditional writes an object only if it does not exist; deterministic_overwrite replaces it; auto takes conditional where the server proves that it can.", sdk.Default("auto"), sdk.Low(), sdk.OneOf("auto", "conditional", "deterministic_overwrite"))
	d.Bool(&c.probe, "conditional.write.probe", "Whether to write a small object twice at start, to see whether the server refuses the second.", sdk.Default("true"), sdk.Low())
	d.String(&c.onForeign, "on.foreign.object", "What an object of the same name that another topic or connector wrote does: fail, or overwrite.", sdk.Default("fail"), sdk.Low(), sdk.OneOf("fail", "overwrite"))
	d.Long(&c.memoryMax, "buffer.memory.max.bytes", "Memory for unfinished objects; beyond it the largest is finished early, which needs conditional writes.", sdk.Default("268435456"), sdk.Low(), sdk.AtLeast(1<<20))
}

// defineIgnored declares keys that existing configs hold and that need nothing
// here.
func defineIgnored(d *sdk.Def) {
	d.Group("Accepted")
	for _, k := range [...]struct{ name, why string }{
		{"storage.class", "there is one storage, S3."},
		{"schema.generator.class", "schemas come from the records."},
		{"schema.compatibility", "a new schema always begins a new Parquet object."},
		{"schema.cache.size", "schemas are cached by the worker."},
		{"s3.part.size", "an object is sent in one request."},
		{"s3.part.retries", "requests are tried again until they succeed."},
		{"s3.retry.backoff.ms", "the pause grows by itself."},
		{"retry.backoff.ms", "the pause grows by itself."},
		{"partition.duration.ms", "it belongs to time-based partitioners."},
		{"path.format", "it belongs to time-based partitioners."},
		{"locale", "it belongs to time-based partitioners."},
		{"timestamp.extractor", "it belongs to time-based partitioners."},
		{"timestamp.field", "it belongs to time-based partitioners."},
		{"partition.field.name", "it belongs to field partitioners."},
		{"s3.elastic.buffer.enable", "memory grows with the data."},
		{"enhanced.avro.schema.support", "it belongs to Avro."},
		{"connect.meta.data", "it belongs to Avro."},
		{"enable.conditional.writes", "see delivery.guarantee."},
		{"confluent.topic", "no licence is needed."},
		{"confluent.topic.bootstrap.servers", "no licence is needed."},
		{"confluent.topic.replication.factor", "no licence is needed."},
		{"rotate.file.on.partition.change", "it belongs to time-based partitioners."},
	} {
		d.String(new(string), k.name, "Of Confluent's sink.", sdk.Low(), sdk.Ignored(k.why))
	}
}

func checkURL(s string) error {
	u, err := url.Parse(s)
	if s != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "") {
		return fmt.Errorf("an address such as http://127.0.0.1:9000 is needed")
	}
	return nil
}

// lastPart is a class name without its package.
func lastPart(class string) string { return class[strings.LastIndexByte(class, '.')+1:] }
