package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/millrace-io/millrace/plugins/sdk"
)

// object is one finished object.
type object struct {
	key         string
	body        []byte
	contentType string
	meta        map[string]string
}

// The metadata that every object carries, so that a later owner of the partition
// can tell whose it is and how far it goes.
const (
	metaTopic     = "kc-topic"
	metaTopicID   = "kc-topic-id"
	metaPartition = "kc-partition"
	metaStart     = "kc-start"
	metaEnd       = "kc-end"
	metaCount     = "kc-count"
	metaFirst     = "kc-first"
	metaConnector = "kc-connector"
)

// file is an object being filled: consecutive records of one partition.
type file struct {
	enc        encoder
	start, end int64 // offsets of the first and last record in it
	count      int
	base       int64 // record time of the first
	first      string
}

// encoder turns records into the bytes of an object.
type encoder interface {
	// fits reports whether the record can go into this object.
	fits(r *sdk.Record) bool
	append(r *sdk.Record) error
	size() int
	finish() ([]byte, error)
}

// errNotStored is wrapped by the errors of records that can never be stored.
var errNotStored = errors.New("the record cannot be stored")

// fingerprint identifies a record across runs: the same offset of another
// incarnation of the topic has another one.
func fingerprint(r *sdk.Record, row []byte) string {
	h := sha256.New()
	var ts [8]byte
	binary.BigEndian.PutUint64(ts[:], uint64(r.Timestamp))
	h.Write(ts[:])
	h.Write(row)
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// join makes a key below topics.dir.
func join(c *config, parts ...string) string {
	if c.topicsDir != "" {
		parts = append([]string{c.topicsDir}, parts...)
	}
	return strings.Join(parts, c.dirDelim)
}

// key is the name of the object whose first record has the offset.
func key(c *config, tp sdk.TopicPartition, offset int64) string {
	n := strconv.Itoa(int(tp.Partition))
	name := tp.Topic + c.fileDelim + n + c.fileDelim + fmt.Sprintf("%0*d", c.zeroPad, offset) + extension(c)
	return join(c, tp.Topic, "partition="+n, name)
}

func extension(c *config) string {
	if lastPart(c.format) == formatParquet {
		if c.parquetCodec == "none" {
			return ".parquet"
		}
		return "." + c.parquetCodec + ".parquet"
	}
	switch c.compression {
	case "gzip":
		return ".json.gz"
	case "zstd":
		return ".json.zst"
	}
	return ".json"
}

func contentType(c *config) string {
	switch {
	case lastPart(c.format) == formatParquet:
		return "application/vnd.apache.parquet"
	case c.compression == "gzip":
		return "application/gzip"
	case c.compression == "zstd":
		return "application/zstd"
	}
	return "application/x-ndjson"
}

// lines is the encoder of JSON lines.
type lines struct {
	buf  bytes.Buffer
	rows *rows
	c    *config
}

func (l *lines) fits(*sdk.Record) bool { return true }

func (l *lines) append(r *sdk.Record) error {
	row, err := l.rows.json(r)
	if err != nil {
		return err
	}
	l.buf.Write(row)
	l.buf.WriteByte('\n')
	return nil
}

func (l *lines) size() int { return l.buf.Len() }

func (l *lines) finish() ([]byte, error) {
	var z io.WriteCloser
	var out bytes.Buffer
	var err error
	switch l.c.compression {
	case "gzip":
		z = gzip.NewWriter(&out) // without time or name: the same records give the same bytes
	case "zstd":
		z, err = zstd.NewWriter(&out, zstd.WithEncoderConcurrency(1))
	default:
		return l.buf.Bytes(), nil
	}
	if err == nil {
		_, err = z.Write(l.buf.Bytes())
	}
	if err == nil {
		err = z.Close()
	}
	return out.Bytes(), err
}

// singleLine returns JSON without line breaks between its tokens.
func singleLine(b []byte) ([]byte, error) {
	if bytes.IndexByte(b, '\n') < 0 && bytes.IndexByte(b, '\r') < 0 {
		return b, nil
	}
	var out bytes.Buffer
	if err := json.Compact(&out, b); err != nil {
		return nil, fmt.Errorf("%w: its value is not JSON: %w", errNotStored, err)
	}
	return out.Bytes(), nil
}
