package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"scalable-coupon-system/api/apitest"
	"scalable-coupon-system/db"
	"scalable-coupon-system/internal/pgtest"
	"scalable-coupon-system/internal/rawhttp"
)

// runMainEnv makes the test binary run as coupond, for tests that send signals to a process.
const runMainEnv = "COUPOND_TEST_BINARY_IS_COUPOND"

func TestMain(m *testing.M) {
	if os.Getenv(runMainEnv) != "" {
		main()
	}
	pgtest.Main(m)
}

// program is a coupond that runs in this process or in a process of its own.
type program struct {
	stdout, stderr syncBuffer
	url            string // of the service, once it listens
	pid            int    // 0 if it runs in this process
	signal         func(os.Signal)
	exited         chan struct{}
	code           int // exit code, valid once exited is closed; -1 after a signal
}

// start runs coupond in this process until the test ends. environ is a list of NAME=value.
func start(t *testing.T, environ []string, args ...string) *program {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	p := &program{signal: func(os.Signal) { cancel() }, exited: make(chan struct{})}
	go func() {
		defer close(p.exited)
		p.code = run(ctx, args, environ, &p.stdout, &p.stderr)
	}()
	t.Cleanup(func() { p.end(t, environ) })
	return p
}

// startProcess runs the test binary as coupond, in a process of its own, until the test ends.
func startProcess(t *testing.T, environ []string, args ...string) *program {
	t.Helper()
	return startCommand(t, environ, thisBinary(t, args...))
}

// thisBinary returns the command that runs the test binary as coupond.
func thisBinary(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, args...)
	// Under -cover, a test binary without GOCOVERDIR writes a warning to stderr.
	cmd.Env = []string{runMainEnv + "=1", "GOCOVERDIR=" + t.TempDir()}
	return cmd
}

func startBinary(t *testing.T, binary string, environ []string, args ...string) *program {
	t.Helper()
	return startCommand(t, environ, exec.Command(binary, args...))
}

// startCommand runs cmd until the test ends, with environ in addition to its environment. Its
// output goes to the program, unless cmd has another place for it.
func startCommand(t *testing.T, environ []string, cmd *exec.Cmd) *program {
	t.Helper()
	p := &program{exited: make(chan struct{})}
	cmd.Env = slices.Concat([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}, cmd.Env, environ)
	if cmd.Stdout == nil {
		cmd.Stdout = &p.stdout
	}
	if cmd.Stderr == nil {
		cmd.Stderr = &p.stderr
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.pid = cmd.Process.Pid
	p.signal = func(s os.Signal) { _ = cmd.Process.Signal(s) }
	go func() {
		defer close(p.exited)
		_ = cmd.Wait() // the exit code is read below
		p.code = cmd.ProcessState.ExitCode()
	}()
	t.Cleanup(func() { p.end(t, environ) })
	return p
}

// end stops the program if it still runs, and checks that the password in its environment is not in
// its output.
func (p *program) end(t *testing.T, environ []string) {
	t.Helper()
	p.signal(syscall.SIGTERM)
	select {
	case <-p.exited:
	case <-time.After(time.Minute):
		p.signal(syscall.SIGKILL)
		t.Error("the program did not end within a minute")
	}
	output := p.stdout.String() + p.stderr.String()
	if t.Failed() {
		t.Logf("output of coupond:\n%s", shortened(output))
	}
	for _, variable := range environ {
		connString, ok := strings.CutPrefix(variable, "DATABASE_URL=")
		if !ok {
			continue
		}
		config, err := pgxpool.ParseConfig(connString)
		if err == nil && config.ConnConfig.Password != "" && strings.Contains(output, config.ConnConfig.Password) {
			t.Error("the output of coupond contains the password")
		}
	}
}

// wait waits until the program ends and returns its exit code.
func (p *program) wait(t *testing.T) int {
	t.Helper()
	select {
	case <-p.exited:
	case <-time.After(time.Minute):
		t.Fatalf("the program did not end within a minute:\n%s", shortened(p.stderr.String()))
	}
	return p.code
}

// listening waits until the service listens, and sets its url.
func (p *program) listening(t *testing.T) *program {
	t.Helper()
	line := p.logged(t, "listening")
	p.url = "http://" + line["address"].(string)
	return p
}

// ready waits until the service is ready for claims.
func (p *program) ready(t *testing.T) *program {
	t.Helper()
	p.listening(t)
	p.logged(t, "ready for claims")
	return p
}

// dial opens a connection to the service.
func (p *program) dial(t *testing.T) *rawhttp.Conn {
	t.Helper()
	address, err := net.ResolveTCPAddr("tcp", strings.TrimPrefix(p.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	return rawhttp.Dial(t, address)
}

// logged waits for a log line with this message and returns its fields.
func (p *program) logged(t *testing.T, message string) map[string]any {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		ended := false
		select {
		case <-p.exited:
			ended = true
		default:
		}
		for line := range strings.Lines(p.stderr.String()) {
			var fields map[string]any
			if !strings.Contains(line, message) {
				continue
			}
			if json.Unmarshal([]byte(line), &fields) == nil && fields["message"] == message {
				return fields
			}
		}
		if ended || time.Now().After(deadline) {
			t.Fatalf("no line %q in the log (ended: %t):\n%s", message, ended, shortened(p.stderr.String()))
		}
	}
}

// syncBuffer is a buffer for concurrent use.
type syncBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
	err  error // if not nil, Write fails with it
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return 0, b.err
	}
	return b.text.Write(p)
}

