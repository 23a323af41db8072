package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/parquet-go/parquet-go"

	"github.com/millrace-io/millrace/plugins/sdk"
)

// testHost is a sink task's host that remembers what it is told.
type testHost struct {
	rewound map[sdk.TopicPartition]int64
	reports []string
	refuse  bool
}

func (*testHost) Progress(sdk.Progress)    {}
func (*testHost) Condition(string, string) {}
func (h *testHost) Rewind(tp sdk.TopicPartition, o int64) {
	h.rewound[tp] = o
}
func (*testHost) RetryAfter(time.Duration)     {}
func (*testHost) Pause(...sdk.TopicPartition)  {}
func (*testHost) Resume(...sdk.TopicPartition) {}
func (h *testHost) Report(r *sdk.Record, err error) (*sdk.Receipt, error) {
	if h.refuse {
		return nil, err
	}
	h.reports = append(h.reports, fmt.Sprint(r.Offset, " ", err))
	receipt, settle := sdk.NewReceipt(func() {})
	settle(nil)
	return receipt, nil
}

// server returns the address and keys of the real S3 server.
func server(t *testing.T) map[string]string {
	t.Helper()
	address := os.Getenv("MILLRACE_TEST_S3")
	if address == "" {
		if os.Getenv("REQUIRE_SERVERS") != "" {
			t.Fatal("no S3 server: set MILLRACE_TEST_S3, or run deploy/testbed/test.sh")
		}
		t.Skip("no S3 server: set MILLRACE_TEST_S3, or run deploy/testbed/test.sh")
	}
	return map[string]string{
		"store.url": address, "s3.region": "us-east-1",
		"aws.access.key.id": os.Getenv("MILLRACE_TEST_S3_ACCESS_KEY"), "aws.secret.access.key": os.Getenv("MILLRACE_TEST_S3_SECRET_KEY"),
	}
}

// bucket makes an empty bucket for one test and returns a config for it.
func bucket(t *testing.T, more map[string]string) map[string]string {
	t.Helper()
	config := server(t)
	config["s3.bucket.name"] = fmt.Sprintf("t-%d", rand.Int64N(1<<60))
	config["format.class"] = "io.confluent.connect.s3.format.json.JsonFormat"
	config["flush.size"] = "3"
	for k, v := range more {
		config[k] = v
	}
	s := configured(t, config)
	store, err := openStore(t.Context(), &s.c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.client.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &s.c.bucket}); err != nil {
		t.Fatal(err)
	}
	return config
}

func configured(t *testing.T, config map[string]string) *sink {
	t.Helper()
	s := &sink{}
	var d sdk.Def
	s.Define(&d)
	if errs := d.Parse(config).Errors(); len(errs) > 0 {
		t.Fatal(errs)
	}
	return s
}

var tp = sdk.TopicPartition{Topic: "orders", Partition: 0}

// started opens a sink task on one partition.
func started(t *testing.T, config map[string]string, from int64) (*sink, *testHost) {
	t.Helper()
	s := configured(t, config)
	h := &testHost{rewound: map[sdk.TopicPartition]int64{}}
	task := &sdk.SinkTask{Task: sdk.Task{Connector: "archive", Config: config, Log: slog.New(slog.DiscardHandler), Host: h}, Sink: h}
	if err := s.Open(t.Context(), task); err != nil {
		t.Fatal(err)
	}
	if err := s.OpenPartitions(t.Context(), []sdk.AssignedPartition{{TopicPartition: tp, TopicID: "topic-1", Offset: from}}); err != nil {
		t.Fatal(err)
	}
	return s, h
}

