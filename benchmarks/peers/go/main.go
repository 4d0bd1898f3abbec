// The AWS SDK for Go v2 in a bare loop: so many goroutines, each sending one job after the other.
package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"log"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sagemakerruntime"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

const endpoint, bucket, contentType = "bench", "bench-in", "application/json"

type keys struct{}

func (keys) Retrieve(context.Context) (aws.Credentials, error) {
	return aws.Credentials{AccessKeyID: os.Getenv("AWS_ACCESS_KEY_ID"), SecretAccessKey: os.Getenv("AWS_SECRET_ACCESS_KEY")}, nil
}

// transport is the SDK's default but for the connections kept and the certificates believed.
func transport(inFlight int, ca string) *http.Client {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if ca != "" {
		pem, err := os.ReadFile(ca)
		check(err)
		config.RootCAs = x509.NewCertPool()
		config.RootCAs.AppendCertsFromPEM(pem)
	}
	return &http.Client{Transport: &http.Transport{MaxIdleConns: inFlight, MaxIdleConnsPerHost: inFlight, TLSClientConfig: config}}
}

// inlineBody sets the payload as the request's body: versions of the SDK from before inline payloads have no field for it.
func inlineBody(payload []byte) func(*middleware.Stack) error {
	return func(stack *middleware.Stack) error {
		return stack.Serialize.Add(middleware.SerializeMiddlewareFunc("InlineBody", func(
			ctx context.Context, in middleware.SerializeInput, next middleware.SerializeHandler,
		) (middleware.SerializeOutput, middleware.Metadata, error) {
			request := in.Request.(*smithyhttp.Request)
			request.Header.Del("X-Amzn-SageMaker-InputLocation")
			request, err := request.SetStream(bytes.NewReader(payload))
			if err != nil {
				return middleware.SerializeOutput{}, middleware.Metadata{}, err
			}
			in.Request = request
			return next.HandleSerialize(ctx, in)
		}), middleware.After)
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func main() {
	url := flag.String("url", "", "")
	jobs := flag.Int64("jobs", 0, "")
	size := flag.Int("size", 1000, "")
	path := flag.String("path", "inline", "")
	inFlight := flag.Int("in-flight", 64, "")
	ca := flag.String("ca", "", "")
	flag.Parse()

	payload := []byte(`"` + strings.Repeat("x", *size-2) + `"`)
	client := transport(*inFlight, *ca)
	runtime := sagemakerruntime.New(sagemakerruntime.Options{
		Region: "us-east-1", Credentials: aws.NewCredentialsCache(keys{}), HTTPClient: client,
		EndpointResolver: sagemakerruntime.EndpointResolverFromURL(*url),
	})
	store := s3.New(s3.Options{
		Region: "us-east-1", Credentials: aws.NewCredentialsCache(keys{}), HTTPClient: client, UsePathStyle: true,
		EndpointResolver: s3.EndpointResolverFromURL(*url),
	})
	inline := sagemakerruntime.WithAPIOptions(inlineBody(payload))

	send := func(number int64) {
		key := fmt.Sprintf("%026d", number)
		input := &sagemakerruntime.InvokeEndpointAsyncInput{
			EndpointName: aws.String(endpoint), ContentType: aws.String(contentType), InferenceId: aws.String(key),
			InputLocation: aws.String("s3://" + bucket + "/" + key),
		}
		options := []func(*sagemakerruntime.Options){}
		if *path == "s3" {
			_, err := store.PutObject(context.Background(), &s3.PutObjectInput{
				Bucket: aws.String(bucket), Key: aws.String(key), ContentType: aws.String(contentType), Body: bytes.NewReader(payload),
			})
			check(err)
		} else {
			options = append(options, inline)
		}
		answer, err := runtime.InvokeEndpointAsync(context.Background(), input, options...)
		check(err)
		if aws.ToString(answer.OutputLocation) == "" {
			log.Fatal("no output location")
		}
	}

	var next, receipts int64
	var workers sync.WaitGroup
	for i := 0; i < *inFlight; i++ {
		workers.Add(1)
		go func() {
			defer workers.Done()
			for number := atomic.AddInt64(&next, 1) - 1; number < *jobs; number = atomic.AddInt64(&next, 1) - 1 {
				send(number)
				atomic.AddInt64(&receipts, 1)
			}
		}()
	}
	workers.Wait()
	fmt.Printf("{\"jobs\": %d}\n", receipts)
}
