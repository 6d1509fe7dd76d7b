package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"scalable-coupon-system/internal/pgtest"
	"scalable-coupon-system/internal/wait"
)

// A response with a million claims of users with long ids has more than 100 MB. The service may use
// at most 64 MiB for it, so it cannot hold the whole response in memory.
const (
	million      = 1_000_000
	longestID    = 100
	memoryBudget = 64 << 20
)

// insertBigCoupon inserts the coupon BIG with an amount of 1,000,200 and a million claims.
func insertBigCoupon(t *testing.T, database *pgtest.Database) {
	t.Helper()
	conn := database.Connect(t)
	for _, sql := range []string{
		`set session_replication_role = replica`, // skips a million checks of the foreign key
		`set synchronous_commit = off`,
		fmt.Sprintf(`insert into coupond.coupons (name, amount, remaining_amount) values ('BIG', %d, 200)`, million+200),
		fmt.Sprintf(`insert into coupond.claims (coupon_name, claim_number, user_id)
			select 'BIG', n, lpad(n::text, %d, '0') from generate_series(1, %d) n`, longestID, million),
		`analyze coupond.claims`,
	} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
}

// plainBinary builds coupond without the race detector, which needs many times the memory.
func plainBinary(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "coupond")
	if output, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, output)
	}
	return binary
}

// TestMillionClaims reads the big coupon while others claim it, and measures the peak memory of the
// service's process as counted by the kernel.
func TestMillionClaims(t *testing.T) {
	database := pgtest.New(t)
	insertBigCoupon(t, database)
	p := startBinary(t, plainBinary(t), environ(database.URL), "serve").ready(t)
	c := newClient(t, p.url, 16)

	// The memory of an idle service is measured after one use of everything, with few claims.
	c.create(t, "SMALL", 100)
	for n := range 20 {
		if a, err := c.claim(fmt.Sprint("user ", n), "SMALL"); err != nil || a.status != http.StatusCreated {
			t.Fatalf("claim: %+v %v", a, err)
		}
	}
	c.get(t, "SMALL")
	idle := memory(t, p.pid)

	var claimers sync.WaitGroup
	for n := range 100 {
		claimers.Go(func() {
			time.Sleep(time.Duration(n) * 10 * time.Millisecond)
			if a, err := c.claim(fmt.Sprint("late user ", n), "BIG"); err != nil || a.status != http.StatusCreated {
				t.Errorf("claim: %+v %v", a, err)
			}
		})
	}
	highest := watchMemory(t, p.pid)
	started := time.Now()
	s, size := readBig(t, c)
	took := time.Since(started)
	extra := highest() - idle
	claimers.Wait()
	t.Logf("%d claims, %.0f MiB in %s; idle %.1f MiB, %.1f MiB more at most", len(s.ClaimedBy), mib(size), took.Round(time.Millisecond), mib(idle), mib(extra))

	if extra > memoryBudget {
		t.Errorf("the service used %.1f MiB more than when idle, want at most %.1f", mib(extra), mib(memoryBudget))
	}
	if len(s.ClaimedBy) < million || len(s.ClaimedBy)+s.RemainingAmount != s.Amount || s.Amount != million+200 {
		t.Errorf("%d claims and %d remaining of %d", len(s.ClaimedBy), s.RemainingAmount, s.Amount)
	}
	for n, user := range s.ClaimedBy[:million] {
		if want := fmt.Sprintf("%0*d", longestID, n+1); user != want {
			t.Fatalf("claim number %d belongs to %s, want %s", n+1, user, want)
		}
	}
	var remaining int
	err := database.Connect(t).QueryRow(t.Context(), `select remaining_amount from coupond.coupons where name = 'BIG'`).Scan(&remaining)
	if err != nil || remaining != 100 {
		t.Errorf("%d remain, want 100; %v", remaining, err)
	}

	t.Run("a client that disconnects stops the read", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url+"/api/coupons/BIG", nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("X-Request-ID", "disconnects")
		response, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(request)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, response.Body, 1<<20); err != nil {
			t.Fatal(err)
		}
		// The service waits for a client that does not read: when all buffers are full, it reads no
		// page.
		wait.For(t, "the service to stop reading pages", func() bool { return pagesRead(t, database, 300*time.Millisecond) == 0 })
		cancel()
		_ = response.Body.Close()

		line := requestLine(t, p, "disconnects")
		if bytes, ok := line["bytes"].(float64); !ok || int64(bytes) > size/2 || line["aborted"] != true {
			t.Errorf("log line of the request: %v", line)
		}
		if n := pagesRead(t, database, 300*time.Millisecond); n != 0 {
			t.Errorf("%d pages were read after the client had disconnected", n)
		}
	})
}

