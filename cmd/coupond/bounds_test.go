package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"scalable-coupon-system/bench/check"
	loadgen "scalable-coupon-system/bench/load"
	"scalable-coupon-system/internal/procmem"
	"scalable-coupon-system/internal/wait"
)

// TestBounds runs the service at its bounds and beyond them: with more claims than it can process
// (overload_test.go), with clients that misbehave (misbehaving_clients_test.go), and with an
// upgrade under load (upgrade_test.go). Each trial is short here, and takes a minute in `.ci/run
// bounds`, on a machine where nothing else runs.
func TestBounds(t *testing.T) {
	b := &bounds{
		duration: 500 * time.Millisecond, baseline: 250 * time.Millisecond, tolerance: 5 * time.Second,
		idle: 1_000, writers: 4_000, binary: plainBinary(t),
	}
	if text := os.Getenv("COUPOND_BOUNDS"); text != "" {
		duration, err := time.ParseDuration(text)
		if err != nil {
			t.Fatalf("COUPOND_BOUNDS: %v", err)
		}
		*b = bounds{
			duration: duration, baseline: 5 * time.Second, tolerance: time.Second,
			idle: 10_000, writers: 6_000, strict: true, binary: b.binary,
		}
	}
	b.overload(t)
	b.misbehavingClients(t)
	b.run(t, "rolling upgrade", b.upgrade)
}

// bounds is one run of TestBounds.
type bounds struct {
	duration  time.Duration // of each trial
	baseline  time.Duration // of each measurement before and after a trial
	tolerance time.Duration // beyond CLAIM_TIMEOUT; the service promises 1 s, a busy machine may need more
	idle      int           // idle connections
	writers   int           // connections that send a part of a large body
	strict    bool          // nothing else runs on the machine, so speeds can be checked
	binary    string        // coupond without the race detector
}

// run runs a trial: beside others, unless it is strict.
func (b *bounds) run(t *testing.T, name string, trial func(t *testing.T)) {
	t.Helper()
	t.Run(name, func(t *testing.T) {
		if !b.strict {
			t.Parallel()
		}
		trial(t)
	})
}

// The bounds of the services under test, low enough to exceed them easily.
const (
	boundTimeout = 2 * time.Second // CLAIM_TIMEOUT
	boundQueue   = 50              // CLAIM_QUEUE

	// longTimeout is for trials in which every claim must succeed, also on a busy machine.
	longTimeout = "CLAIM_TIMEOUT=10s"
)

// serve starts a service with low bounds and waits until it is healthy. The service logs errors
// only, because a minute of overload would fill the memory of the test.
func (b *bounds) serve(t *testing.T, binary, database string, settings ...string) *program {
	t.Helper()
	address := freeAddress()
	p := startCommand(t, append([]string{
		"DATABASE_URL=" + database, "LISTEN_ADDR=" + address, "LOG_LEVEL=error",
		"CLAIM_TIMEOUT=" + boundTimeout.String(), fmt.Sprint("CLAIM_QUEUE=", boundQueue),
	}, settings...), exec.Command(binary, "serve"))
	p.address = address
	waitHealthy(t, p.client(t))
	return p
}

// freeAddress returns an address on which nothing listens. Its port is below those that the kernel
// gives to connections: one of those could take it before the service does.
func freeAddress() string {
	for {
		address := fmt.Sprint("127.0.0.1:", 10_000+rand.IntN(20_000))
		if listener, err := net.Listen("tcp", address); err == nil {
			_ = listener.Close()
			return address
		}
	}
}

// serveSale starts a service like serve, with a coupon that never sells out.
func (b *bounds) serveSale(t *testing.T, database string, settings ...string) *program {
	t.Helper()
	p := b.serve(t, b.binary, database, settings...)
	p.client(t).create(t, saleCoupon, 1<<30)
	return p
}

// getOnce sends one GET request over a new connection. A status of 0 means that there was no
// response.
func (p *program) getOnce(path string) (status int, took time.Duration) {
	sent := time.Now()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	response, err := client.Get("http://" + p.address + path)
	if err == nil {
		status = response.StatusCode
		_ = response.Body.Close()
	}
	return status, time.Since(sent)
}