// fail lets Write fail with err, or succeed again if err is nil.
func (b *syncBuffer) fail(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = err
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// shortened returns the beginning and the end of a long text.
func shortened(text string) string {
	const limit = 4000
	if len(text) <= 2*limit {
		return text
	}
	return text[:limit] + "\n…\n" + text[len(text)-limit:]
}

// environ returns the environment of a service on a free port.
func environ(databaseURL string, more ...string) []string {
	return append([]string{"DATABASE_URL=" + databaseURL, "LISTEN_ADDR=127.0.0.1:0"}, more...)
}

// client is an HTTP client of one service. It checks every response against openapi.yaml.
type client struct {
	http.Client

	base string
}

// newClient returns a client with at most connections keep-alive connections.
func newClient(t *testing.T, base string, connections int) *client {
	t.Helper()
	lean := &leanTransport{idle: make(chan *rawhttp.Conn, connections)}
	t.Cleanup(lean.CloseIdleConnections)
	return &client{http.Client{Transport: apitest.Checked(t, lean)}, base}
}

// leanTransport keeps connections as http.Transport does, but reads and writes in the caller's
// goroutine and reads each response to its end. So most of the time of a test with 50,000 clients
// is spent in the service, also under the race detector. It never retries.
type leanTransport struct {
	idle chan *rawhttp.Conn
}

func (l *leanTransport) RoundTrip(request *http.Request) (*http.Response, error) {
	var conn *rawhttp.Conn
	select {
	case conn = <-l.idle:
	default:
		tcp, err := net.Dial("tcp", request.URL.Host)
		if err != nil {
			return nil, err
		}
		conn = rawhttp.New(tcp)
	}
	response, err := exchange(conn, request)
	if err != nil || response.Close {
		return response, errors.Join(err, conn.Close())
	}
	select {
	case l.idle <- conn:
	default:
		err = conn.Close()
	}
	return response, err
}

// exchange sends a request and reads the whole response.
func exchange(conn *rawhttp.Conn, request *http.Request) (*http.Response, error) {
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return nil, err
	}
	if err := request.Write(conn); err != nil {
		return nil, err
	}
	response, err := http.ReadResponse(conn.R, request)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(response.Body)
	response.Body = io.NopCloser(bytes.NewReader(body))
	return response, err
}

