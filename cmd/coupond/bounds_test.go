package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	loadgen "scalable-coupon-system/bench/load"
	"scalable-coupon-system/internal/pgtest"
	"scalable-coupon-system/internal/wait"
)

// TestBounds runs the service at its bounds and beyond them: with more claims than it can process
// (overload_test.go), with clients that misbehave (misbehaving_clients_test.go), and with upgrades
// under load (upgrade_test.go). Each trial takes a second here, and a minute in `make bounds`,
// which writes the measurements to docs/bounds.md. It is not parallel, because it would slow other
// tests down.
func TestBounds(t *testing.T) {
	b := &bounds{duration: time.Second, baseline: 250 * time.Millisecond, tolerance: 5 * time.Second, idle: 1_000, writers: 4_000, binary: plainBinary(t)}
	if text := os.Getenv("COUPOND_BOUNDS"); text != "" {
		duration, err := time.ParseDuration(text)
		if err != nil {
			t.Fatalf("COUPOND_BOUNDS: %v", err)
		}
		b.duration, b.baseline, b.tolerance, b.idle, b.writers, b.strict = duration, 5*time.Second, time.Second, 10_000, 6_000, true
	}
	b.overload(t)
	b.misbehavingClients(t)
	b.upgrades(t)
	if path := os.Getenv("COUPOND_BOUNDS_DOC"); path != "" && !t.Failed() {
		b.write(t, path)
	}
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
	text      strings.Builder
}

// The bounds of the services under test, low enough to exceed them easily.
const (
	boundTimeout = 2 * time.Second // CLAIM_TIMEOUT
	boundQueue   = 50              // CLAIM_QUEUE
)

// table begins a table of the document.
func (b *bounds) table(title, prose, columns string) {
	fmt.Fprintf(&b.text, "\n## %s\n\n%s\n\n| %s |\n|%s\n", title, prose, columns, strings.Repeat("---|", strings.Count(columns, "|")+1))
}

// row adds the results of a trial to the table.
func (b *bounds) row(t *testing.T, cells ...any) {
	t.Helper()
	row := "|"
	for _, cell := range cells {
		switch c := cell.(type) {
		case time.Duration:
			row += fmt.Sprintf(" %.1f ms |", float64(c.Microseconds())/1000)
		case float64:
			row += fmt.Sprintf(" %.0f |", c)
		default:
			row += fmt.Sprintf(" %v |", c)
		}
	}
	t.Log(row)
	b.text.WriteString(row + "\n")
}

func (b *bounds) write(t *testing.T, path string) {
	t.Helper()
	head := fmt.Sprintf("# At the bounds\n\n`make bounds` (`TestBounds` in cmd/coupond) wrote these measurements: %s a trial (the upgrades take as long as they need), with load\n"+
		"generator, service and PostgreSQL on one machine. `make test` runs each trial for a second. CLAIM_TIMEOUT was %s, CLAIM_QUEUE %d.\n", b.duration, boundTimeout, boundQueue)
	if err := os.WriteFile(path, []byte(head+b.text.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

// serve starts a service and waits until it is healthy. The service logs errors only, because a
// minute of overload would fill the memory of the test. limit is the number of file descriptors
// that it may have; 0 sets no limit.
func (b *bounds) serve(t *testing.T, binary, database string, limit int, settings ...string) (p *program, address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address = listener.Addr().String()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	env := append([]string{
		"DATABASE_URL=" + database, "LISTEN_ADDR=" + address, "LOG_LEVEL=error",
		"CLAIM_TIMEOUT=" + boundTimeout.String(), fmt.Sprint("CLAIM_QUEUE=", boundQueue),
	}, settings...)
	if limit > 0 {
		p = startBinary(t, "/bin/sh", env, "-c", fmt.Sprintf(`ulimit -n %d && exec "$0" serve`, limit), binary)
	} else {
		p = startBinary(t, binary, env, "serve")
	}
	p.url = "http://" + address
	wait.For(t, "a healthy service", func() bool {
		status, _ := getOnce(p.url + "/health")
		return status == http.StatusOK
	})
	return p, address
}

// getOnce sends one GET request over a new connection. A status of 0 means that there was no
// response.
func getOnce(url string) (status int, took time.Duration) {
	sent := time.Now()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	response, err := client.Get(url)
	if err == nil {
		status = response.StatusCode
		_ = response.Body.Close()
	}
	return status, time.Since(sent)
}

// saleCoupon is a coupon with an amount that is large enough never to sell out.
const saleCoupon = "SALE"

func (b *bounds) createSale(t *testing.T, address string) {
	t.Helper()
	err := loadgen.Service{Address: address, Timeout: time.Minute}.Create(t.Context(), saleCoupon, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
}

// lastUser makes every claim of these tests come from a new user.
var lastUser atomic.Int64

func newUserClaim(int) loadgen.Request {
	return loadgen.Request{User: fmt.Sprint("user ", lastUser.Add(1)), Coupon: saleCoupon}
}

// runClaims claims over the given number of connections for the given time. Each connection sends
// its next claim as soon as it has an answer.
func runClaims(t *testing.T, address string, connections int, duration time.Duration) loadgen.Report {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), duration)
	defer cancel()
	run, err := loadgen.Start(ctx, loadgen.Plan{Address: address, Connections: connections, Request: newUserClaim})
	if err != nil {
		t.Fatal(err)
	}
	return run.Wait()
}

// expectOnlyClaimed expects that every claim was answered with "claimed".
func expectOnlyClaimed(t *testing.T, report loadgen.Report) {
	t.Helper()
	if n := report.Claims.Total(); n == 0 || report.Claims.Count(loadgen.Claimed) != n {
		t.Errorf("answers: %v, want only %v; %v", report.Claims.Answers, loadgen.Claimed, report.Errors)
	}
}

func perSecond(report loadgen.Report) float64 {
	return float64(report.Claims.Count(loadgen.Claimed)) / report.Elapsed.Seconds()
}

// checkStored checks that the database has every claim that was answered with "claimed", and at
// most as many more as were answered with OUTCOME_UNKNOWN. The reports cover all claims that the
// service has received.
func checkStored(t *testing.T, database *pgtest.Database, reports ...loadgen.Report) {
	t.Helper()
	claimed, unknown := 0, 0
	for _, r := range reports {
		claimed, unknown = claimed+r.Claims.Count(loadgen.Claimed), unknown+r.Claims.Count(loadgen.OutcomeUnknown)
	}
	checkStoredBetween(t, database.Connect(t), claimed, claimed+unknown)
}

// checkStoredBetween checks that the number of stored claims of the sale is between minimum and
// maximum, and that its stock has decreased by that number.
func checkStoredBetween(t *testing.T, conn *pgx.Conn, minimum, maximum int) {
	t.Helper()
	var claims, sold int
	err := conn.QueryRow(t.Context(), `
		select (select count(*) from coupond.claims where coupon_name = $1), sum(amount - remaining_amount)
		from coupond.coupons
		where name = $1`, saleCoupon).Scan(&claims, &sold)
	if err != nil {
		t.Fatal(err)
	}
	if claims != sold || claims < minimum || claims > maximum {
		t.Errorf("%d claims stored, %d coupons sold; by the answers at least %d and at most %d", claims, sold, minimum, maximum)
	}
}

// formatAnswers returns the number of each answer, for a cell of the table.
func formatAnswers(report loadgen.Report) string {
	var all []string
	for _, c := range report.Claims.Answers {
		all = append(all, fmt.Sprintf("%d × %s", c.Times, c.Answer))
	}
	return strings.Join(all, ", ")
}
