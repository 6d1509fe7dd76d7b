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
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"scalable-coupon-system/api/apitest"
	loadgen "scalable-coupon-system/bench/load"
	"scalable-coupon-system/db"
	"scalable-coupon-system/internal/pgtest"
	"scalable-coupon-system/internal/rawhttp"
	"scalable-coupon-system/internal/wait"
)

// runMainEnv makes the test binary run as coupond, for tests that send signals to a process.
const runMainEnv = "COUPOND_TEST_BINARY_IS_COUPOND"

func TestMain(m *testing.M) {
	if os.Getenv(runMainEnv) != "" {
		main()
	}
	pgtest.Main(m)
	_ = os.RemoveAll(binaryDir)
}

// program is a coupond that runs in this process or in a process of its own.
type program struct {
	stdout, stderr syncBuffer
	address        string // of the service, once it listens
	pid            int    // 0 if it runs in this process
	signal         func(os.Signal)
	exited         chan struct{}
	code           int // exit code, valid once exited is closed; -1 after a signal
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// mustExec executes SQL statements, each on its own.
func mustExec(t *testing.T, conn *pgx.Conn, statements ...string) {
	t.Helper()
	for _, sql := range statements {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
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
	t.Cleanup(func() { p.end(t) })
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
	must(t, err)
	cmd := exec.Command(binary, args...)
	// Under -cover, a test binary without GOCOVERDIR writes a warning to stderr.
	cmd.Env = []string{runMainEnv + "=1", "GOCOVERDIR=" + t.TempDir()}
	return cmd
}

// fromShell lets cmd be executed by a shell, after it has run a command of its own.
func fromShell(cmd *exec.Cmd, first string) *exec.Cmd {
	cmd.Args = append([]string{"/bin/sh", "-c", first + ` && exec "$0" "$@"`}, cmd.Args...)
	cmd.Path = cmd.Args[0]
	return cmd
}

// startCommand runs cmd until the test ends, with environ in addition to its environment. Its
// output goes to the program, unless cmd has another place for it.
func startCommand(t *testing.T, environ []string, cmd *exec.Cmd) *program {
	t.Helper()
	p := &program{exited: make(chan struct{})}
	cmd.Env = slices.Concat([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "GORACE=" + os.Getenv("GORACE")}, cmd.Env, environ)
	if cmd.Stdout == nil {
		cmd.Stdout = &p.stdout
	}
	if cmd.Stderr == nil {
		cmd.Stderr = &p.stderr
	}
	must(t, cmd.Start())
	p.pid = cmd.Process.Pid
	p.signal = func(s os.Signal) { _ = cmd.Process.Signal(s) }
	go func() {
		defer close(p.exited)
		_ = cmd.Wait() // the exit code is read below
		p.code = cmd.ProcessState.ExitCode()
	}()
	t.Cleanup(func() { p.end(t) })
	return p
}

// end stops the program if it still runs.
func (p *program) end(t *testing.T) {
	t.Helper()
	p.signal(syscall.SIGTERM)
	select {
	case <-p.exited:
	case <-time.After(time.Minute):
		p.signal(syscall.SIGKILL)
		t.Error("the program did not end within a minute")
	}
	if t.Failed() {
		t.Logf("output of coupond:\n%s", shortened(p.stdout.String()+p.stderr.String()))
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

// stop sends a signal, and expects that the program shuts down gracefully.
func (p *program) stop(t *testing.T, signal os.Signal) {
	t.Helper()
	p.signal(signal)
	p.exits(t, 0)
}

// exits expects that the program ends with this exit code.
func (p *program) exits(t *testing.T, want int) {
	t.Helper()
	if code := p.wait(t); code != want {
		t.Errorf("exit code %d, want %d: %s", code, want, shortened(p.stderr.String()))
	}
}

// listening waits until the service listens, and sets its address.
func (p *program) listening(t *testing.T) *program {
	t.Helper()
	p.address = p.logged(t, "listening")["address"].(string)
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
	address, err := net.ResolveTCPAddr("tcp", p.address)
	must(t, err)
	return rawhttp.Dial(t, address)
}

// logged waits for a log line with this message and returns its fields.
func (p *program) logged(t *testing.T, message string) (fields map[string]any) {
	t.Helper()
	wait.For(t, "the log line \""+message+"\"", func() bool {
		ended := p.hasEnded()
		for line := range strings.Lines(p.stderr.String()) {
			fields = nil
			if strings.Contains(line, message) && json.Unmarshal([]byte(line), &fields) == nil && fields["message"] == message {
				return true
			}
		}
		if ended {
			t.Fatalf("the program has ended without the log line %q", message)
		}
		return false
	})
	return fields
}

func (p *program) hasEnded() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
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

func (p *program) client(t *testing.T) *client {
	t.Helper()
	transport := &http.Transport{MaxIdleConnsPerHost: 16}
	t.Cleanup(transport.CloseIdleConnections)
	return &client{http.Client{Transport: apitest.Checked(t, transport), Timeout: time.Minute}, "http://" + p.address}
}

// answer is the response to an API call.
type answer struct {
	loadgen.Answer

	body string
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
	a := answer{loadgen.Answer{Status: response.StatusCode}, string(text)}
	if a.Status >= http.StatusBadRequest {
		var errorBody struct{ Code string }
		err = json.Unmarshal(text, &errorBody)
		a.Code = errorBody.Code
	}
	return a, err
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

// create creates a coupon, which a busy machine may not do within CLAIM_TIMEOUT.
func (c *client) create(t *testing.T, coupon string, amount int) {
	t.Helper()
	unknown := false
	wait.For(t, "the creation of "+coupon, func() bool {
		a := c.must(t, http.MethodPost, "/api/coupons", fmt.Sprintf(`{"name":%q,"amount":%d}`, coupon, amount))
		switch {
		case a.Status == http.StatusServiceUnavailable:
			unknown = unknown || strings.Contains(a.body, "OUTCOME_UNKNOWN")
			return false
		case a.Status != http.StatusCreated && (!unknown || a.Status != http.StatusConflict):
			t.Fatalf("create %s: %d %s", coupon, a.Status, a.body)
		}
		return true
	})
}

func claimBody(user, coupon string) string {
	return fmt.Sprintf(`{"user_id":%q,"coupon_name":%q}`, user, coupon)
}

func (c *client) claim(user, coupon string) (answer, error) {
	return c.do(http.MethodPost, "/api/coupons/claim", claimBody(user, coupon))
}

// coupon reads a coupon, also a large one.
func (p *program) coupon(t *testing.T, name string) loadgen.Coupon {
	t.Helper()
	coupon, err := loadgen.Service{Address: p.address, Timeout: time.Minute}.Coupon(t.Context(), name)
	must(t, err)
	return coupon
}

// expect runs coupond with args, and expects the exit code and one line that contains want: on
// stdout if the code is 0, otherwise on stderr. The other output must be empty.
func expect(t *testing.T, code int, want string, environ []string, args ...string) {
	t.Helper()
	output, other := outputOf(t, code, environ, args...)
	if code != 0 {
		output, other = other, output
	}
	if !strings.Contains(output, want) || strings.Count(output, "\n") != 1 || other != "" {
		t.Errorf("coupond %s wrote %q and %q, want one line with %q", args, output, other, want)
	}
}

// outputOf runs coupond with args, and expects the exit code.
func outputOf(t *testing.T, code int, environ []string, args ...string) (stdout, stderr string) {
	t.Helper()
	p := start(t, environ, args...)
	p.exits(t, code)
	return p.stdout.String(), p.stderr.String()
}

// claimed claims a coupon, and expects that to succeed.
func (c *client) claimed(t *testing.T, user, coupon string) {
	t.Helper()
	if a, err := c.claim(user, coupon); err != nil || a.Answer != loadgen.Claimed {
		t.Errorf("%s claims %s: %v %v", user, coupon, a, err)
	}
}

// serve starts a service on a new database. It returns a client as well.
func serve(t *testing.T, settings ...string) (*program, *client) {
	t.Helper()
	p := start(t, environ(pgtest.New(t).URL, settings...), "serve").ready(t)
	return p, p.client(t)
}

func TestServe_sale(t *testing.T) {
	t.Parallel()
	p, c := serve(t)
	c.create(t, "SALE", 2)
	for _, step := range []struct {
		user, coupon string
		want         loadgen.Answer
	}{
		{"ann", "SALE", loadgen.Claimed},
		{"ann", "SALE", loadgen.AlreadyClaimed},
		{"bob", "SALE", loadgen.Claimed},
		{"eve", "SALE", loadgen.OutOfStock},
		{"ann", "SALE", loadgen.AlreadyClaimed},
		{"ann", "none", loadgen.CouponNotFound},
	} {
		if a, err := c.claim(step.user, step.coupon); err != nil || a.Answer != step.want {
			t.Errorf("%s claims %s: %v %v, want %v", step.user, step.coupon, a, err, step.want)
		}
	}
	if a := c.must(t, http.MethodGet, "/api/coupons/SALE", ""); a.body != `{"name":"SALE","amount":2,"remaining_amount":0,"claimed_by":["ann","bob"]}`+"\n" {
		t.Errorf("final state: %d %q", a.Status, a.body)
	}
	expect(t, 0, "healthy: ", []string{"LISTEN_ADDR=" + p.address}, "healthcheck")

	p.stop(t, os.Interrupt)
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
		config["LISTEN_ADDR"] != "127.0.0.1:0" || config["DATABASE_URL"] != "(hidden)" || started["database"] == "" {
		t.Errorf("log line \"starting\": %v", started)
	}
}

func TestServe_portInUse(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer func() { _ = listener.Close() }()
	address := listener.Addr().String()
	dir := t.TempDir()
	inUse := "cannot listen on " + address + ": address already in use"
	expect(t, exitFailure, inUse, []string{"DATABASE_URL=postgres://nowhere", "LISTEN_ADDR=" + address}, "serve")
	expect(t, exitFailure, inUse, []string{"LISTEN_ADDR=" + address}, "dev", "--dir", dir)
	if _, err := os.Stat(filepath.Join(dir, "data")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("dev has created a cluster first: %v", err)
	}
	expect(t, exitFailure, "cannot listen on 192.0.2.1:80 (LISTEN_ADDR): ",
		[]string{"DATABASE_URL=postgres://nowhere", "LISTEN_ADDR=192.0.2.1:80"}, "serve")
}

func TestWrongUsage(t *testing.T) {
	t.Parallel()
	expect(t, exitUsage, `unexpected argument srve, did you mean "serve"? (see: coupond --help)`, nil, "srve")
	expect(t, exitUsage, `unexpected argument srve, did you mean "serve"?`, nil, "help", "srve")
	expect(t, exitUsage, `unknown flag --port (see: coupond serve --help)`, nil, "serve", "--port", "80")
	expect(t, exitUsage, `expected one of "serve", "dev", "migrate"`, nil)
	const noValue = `--claim-queue: no value; write --claim-queue=VALUE (see: coupond serve --help)`
	expect(t, exitUsage, noValue, nil, "serve", "--claim-queue")
	expect(t, exitUsage, noValue, nil, "serve", "--claim-queue", "-1")
	// A password in a wrong place is not printed.
	expect(t, exitUsage, `unexpected argument (not shown, because it may hold a password) (see: coupond serve --help)`, nil, "serve", "postgres://me:p@ss@host/db")
	expect(t, exitUsage, `unexpected argument (not shown, because it may hold a password) (see: `, nil, "migrate", "host=a password='pass word' dbname=db")
	expect(t, exitUsage, `LISTEN_ADDR=(not shown, because it may hold a password): `, []string{noServer}, "serve", "--listen-addr=postgres://me:pass@host/db")
	long := "LISTEN_ADDR=postgres://me:pass@host/db?" + strings.Repeat("x", 100) // shortened in messages
	expect(t, exitUsage, `LISTEN_ADDR=(not shown, because it may hold a password): `, []string{noServer, long}, "serve")
	for _, command := range []string{"serve", "migrate"} {
		expect(t, exitUsage, "coupond: DATABASE_URL is not set", nil, command)
		expect(t, exitUsage, "or try the service with a private PostgreSQL: coupond dev\n", []string{"DATABASE_URL="}, command)
	}
}

// Each command has help, by --help and by the word help. It does not run the command, and does not
// mind a wrong setting.
func TestHelp(t *testing.T) {
	t.Parallel()
	for command, want := range map[string][]string{
		"":            {"Commands:", "coupond dev", "Exit status: 0 success, 1 failure, 2 wrong usage or settings."},
		"serve":       {"SIGTERM", "--database-url=URL", "--claim-queue=4096", `--listen-addr=":8080"`},
		"dev":         {"Ctrl-C", `--dir=".coupond"`, `--listen-addr="127.0.0.1:8080"`},
		"migrate":     {"coupon_service", "--proxy", "--database-password-file=FILE"},
		"sql":         {"psql --no-psqlrc --file=install.sql"},
		"healthcheck": {"2.5 s", "--listen-addr"},
		"version":     {"versions"},
	} {
		var texts []string
		for _, args := range [][]string{append(strings.Fields(command), "--help"), append([]string{"help"}, strings.Fields(command)...)} {
			text, stderr := outputOf(t, 0, []string{"DB_MAX_CONNS=many"}, args...)
			if stderr != "" {
				t.Errorf("coupond %q: %s", args, stderr)
			}
			texts = append(texts, text)
		}
		for _, part := range append(want, "Usage: coupond "+command) {
			if !strings.Contains(texts[0], part) {
				t.Errorf("the help of %q lacks %q:\n%s", command, part, texts[0])
			}
		}
		if texts[1] != texts[0] {
			t.Errorf("coupond help %s differs from coupond %[1]s --help:\n%s", command, texts[1])
		}
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	version, _ := readBuild()
	expect(t, 0, "coupond "+version+"\n", nil, "--version")
	output, _ := outputOf(t, 0, nil, "version")
	for _, want := range []string{"coupond " + version + "\ncommit  ", fmt.Sprintf("\nschema  %d\n", db.Version()), "\ngo      go1."} {
		if !strings.Contains(output, want) {
			t.Errorf("missing %q in %s", want, output)
		}
	}
}