// CloseIdleConnections is called by the method of http.Client with the same name.
func (l *leanTransport) CloseIdleConnections() {
	for {
		select {
		case conn := <-l.idle:
			_ = conn.Close()
		default:
			return
		}
	}
}

// answer is the response to an API call.
type answer struct {
	status int
	code   string // in the body of an error
	body   string
}

func (c *client) do(method, path, body string) (answer, error) {
	request, err := http.NewRequestWithContext(context.Background(), method, c.base+path, strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	if body != "" {
		request.Header.Set("Content-Type", "application/json")
	}
	response, err := c.Do(request)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return answer{}, err
	}
	a := answer{status: response.StatusCode, body: string(text)}
	if a.status >= http.StatusBadRequest {
		var errorBody struct{ Code string }
		if err := json.Unmarshal(text, &errorBody); err != nil {
			return a, fmt.Errorf("error body is not JSON: %s: %w", text, err)
		}
		a.code = errorBody.Code
	}
	return a, nil
}

// must is like do, but fails the test on an error.
func (c *client) must(t *testing.T, method, path, body string) answer {
	t.Helper()
	a, err := c.do(method, path, body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return a
}

func (c *client) create(t *testing.T, coupon string, amount int) {
	t.Helper()
	if a := c.must(t, http.MethodPost, "/api/coupons", fmt.Sprintf(`{"name":%q,"amount":%d}`, coupon, amount)); a.status != http.StatusCreated {
		t.Fatalf("create %s: %d %s", coupon, a.status, a.body)
	}
}

func claimBody(user, coupon string) string {
	return fmt.Sprintf(`{"user_id":%q,"coupon_name":%q}`, user, coupon)
}

func (c *client) claim(user, coupon string) (answer, error) {
	return c.do(http.MethodPost, "/api/coupons/claim", claimBody(user, coupon))
}

// state is a coupon as returned by GET.
type state struct {
	Name            string
	Amount          int
	RemainingAmount int      `json:"remaining_amount"`
	ClaimedBy       []string `json:"claimed_by"`
}

func (c *client) get(t *testing.T, coupon string) state {
	t.Helper()
	a := c.must(t, http.MethodGet, "/api/coupons/"+url.PathEscape(coupon), "")
	if a.status != http.StatusOK {
		t.Fatalf("get %s: %d %s", coupon, a.status, a.body)
	}
	var s state
	if err := json.Unmarshal([]byte(a.body), &s); err != nil {
		t.Fatalf("get %s: %v", coupon, err)
	}
	if len(s.ClaimedBy)+s.RemainingAmount != s.Amount {
		t.Errorf("get %s: %d claims and %d remaining of %d", coupon, len(s.ClaimedBy), s.RemainingAmount, s.Amount)
	}
	return s
}

// expect runs coupond with args, and expects the exit code and one line that contains want: on
// stdout if the code is 0, otherwise on stderr. The other output must be empty.
func expect(t *testing.T, code int, want string, environ []string, args ...string) {
	t.Helper()
	p := start(t, environ, args...)
	if got := p.wait(t); got != code {
		t.Errorf("coupond %s: exit code %d, want %d; stderr: %s", args, got, code, p.stderr.String())
	}
	output, other := p.stdout.String(), p.stderr.String()
	if code != 0 {
		output, other = other, output
	}
	if !strings.Contains(output, want) || strings.Count(output, "\n") != 1 || other != "" {
		t.Errorf("coupond %s wrote %q and %q, want one line with %q", args, output, other, want)
	}
}

func TestServe_sale(t *testing.T) {
	t.Parallel()
	database := pgtest.New(t)
	p := start(t, environ(database.URL), "serve").ready(t)
	c := newClient(t, p.url, 1)

	c.create(t, "SALE", 2)
	for _, step := range []struct {
		user, coupon string
		status       int
		code         string
	}{
		{"ann", "SALE", http.StatusCreated, ""},
		{"ann", "SALE", http.StatusConflict, "ALREADY_CLAIMED"},
		{"bob", "SALE", http.StatusCreated, ""},
		{"eve", "SALE", http.StatusBadRequest, "OUT_OF_STOCK"},
		{"ann", "SALE", http.StatusConflict, "ALREADY_CLAIMED"},
		{"ann", "none", http.StatusNotFound, "COUPON_NOT_FOUND"},
	} {
		a, err := c.claim(step.user, step.coupon)
		if err != nil || a.status != step.status || a.code != step.code {
			t.Errorf("%s claims %s: %d %s %v, want %d %s", step.user, step.coupon, a.status, a.code, err, step.status, step.code)
		}
	}
	if s := c.get(t, "SALE"); s.RemainingAmount != 0 || strings.Join(s.ClaimedBy, " ") != "ann bob" {
		t.Errorf("final state: %+v", s)
	}
	expect(t, 0, "healthy: ", []string{"LISTEN_ADDR=" + strings.TrimPrefix(p.url, "http://")}, "healthcheck")

	p.signal(os.Interrupt)
	if code := p.wait(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	claims := p.logged(t, "stopped")["claims"]
	want := map[string]any{
		"claimed": 2.0, "already_claimed": 2.0, "out_of_stock": 1.0, "coupon_not_found": 1.0,
		"overloaded": 0.0, "unavailable": 0.0, "outcome_unknown": 0.0, "caller_left": 0.0, "failed": 0.0,
	}
	if fmt.Sprint(claims) != fmt.Sprint(want) {
		t.Errorf("claims in the log line \"stopped\": %v, want %v", claims, want)
	}
	started := p.logged(t, "starting")
	if config, ok := started["config"].(map[string]any); !ok || config["DB_MAX_CONNS"] != "16" || config["LOG_FORMAT"] != "json" ||
		config["LISTEN_ADDR"] != "127.0.0.1:0" || started["database"] == "" {
		t.Errorf("log line \"starting\": %v", started)
	}
}

func TestServe_requiresDatabaseURL(t *testing.T) {
	t.Parallel()
	for _, command := range []string{"serve", "migrate"} {
		expect(t, exitUsage, "coupond dev\n", nil, command)
		expect(t, exitUsage, "coupond: DATABASE_URL is not set", []string{"DATABASE_URL="}, command)
	}
}

func TestServe_portInUse(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	address := listener.Addr().String()
	expect(t, exitFailure, "cannot listen on "+address+": address already in use",
		[]string{"DATABASE_URL=postgres://nowhere", "LISTEN_ADDR=" + address}, "serve")
	expect(t, exitFailure, "cannot listen on 192.0.2.1:80 (LISTEN_ADDR): ",
		[]string{"DATABASE_URL=postgres://nowhere", "LISTEN_ADDR=192.0.2.1:80"}, "serve")
}

func TestWrongUsage(t *testing.T) {
	t.Parallel()
	expect(t, exitUsage, `unknown command "srve"; did you mean serve?`, nil, "srve")
	expect(t, exitUsage, `unknown command "x" (see: coupond --help)`, nil, "x")
	expect(t, exitUsage, `unknown flag: --port (see: coupond serve --help)`, nil, "serve", "--port", "80")
	expect(t, exitUsage, `coupond serve takes no arguments, got ["now"] (see: coupond serve --help)`, nil, "serve", "now")

	p := start(t, nil)
	if code := p.wait(t); code != exitUsage || p.stdout.String() != "" || !strings.Contains(p.stderr.String(), "Commands:") ||
		!strings.HasSuffix(p.stderr.String(), "coupond: no command given\n") {
		t.Errorf("no command: exit code %d, %s", code, p.stderr.String())
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	p := start(t, nil, "version")
	if code := p.wait(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	for _, want := range []string{"coupond ", "\ncommit  ", fmt.Sprintf("\nschema  %d\n", db.Version()), "\ngo      go1."} {
		if !strings.Contains(p.stdout.String(), want) {
			t.Errorf("missing %q in %s", want, p.stdout.String())
		}
	}
}
