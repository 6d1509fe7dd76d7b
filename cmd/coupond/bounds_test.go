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

// TestBounds brings the service to its bounds and beyond them: more claims than it can carry (overload_test.go), clients that
// misbehave (crowded_test.go), upgrades under load (upgrade_test.go). Each lasts a second here and a minute by `make bounds`, which
// writes what was measured into docs/bounds.md. Not parallel: it would be others who find the machine slow.
func TestBounds(t *testing.T) {
	b := &bounds{duration: time.Second, calm: 250 * time.Millisecond, grace: 5 * time.Second, idle: 1_000, binary: plainBinary(t)}
	if text := os.Getenv("COUPON_BOUNDS"); text != "" {
		duration, err := time.ParseDuration(text)
		if err != nil {
			t.Fatalf("COUPON_BOUNDS: %v", err)
		}
		b.duration, b.calm, b.grace, b.idle, b.strict = duration, 5*time.Second, time.Second, 10_000, true
	}
	b.overload(t)
	b.crowded(t)
	b.upgrades(t)
	if path := os.Getenv("COUPON_BOUNDS_DOC"); path != "" && !t.Failed() {
		b.write(t, path)
	}
}

// bounds is one run of TestBounds.
type bounds struct {
	duration time.Duration // of each trial
	calm     time.Duration // of what is measured before and after
	grace    time.Duration // beyond CLAIM_TIMEOUT; a second is promised, and a busy machine may need more
	idle     int           // idle connections
	strict   bool          // the machine is ours: speeds mean something
	binary   string        // coupond without the race detector
	text     strings.Builder
}

// The bounds of the services here, so tight that little is needed to go beyond them.
const (
	boundTimeout = 2 * time.Second // CLAIM_TIMEOUT
	boundQueue   = 50              // CLAIM_QUEUE
)

// table begins a table of the document.
func (b *bounds) table(title, prose, columns string) {
	fmt.Fprintf(&b.text, "\n## %s\n\n%s\n\n| %s |\n|%s\n", title, prose, columns, strings.Repeat("---|", strings.Count(columns, "|")+1))
}

// row adds what a trial came to.
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
	head := fmt.Sprintf("# At the bounds\n\nWhat `make bounds` (`TestBounds` in cmd/coupond) measured and wrote, %s a trial (the upgrades end by themselves), load generator, service and\n"+
		"PostgreSQL on one machine. `make test` does the same for a second each. CLAIM_TIMEOUT was %s, CLAIM_QUEUE %d.\n", b.duration, boundTimeout, boundQueue)
	if err := os.WriteFile(path, []byte(head+b.text.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

// serve starts a service that logs errors only (a minute of overload would fill the journal) and waits until it is healthy.
// limit, when it is not 0, is the number of file descriptors that it may have.
func (b *bounds) serve(t *testing.T, binary, database string, limit int, more ...string) (p *program, address string) {
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
	}, more...)
	if limit > 0 {
		p = startBinary(t, "/bin/sh", env, "-c", fmt.Sprintf(`ulimit -n %d && exec "$0" serve`, limit), binary)
	} else {
		p = startBinary(t, binary, env, "serve")
	}
	p.url = "http://" + address
	wait.For(t, "a healthy service", func() bool {
		status, _ := probe(p.url + "/health")
		return status == http.StatusOK
	})
	return p, address
}

// probe asks once, over a connection of its own; 0 is no answer.
func probe(url string) (status int, took time.Duration) {
	asked := time.Now()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	response, err := client.Get(url)
	if err == nil {
		status = response.StatusCode
		_ = response.Body.Close()
	}
	return status, time.Since(asked)
}

// sold is a coupon on sale at a service, with so many pieces that it is never sold out.
const sold = "SALE"

func (b *bounds) sell(t *testing.T, address string) {
	t.Helper()
	err := loadgen.Service{Address: address, Timeout: time.Minute}.Create(t.Context(), sold, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
}

// users gives every claim of a test a user of its own.
var users atomic.Int64

func newcomer(int) loadgen.Request {
	return loadgen.Request{User: fmt.Sprint("user ", users.Add(1)), Coupon: sold}
}

// claims lets so many connections claim, each as soon as it has its answer, for some time.
func claims(t *testing.T, address string, connections int, duration time.Duration) loadgen.Report {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), duration)
	defer cancel()
	run, err := loadgen.Start(ctx, loadgen.Plan{Address: address, Connections: connections, Request: newcomer})
	if err != nil {
		t.Fatal(err)
	}
	return run.Wait()
}

// onlyClaimed fails unless everybody was told that he has it.
func onlyClaimed(t *testing.T, report loadgen.Report) {
	t.Helper()
	if n := report.Claims.Total(); n == 0 || report.Claims.Count(loadgen.Claimed) != n {
		t.Errorf("the answers are %v, want %v only; %v", report.Claims.Answers, loadgen.Claimed, report.Faults)
	}
}

func perSecond(report loadgen.Report) float64 {
	return float64(report.Claims.Count(loadgen.Claimed)) / report.Elapsed.Seconds()
}

// stored fails unless the database has every claim that was told as claimed, and beyond these at most those that were told as
// unknown. The reports are all that the service was ever asked.
func stored(t *testing.T, database *pgtest.Database, reports ...loadgen.Report) {
	t.Helper()
	claimed, unknown := 0, 0
	for _, r := range reports {
		claimed, unknown = claimed+r.Claims.Count(loadgen.Claimed), unknown+r.Claims.Count(loadgen.OutcomeUnknown)
	}
	storedBetween(t, database.Connect(t), claimed, claimed+unknown)
}

// storedBetween fails unless at least and at most so many claims are stored, and as many pieces are gone.
func storedBetween(t *testing.T, conn *pgx.Conn, least, most int) {
	t.Helper()
	var claims, gone int
	err := conn.QueryRow(t.Context(), `
		select (select count(*) from public.claims), sum(amount - remaining_amount) from public.coupons`).Scan(&claims, &gone)
	if err != nil {
		t.Fatal(err)
	}
	if claims != gone || claims < least || claims > most {
		t.Errorf("%d claims are stored and %d pieces are gone; by what was told it is %d at least, %d at most", claims, gone, least, most)
	}
}

// answers tells them for a cell of the table.
func answers(report loadgen.Report) string {
	var all []string
	for _, c := range report.Claims.Answers {
		all = append(all, fmt.Sprintf("%d × %s", c.Times, c.Answer))
	}
	return strings.Join(all, ", ")
}