// records makes the records of the offsets from..to-1, always the same.
func records(from, to int64) []sdk.Record {
	schema := &sdk.Schema{Kind: sdk.KindStruct, Name: "order", Fields: []sdk.Field{
		{Name: "id", Schema: sdk.Of(sdk.KindInt64)},
		{Name: "note", Schema: sdk.OptionalOf(sdk.KindString)},
		{Name: "tags", Schema: &sdk.Schema{Kind: sdk.KindArray, Elem: sdk.Of(sdk.KindString)}},
		{Name: "lines", Schema: &sdk.Schema{Kind: sdk.KindArray, Optional: true, Elem: &sdk.Schema{Kind: sdk.KindStruct, Fields: []sdk.Field{
			{Name: "sku", Schema: sdk.Of(sdk.KindString)}, {Name: "n", Schema: sdk.OptionalOf(sdk.KindInt32)},
		}}}},
	}}
	var out []sdk.Record
	for o := from; o < to; o++ {
		note, lines := sdk.Null, sdk.Null
		if o%2 == 0 {
			note = sdk.String(fmt.Sprint("note ", o))
			lines = sdk.Array([]sdk.Value{
				sdk.Struct([]sdk.Value{sdk.String("a"), sdk.Int32(int32(o))}),
				sdk.Struct([]sdk.Value{sdk.String("b"), sdk.Null}),
			})
		}
		out = append(out, sdk.Record{
			Topic: tp.Topic, Partition: tp.Partition, Offset: o, Timestamp: o * 1000,
			Value: sdk.Data{Schema: schema, Value: sdk.Struct([]sdk.Value{sdk.Int64(o), note, sdk.Array([]sdk.Value{sdk.String("x"), sdk.String("y")}), lines})},
		})
	}
	return out
}

// objects reads everything in the bucket.
func objects(t *testing.T, config map[string]string) map[string][]byte {
	t.Helper()
	s := configured(t, config)
	store, err := openStore(t.Context(), &s.c)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]byte{}
	prefix := "topics/orders/"
	list, err := store.client.ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: &s.c.bucket, Prefix: &prefix})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range list.Contents {
		got, err := store.client.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &s.c.bucket, Key: o.Key})
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(got.Body)
		if err != nil {
			t.Fatal(err)
		}
		out[*o.Key] = b
	}
	return out
}

// ids returns the ids of all JSON lines, sorted.
func ids(t *testing.T, all map[string][]byte) []int64 {
	t.Helper()
	var out []int64
	for _, b := range all {
		for line := range strings.Lines(string(b)) {
			var v struct{ ID int64 }
			if err := json.Unmarshal([]byte(line), &v); err != nil {
				t.Fatal(err)
			}
			out = append(out, v.ID)
		}
	}
	slices.Sort(out)
	return out
}

func upTo(n int64) (out []int64) {
	for i := range n {
		out = append(out, i)
	}
	return out
}

func TestObjectsHaveConfluentsNamesAndOffsetsFollowThem(t *testing.T) {
	config := bucket(t, nil)
	s, _ := started(t, config, 0)
	if err := s.Write(t.Context(), records(0, 7)); err != nil {
		t.Fatal(err)
	}
	got, err := s.Committable(t.Context())
	if err != nil || got[tp] != 6 {
		t.Fatalf("committable = %v, %v; want 6", got, err)
	}
	all := objects(t, config)
	want := `{"id":3,"note":null,"tags":["x","y"],"lines":null}` + "\n" + `{"id":4,"note":"note 4","tags":["x","y"],"lines":[{"sku":"a","n":4},{"sku":"b","n":null}]}` + "\n" + `{"id":5,"note":null,"tags":["x","y"],"lines":null}` + "\n"
	if b := all["topics/orders/partition=0/orders+0+0000000003.json"]; string(b) != want {
		t.Errorf("second object is\n%s\nwant\n%s\n(all: %v)", b, want, slices.Collect(keys(all)))
	}
	if len(all) != 2 {
		t.Errorf("%d objects, want 2", len(all))
	}
}

func keys(m map[string][]byte) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// TestKillsRepeatNothing runs many lives of a task that die at random moments and
// rotate at random sizes, as a schedule would: whatever happened, each record is
// in S3 once.
func TestKillsRepeatNothing(t *testing.T) {
	rounds := 12
	if testing.Short() {
		rounds = 3
	}
	for seed := range rounds {
		config := bucket(t, nil)
		random := rand.New(rand.NewPCG(uint64(seed), 1))
		const last = 60
		committed := int64(0)
		for lives := 0; committed < last && lives < 200; lives++ {
			config["flush.size"] = fmt.Sprint(1 + random.IntN(9))
			s, h := started(t, config, committed)
			committed = live(t, s, h, committed, last, random)
		}
		if committed < last {
			// What is left is smaller than an object: finish it.
			config["flush.size"] = "1"
			s, h := started(t, config, committed)
			for committed < last {
				committed = live(t, s, h, committed, last, nil)
			}
		}
		if got := ids(t, objects(t, config)); !slices.Equal(got, upTo(last)) {
			t.Fatalf("seed %d: ids in S3 are %v, want 0..%d once each", seed, got, last-1)
		}
	}
}