// readBig reads the big coupon, and returns the size of the response in bytes as well.
func readBig(t *testing.T, c *client) (state, int64) {
	t.Helper()
	response, err := c.Get(c.base + "/api/coupons/BIG")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		t.Fatal(response.Status)
	}
	var text bytes.Buffer
	size, err := io.Copy(&text, response.Body)
	if err != nil {
		t.Fatalf("after %d bytes: %v", size, err)
	}
	var s state
	if err := json.Unmarshal(text.Bytes(), &s); err != nil {
		t.Fatal(err)
	}
	return s, size
}

// pagesRead returns how many reads of a page the service starts within the given time.
func pagesRead(t *testing.T, database *pgtest.Database, within time.Duration) int {
	t.Helper()
	conn := database.Connect(t)
	n := 0
	last := map[int]time.Time{}
	for started := time.Now(); time.Since(started) < within; time.Sleep(time.Millisecond) {
		rows, err := conn.Query(t.Context(), `select pid, query_start from pg_stat_activity
			where datname = current_database() and application_name = 'coupond' and query like '%coupon_claimers%'`)
		if err != nil {
			t.Fatal(err)
		}
		for rows.Next() {
			var pid int
			var at time.Time
			if err := rows.Scan(&pid, &at); err != nil {
				t.Fatal(err)
			}
			if before, known := last[pid]; known && at.After(before) {
				n++
			}
			last[pid] = at
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// requestLine waits for the log line of the request with this id and returns its fields.
func requestLine(t *testing.T, p *program, id string) map[string]any {
	t.Helper()
	var fields map[string]any
	wait.For(t, "the log line of request "+id, func() bool {
		for line := range strings.Lines(p.stderr.String()) {
			fields = nil
			if strings.Contains(line, id) && json.Unmarshal([]byte(line), &fields) == nil && fields["message"] == "request" {
				return true
			}
		}
		return false
	})
	return fields
}

// memory returns the size of the resident set of the process in bytes.
func memory(t *testing.T, pid int) int64 {
	t.Helper()
	output, err := exec.Command("ps", "-o", "rss=", "-p", strconv.Itoa(pid)).Output()
	if err != nil {
		t.Fatalf("ps: %v", err)
	}
	kib, err := strconv.ParseInt(strings.TrimSpace(string(output)), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kib << 10
}

// watchMemory starts measuring the memory of the process. The function that it returns stops that,
// and returns the peak in bytes. Linux counts the peak exactly; on other systems watchMemory polls
// ps.
func watchMemory(t *testing.T, pid int) (highest func() int64) {
	t.Helper()
	if runtime.GOOS == "linux" {
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0o600); err != nil {
			t.Fatal(err)
		}
		return func() int64 {
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(string(status)) {
				if text, ok := strings.CutPrefix(line, "VmHWM:"); ok {
					kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(text), "kB")), 10, 64)
					if err != nil {
						t.Fatal(err)
					}
					return kib << 10
				}
			}
			t.Fatal("no VmHWM in the status of the process")
			return 0
		}
	}
	stop, result := make(chan struct{}), make(chan int64)
	go func() {
		var high int64
		for {
			high = max(high, memory(t, pid))
			select {
			case <-stop:
				result <- high
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	return func() int64 { close(stop); return <-result }
}

func mib(bytes int64) float64 { return float64(bytes) / (1 << 20) }