// plainBinary returns a coupond without the race detector, which needs many times the memory.
func plainBinary(t *testing.T) string {
	t.Helper()
	binary, err := buildPlain()
	must(t, err)
	return binary
}

// binaryDir has the binary that several tests use. TestMain removes it.
var binaryDir string

var buildPlain = sync.OnceValues(func() (binary string, err error) {
	if binaryDir, err = os.MkdirTemp("", "coupond-test-"); err != nil {
		return "", err
	}
	binary = filepath.Join(binaryDir, "coupond")
	return binary, build(binary)
})

// build builds coupond with options of go build.
func build(binary string, options ...string) error {
	output, err := exec.Command("go", append([]string{"build", "-o", binary}, options...)...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("go build: %w\n%s", err, output)
	}
	return err
}

// saleCoupon is the coupon that most tests claim.
const saleCoupon = "SALE"

// lastUser makes every claim of these tests come from a new user.
var lastUser atomic.Int64

func newUserClaim(int) loadgen.Request {
	return loadgen.Request{User: fmt.Sprint("user ", lastUser.Add(1)), Coupon: saleCoupon}
}

// startClaims claims over the given number of connections until ctx ends. Each connection sends its
// next claim as soon as it has an answer.
func startClaims(ctx context.Context, t *testing.T, p *program, connections int) *loadgen.Run {
	t.Helper()
	return startPlan(ctx, t, loadgen.Plan{Address: p.address, Connections: connections, Timeout: time.Minute, Request: newUserClaim})
}

func startPlan(ctx context.Context, t *testing.T, plan loadgen.Plan) *loadgen.Run {
	t.Helper()
	run, err := loadgen.Start(ctx, plan)
	must(t, err)
	return run
}

func runClaims(t *testing.T, p *program, connections int, duration time.Duration) loadgen.Report {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	run := startClaims(ctx, t, p, connections)
	time.Sleep(duration)
	cancel()
	return run.Wait()
}

// expectOnly expects that there are answers, and none but those that are allowed.
func expectOnly(t *testing.T, report loadgen.Report, allowed ...loadgen.Answer) {
	t.Helper()
	for answer, times := range report.Answers {
		if !slices.Contains(allowed, answer) {
			t.Errorf("%d times %s, want only %v; %v", times, answer, allowed, report.Errors)
		}
	}
	if len(report.Answers) == 0 {
		t.Error("no answers")
	}
}

func perSecond(report loadgen.Report) float64 {
	return float64(report.Answers[loadgen.Claimed]) / report.Elapsed.Seconds()
}

// checkReports compares the stored claims of the sale with the reports, which cover all claims that
// the service has received.
func checkReports(t *testing.T, p *program, reports ...loadgen.Report) {
	t.Helper()
	claimed, unknown := 0, 0
	for _, r := range reports {
		claimed, unknown = claimed+r.Answers[loadgen.Claimed], unknown+r.Answers[loadgen.OutcomeUnknown]
	}
	var stored loadgen.Coupon
	wait.For(t, "a read within CLAIM_TIMEOUT, which a busy machine may miss", func() bool {
		var err error
		stored, err = loadgen.Service{Address: p.address, Timeout: time.Minute}.Coupon(t.Context(), saleCoupon)
		return err == nil
	})
	if err := check.Totals(claimed, unknown, stored); err != nil {
		t.Error(err)
	}
}

// watchMemory returns the memory of a process in bytes, and a function that returns its peak from
// now on, as the kernel counts it. Both are 0 on systems other than Linux.
func watchMemory(t *testing.T, p *program) (now int64, peak func() int64) {
	t.Helper()
	peak = func() int64 {
		t.Helper()
		bytes, err := procmem.Peak(p.pid)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		return bytes
	}
	if err := procmem.ResetPeak(p.pid); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return peak(), peak
}

func mib(bytes int64) float64 { return float64(bytes) / (1 << 20) }