// live feeds a task in pieces until it dies, sometimes before its offset is
// committed. It returns the committed offset.
func live(t *testing.T, s *sink, h *testHost, committed, last int64, random *rand.Rand) int64 {
	t.Helper()
	for at := committed; at < last; {
		n := int64(last)
		if random != nil {
			n = 1 + random.Int64N(6)
		}
		to := min(at+n, last)
		if err := s.Write(t.Context(), records(at, to)); err != nil {
			t.Fatal(err)
		}
		at = to
		if o, ok := h.rewound[tp]; ok {
			at = o
			delete(h.rewound, tp)
			continue
		}
		got, err := s.Committable(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if random != nil && random.IntN(4) == 0 {
			return committed // killed after the upload, before the commit
		}
		committed = max(committed, got[tp])
		if random != nil && random.IntN(5) == 0 {
			return committed
		}
	}
	return committed
}

func TestARecreatedTopicStopsTheTask(t *testing.T) {
	config := bucket(t, nil)
	s, _ := started(t, config, 0)
	if err := s.Write(t.Context(), records(0, 3)); err != nil {
		t.Fatal(err)
	}
	s, _ = started(t, config, 0)
	s.parts[tp].topicID = "topic-2"
	err := s.Write(t.Context(), records(0, 3))
	if sdk.ReasonOf(err) != "sink.s3.foreign_object" || sdk.CodeOf(err) != sdk.Invalid {
		t.Fatalf("err = %v, want a foreign object", err)
	}
}

func TestParquetIsReadBackWhole(t *testing.T) {
	for _, codec := range []string{"snappy", "gzip", "zstd", "none"} {
		config := bucket(t, map[string]string{"format.class": "io.confluent.connect.s3.format.parquet.ParquetFormat", "flush.size": "4", "parquet.codec": codec})
		s, _ := started(t, config, 0)
		if err := s.Write(t.Context(), records(0, 4)); err != nil {
			t.Fatal(err)
		}
		all := objects(t, config)
		name := "topics/orders/partition=0/orders+0+0000000000." + codec + ".parquet"
		if codec == "none" {
			name = "topics/orders/partition=0/orders+0+0000000000.parquet"
		}
		b, ok := all[name]
		if !ok {
			t.Fatalf("no object %s among %v", name, slices.Collect(keys(all)))
		}
		type line struct {
			Sku string `parquet:"sku"`
			N   *int32 `parquet:"n"`
		}
		type order struct {
			ID    int64    `parquet:"id"`
			Note  *string  `parquet:"note"`
			Tags  []string `parquet:"tags,list"`
			Lines []line   `parquet:"lines,list,optional"`
		}
		rows, err := parquet.Read[order](bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		if len(rows) != 4 || rows[2].ID != 2 || *rows[2].Note != "note 2" || rows[1].Note != nil || !slices.Equal(rows[3].Tags, []string{"x", "y"}) ||
			len(rows[2].Lines) != 2 || *rows[2].Lines[0].N != 2 || rows[2].Lines[1].N != nil || rows[2].Lines[1].Sku != "b" || len(rows[3].Lines) != 0 {
			t.Errorf("%s: rows read back are %+v", codec, rows)
		}
	}
}

func TestCompressedLinesAreDeterministic(t *testing.T) {
	for _, c := range []string{"gzip", "zstd"} {
		var bodies [][]byte
		for range 2 {
			config := bucket(t, map[string]string{"s3.compression.type": c})
			s, _ := started(t, config, 0)
			if err := s.Write(t.Context(), records(0, 3)); err != nil {
				t.Fatal(err)
			}
			for _, b := range objects(t, config) {
				bodies = append(bodies, b)
			}
		}
		if len(bodies) != 2 || !bytes.Equal(bodies[0], bodies[1]) {
			t.Errorf("%s: the same records give different objects", c)
		}
	}
}

func TestRecordTimeRotates(t *testing.T) {
	config := bucket(t, map[string]string{"flush.size": "100", "rotate.interval.ms": "4000"})
	s, _ := started(t, config, 0)
	if err := s.Write(t.Context(), records(0, 10)); err != nil { // one a second
		t.Fatal(err)
	}
	if got := ids(t, objects(t, config)); !slices.Equal(got, upTo(8)) {
		t.Errorf("ids in S3 are %v, want two objects of four", got)
	}
}

func TestScheduleRotatesWithoutRecords(t *testing.T) {
	config := bucket(t, map[string]string{"flush.size": "100", "rotate.schedule.interval.ms": "50"})
	s, _ := started(t, config, 0)
	if err := s.Write(t.Context(), records(0, 2)); err != nil {
		t.Fatal(err)
	}
	for deadline := time.After(10 * time.Second); ; {
		select {
		case <-deadline:
			t.Fatal("an idle partition was never uploaded")
		case <-time.After(10 * time.Millisecond):
		}
		if err := s.Write(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		if got, _ := s.Committable(t.Context()); got[tp] == 2 {
			return
		}
	}
}

func TestNullValuesFailOrAreLeftOut(t *testing.T) {
	null := sdk.Record{Topic: tp.Topic, Offset: 0}
	s, h := started(t, bucket(t, nil), 0)
	h.refuse = true
	if err := s.Write(t.Context(), []sdk.Record{null}); sdk.ReasonOf(err) != "sink.null_value" {
		t.Errorf("err = %v, want sink.null_value", err)
	}
	s, _ = started(t, bucket(t, map[string]string{"behavior.on.null.values": "ignore"}), 0)
	if err := s.Write(t.Context(), []sdk.Record{null}); err != nil {
		t.Fatal(err)
	}
	if got, _ := s.Committable(t.Context()); got[tp] != 1 {
		t.Errorf("committable = %v, want 1", got)
	}
}

func TestOutageKeepsRecordsAndRepeatsNothing(t *testing.T) {
	config := bucket(t, nil)
	target, err := url.Parse(config["store.url"])
	if err != nil {
		t.Fatal(err)
	}
	var down atomic.Bool
	proxy := httputil.NewSingleHostReverseProxy(target)
	director := proxy.Director
	proxy.Director = func(r *http.Request) { host := r.Host; director(r); r.Host = host }
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if down.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	defer front.Close()
	direct := config["store.url"]
	config["store.url"] = front.URL
	s, _ := started(t, config, 0)
	down.Store(true)
	err = s.Write(t.Context(), records(0, 5))
	if sdk.CodeOf(err) != sdk.Unavailable {
		t.Fatalf("err = %v, want one that passes", err)
	}
	down.Store(false)
	if err := s.Write(t.Context(), records(0, 5)); err != nil {
		t.Fatal(err)
	}
	config["store.url"] = direct
	if got := ids(t, objects(t, config)); !slices.Equal(got, upTo(3)) {
		t.Errorf("ids in S3 are %v, want 0..2 once", got)
	}
	if got, _ := s.Committable(context.Background()); got[tp] != 3 {
		t.Errorf("committable = %v, want 3", got)
	}
}

func TestValidateNamesWhatIsWrong(t *testing.T) {
	good := bucket(t, nil)
	cases := map[string]struct {
		change      map[string]string
		key, reason string
	}{
		"no such bucket": {map[string]string{"s3.bucket.name": "no-such-bucket-here"}, "s3.bucket.name", "sink.s3.no_such_bucket"},
		"wrong secret":   {map[string]string{"aws.secret.access.key": "wrong"}, "aws.access.key.id", "sink.s3.denied"},
		"wrong region":   {map[string]string{"s3.region": "eu-north-1"}, "s3.region", "sink.s3.refused"},
		"unreachable":    {map[string]string{"store.url": "http://127.0.0.1:1"}, "store.url", "sink.s3.unavailable"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			config := map[string]string{}
			for k, v := range good {
				config[k] = v
			}
			for k, v := range tc.change {
				config[k] = v
			}
			err := configured(t, config).Validate(t.Context())
			var errs sdk.FieldErrors
			if !errors.As(err, &errs) || errs[0].Key != tc.key || errs[0].Reason != tc.reason {
				t.Fatalf("err = %v (%+v), want key %s and reason %s", err, errs, tc.key, tc.reason)
			}
			if strings.Contains(err.Error(), good["aws.secret.access.key"]) || strings.Contains(err.Error(), "\n") {
				t.Errorf("the message holds a secret or several lines: %q", err)
			}
		})
	}
}
