package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"

	"github.com/millrace-io/millrace/plugins/sdk"
)

// requestTries is how often the client tries a request before the task shows
// that it waits.
const requestTries = 4

// store is the bucket. What it says is on S3 is on S3.
type store struct {
	client *s3.Client
	c      *config
}

func openStore(ctx context.Context, c *config) (*store, error) {
	options := []func(*awsconfig.LoadOptions) error{
		awsconfig.WithRegion(c.region),
		awsconfig.WithRetryMaxAttempts(requestTries),
	}
	switch {
	case c.accessKey != "":
		options = append(options, awsconfig.WithCredentialsProvider(credentials.NewStaticCredentialsProvider(c.accessKey, c.secretKey.Reveal(), "")))
	case !c.ambient:
		return nil, sdk.FieldError("aws.access.key.id", "sink.s3.no_credentials", "there are no credentials: set aws.access.key.id and aws.secret.access.key, or allow the default chain by aws.credentials.allow.ambient")
	}
	if c.storeURL != "" {
		// Servers that speak S3 often know no trailing checksums.
		options = append(options, awsconfig.WithRequestChecksumCalculation(aws.RequestChecksumCalculationWhenRequired),
			awsconfig.WithResponseChecksumValidation(aws.ResponseChecksumValidationWhenRequired))
	}
	settings, err := awsconfig.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return nil, sdk.Errorf(sdk.Invalid, "sink.s3.no_credentials", "the AWS settings cannot be loaded: %w", err)
	}
	client := s3.NewFromConfig(settings, func(o *s3.Options) {
		o.UsePathStyle = c.pathStyle
		if c.storeURL != "" {
			o.BaseEndpoint = aws.String(c.storeURL)
		}
	})
	return &store{client: client, c: c}, nil
}

// errExists says that there is an object of that name already.
var errExists = errors.New("the object exists")

// put writes an object, only if there is none of that name when conditional is
// set. Afterwards it is durable on S3.
func (s *store) put(ctx context.Context, o *object, conditional bool) error {
	in := &s3.PutObjectInput{
		Bucket: &s.c.bucket, Key: &o.key, Body: bytes.NewReader(o.body), ContentLength: aws.Int64(int64(len(o.body))),
		ContentType: &o.contentType, Metadata: o.meta,
	}
	if conditional {
		in.IfNoneMatch = aws.String("*")
	}
	_, err := s.client.PutObject(ctx, in)
	if status(err) == http.StatusPreconditionFailed {
		return errExists
	}
	return s.explain("write s3://"+s.c.bucket+"/"+o.key, err)
}

// meta returns the metadata of an object, nil when there is no such object.
func (s *store) meta(ctx context.Context, key string) (map[string]string, error) {
	out, err := s.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &s.c.bucket, Key: &key})
	if status(err) == http.StatusNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, s.explain("look at s3://"+s.c.bucket+"/"+key, err)
	}
	if out.Metadata == nil {
		return map[string]string{}, nil
	}
	return out.Metadata, nil
}

// provesConditional reports whether the server refuses to write an object that
// exists: a small one is written twice.
func (s *store) provesConditional(ctx context.Context, connector string) (bool, error) {
	o := &object{key: join(s.c, ".probe", strings.Map(keySafe, connector)), body: []byte("probe\n"), contentType: "text/plain"}
	if err := s.put(ctx, o, true); err != nil && !errors.Is(err, errExists) {
		if sdk.CodeOf(err) == sdk.Unavailable || sdk.ReasonOf(err) != "sink.s3.refused" {
			return false, err
		}
		return false, nil // the server does not know the condition
	}
	err := s.put(ctx, o, true)
	if errors.Is(err, errExists) {
		return true, nil
	}
	return false, err
}

// keySafe keeps what any file system and server takes in a key.
func keySafe(r rune) rune {
	if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.' {
		return r
	}
	return '_'
}

// check tries to reach the bucket, for a config that is being validated.
func (s *store) check(ctx context.Context) error {
	_, err := s.client.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: &s.c.bucket})
	return s.explain("reach the bucket "+s.c.bucket, err)
}

// status returns the HTTP status of an error of the client, 0 when there was no
// answer.
func status(err error) int {
	if r, ok := errors.AsType[*awshttp.ResponseError](err); ok {
		return r.HTTPStatusCode()
	}
	return 0
}

// errorCode returns the code that S3 gives an error, "" when it gave none.
func errorCode(err error) string {
	if e, ok := errors.AsType[smithy.APIError](err); ok {
		return e.ErrorCode()
	}
	return ""
}

// explain tells errors that pass from those that a human must mend.
func (s *store) explain(what string, err error) error {
	if err == nil {
		return nil
	}
	where := s.c.storeURL
	if where == "" {
		where = "AWS S3"
	}
	mend := func(key, reason, format string, args ...any) error {
		e := sdk.FieldError(key, reason, "cannot %s at %s: %s", what, where, fmt.Sprintf(format, args...))
		e.Err = err
		return e
	}
	code := errorCode(err)
	switch http := status(err); {
	case code == "NoSuchBucket" || http == 404:
		return mend("s3.bucket.name", "sink.s3.no_such_bucket", "there is no bucket %q; create it or correct s3.bucket.name", s.c.bucket)
	case http == 301 || http == 307 || code == "PermanentRedirect" || code == "AuthorizationHeaderMalformed" || code == "IncorrectEndpoint":
		return mend("s3.region", "sink.s3.wrong_region", "the bucket is not in the region %q%s; correct s3.region", s.c.region, regionHint(err))
	case code == "InvalidAccessKeyId" || code == "SignatureDoesNotMatch" || code == "InvalidAccessKey":
		return mend("aws.access.key.id", "sink.s3.bad_credentials", "the access key or its secret is wrong (%s)", code)
	case http == 401 || http == 403 && code != "RequestTimeTooSkewed":
		return mend("aws.access.key.id", "sink.s3.denied", "access is denied; check the keys, and that they may write to the bucket")
	case http == 400 && code != "RequestTimeout" && code != "ExpiredToken":
		return mend("s3.region", "sink.s3.refused", "the server refuses the request (%s); check s3.region and the keys", orUnnamed(code))
	case http == 501 || http == 405:
		return mend("store.url", "sink.s3.refused", "the server does not know this request (%s)", orUnnamed(code))
	}
	return &sdk.Error{Code: sdk.Unavailable, Reason: "sink.s3.unavailable", Key: "store.url", Msg: fmt.Sprintf("cannot %s at %s: %v", what, where, rootCause(err)), Err: err}
}

func orUnnamed(code string) string {
	if code == "" {
		return "no reason given"
	}
	return code
}

// regionHint returns the region that the answer names.
func regionHint(err error) string {
	if r, ok := errors.AsType[*awshttp.ResponseError](err); ok && r.Response != nil {
		if region := r.Response.Header.Get("x-amz-bucket-region"); region != "" {
			return " but in " + region
		}
	}
	return ""
}

// rootCause is the innermost text of an error: the client wraps it several times.
func rootCause(err error) error {
	if e, ok := errors.AsType[smithy.APIError](err); ok {
		return fmt.Errorf("%s: %s", e.ErrorCode(), e.ErrorMessage())
	}
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
}

// checkTimeout bounds the look at the bucket during validation.
const checkTimeout = 8 * time.Second
