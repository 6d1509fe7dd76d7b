package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"scalable-coupon-system/api"
	"scalable-coupon-system/api/apitest"
	"scalable-coupon-system/internal/wait"
	"scalable-coupon-system/pgstore"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// stub is the in-memory Store, with methods that a test may replace.
type stub struct {
	*apitest.Store

	called func(ctx context.Context) // before each method
	claim  func(ctx context.Context, user, coupon string) (pgstore.ClaimStatus, error)
	create func(ctx context.Context, name string, amount int32) (pgstore.CreateStatus, error)
	coupon func(ctx context.Context, name string) (*pgstore.Coupon, bool, error)
	ready  func(ctx context.Context) ([]pgstore.Shard, error)
}

func newStub() *stub {
	s := apitest.NewStore()
	return &stub{s, func(context.Context) {}, s.Claim, s.CreateCoupon, s.Coupon, s.Ready}
}

func (s *stub) Claim(ctx context.Context, user, coupon string) (pgstore.ClaimStatus, error) {
	s.called(ctx)
	return s.claim(ctx, user, coupon)
}

func (s *stub) CreateCoupon(ctx context.Context, name string, amount int32) (pgstore.CreateStatus, error) {
	s.called(ctx)
	return s.create(ctx, name, amount)
}

func (s *stub) Coupon(ctx context.Context, name string) (*pgstore.Coupon, bool, error) {
	s.called(ctx)
	return s.coupon(ctx, name)
}

func (s *stub) Ready(ctx context.Context) ([]pgstore.Shard, error) {
	s.called(ctx)
	return s.ready(ctx)
}

// service is the API on a real listener, with an in-memory Store.
type service struct {
	tb      testing.TB
	addr    net.Addr
	url     string // without a path
	store   *stub
	handler *api.Handler
	server  *http.Server
	client  *http.Client // checks every response against openapi.yaml
	log     *logBuffer

	registry *prometheus.Registry
}

// serve starts a service that stops at the end of the test. The configure functions change the
// server or the handler before the first connection.
func serve(tb testing.TB, configure ...func(*service)) *service {
	tb.Helper()
	s := &service{tb: tb, store: newStub(), log: &logBuffer{}, registry: prometheus.NewRegistry()}
	logger := zerolog.New(s.log)
	s.handler = api.New(s.store, api.Options{Log: logger, Registry: s.registry})
	s.server = api.NewServer(s.handler, logger)
	for _, f := range configure {
		f(s)
	}
	listener, err := new(net.ListenConfig).Listen(tb.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	s.addr = listener.Addr()
	s.url = "http://" + s.addr.String()
	served := make(chan error, 1)
	go func() { served <- s.server.Serve(listener) }()

	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	s.client = &http.Client{
		Transport:     apitest.Checked(tb, transport),
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       time.Minute,
	}
	tb.Cleanup(func() {
		transport.CloseIdleConnections()
		_ = s.server.Close()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			tb.Errorf("Serve: %v", err)
		}
	})
	return s
}

// result is a response that was read to its end.
type result struct {
	status int
	header http.Header
	body   string
	closes bool // it has Connection: close
}

// do sends a request and reads the response; header has pairs of name and value. A body is JSON
// unless header says otherwise.
func (s *service) do(method, path, body string, header ...string) result {
	s.tb.Helper()
	got, err := s.try(method, path, body, header...)
	if err != nil {
		s.tb.Fatalf("%s %s: %v", method, path, err)
	}
	return got
}

// try is do for goroutines other than the test's.
func (s *service) try(method, path, body string, header ...string) (result, error) {
	var reader io.Reader
	if body != "" {
		reader = strings.NewReader(body)
	}
	request, err := http.NewRequestWithContext(context.Background(), method, s.url+path, reader)
	if err != nil {
		return result{}, err
	}
	for i := 0; i < len(header); i += 2 {
		request.Header.Add(header[i], header[i+1])
	}
	if body != "" && request.Header["Content-Type"] == nil {
		request.Header.Set("Content-Type", typeJSON)
	}
	response, err := s.client.Do(request)
	if err != nil {
		return result{}, err
	}
	defer func() { _ = response.Body.Close() }()
	content, err := io.ReadAll(response.Body)
	return result{response.StatusCode, response.Header, string(content), response.Close}, err
}

// claim sends a claim; the arguments may be invalid.
func (s *service) claim(user, coupon string) result {
	s.tb.Helper()
	return s.do("POST", "/api/coupons/claim", object("user_id", user, "coupon_name", coupon))
}

// create sends the creation of a coupon; the arguments may be invalid.
func (s *service) create(name string, amount int) result {
	s.tb.Helper()
	return s.do("POST", "/api/coupons", object("name", name, "amount", amount))
}

// object returns a JSON object of two fields.
func object(name1 string, value1 any, name2 string, value2 any) string {
	text, err := json.Marshal(map[string]any{name1: value1, name2: value2})
	if err != nil {
		panic(err) // an error in the test
	}
	return string(text)
}

// couponBody is the body of a response with a coupon.
type couponBody struct {
	Name            string   `json:"name"`
	Amount          int      `json:"amount"`
	RemainingAmount int      `json:"remaining_amount"`
	ClaimedBy       []string `json:"claimed_by"`
}

// coupon decodes the coupon in a response, which must be a 200.
func (r result) coupon(tb testing.TB) couponBody {
	tb.Helper()
	r.want(tb, http.StatusOK, "")
	return decoded[couponBody](tb, r)
}

// errorBody is the body of an error response.
type errorBody struct {
	Error     string `json:"error"`
	Code      string `json:"code"`
	RequestID string `json:"request_id"`
}

func (r result) error(tb testing.TB) errorBody {
	tb.Helper()
	return decoded[errorBody](tb, r)
}

// decoded decodes a body that must have no other fields.
func decoded[T any](tb testing.TB, r result) (body T) {
	tb.Helper()
	decoder := json.NewDecoder(strings.NewReader(r.body))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&body); err != nil {
		tb.Fatalf("%d %q: %v", r.status, r.body, err)
	}
	return body
}

// want fails the test unless the response has this status and, if code is not empty, this code.
func (r result) want(tb testing.TB, status int, code api.Code) {
	tb.Helper()
	if r.status != status {
		tb.Fatalf("status %d, want %d: %s", r.status, status, r.body)
	}
	if code == "" {
		return
	}
	if got := r.error(tb); got.Code != string(code) {
		tb.Fatalf("code %s, want %s: %s", got.Code, code, r.body)
	}
}

// logBuffer collects log lines.
type logBuffer struct {
	mu    sync.Mutex
	lines bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.lines.Write(p)
}

// line waits for a line, which is written after the response, and removes and decodes it. It must
// be the only one.
func (b *logBuffer) line(tb testing.TB) map[string]any {
	tb.Helper()
	var text string
	wait.For(tb, "a line of the log", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		text = b.lines.String()
		b.lines.Reset()
		return strings.HasSuffix(text, "\n")
	})
	var fields map[string]any
	if err := json.Unmarshal([]byte(text), &fields); err != nil {
		tb.Fatalf("log %q: %v", text, err)
	}
	return fields
}
