package main

import (
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
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"scalable-coupon-system/db"
	"scalable-coupon-system/internal/drain"
	"scalable-coupon-system/internal/pgtest"
	"scalable-coupon-system/internal/rawhttp"
	"scalable-coupon-system/internal/wait"
)

// upgrades reinstalls the functions and performs a rolling upgrade of the service while clients
// claim.
func (b *bounds) upgrades(t *testing.T) {
	b.table("Upgrades under load", "16 clients claim, each as soon as it has its answer. A client that cannot connect tries the other instance, as a load balancer does.",
		"upgrade | claims during it, all 201 | failed")

	t.Run("functions reinstalled 50 times", func(t *testing.T) {
		const installs = 50
		database := pgtest.New(t)
		_, address := b.serve(t, b.binary, database.URL, 0)
		b.createSale(t, address)
		l := startLoad(t, address)
		conn := database.Connect(t)
		for range installs {
			if _, err := db.Apply(t.Context(), conn, db.Options{}); err != nil {
				t.Fatal(err)
			}
			l.progress(t)
		}
		claimed := l.end(t)
		b.row(t, fmt.Sprintf("functions reinstalled %d times", installs), claimed, l.failed.Load())
		checkStoredBetween(t, conn, claimed, claimed)
	})

	t.Run("rolling upgrade", func(t *testing.T) {
		next := nextBinary(t)
		database := pgtest.New(t)
		conn := database.Connect(t)
		var running []*program
		var addresses []string
		add := func(binary string) {
			p, address := b.serve(t, binary, database.URL, 0)
			running, addresses = append(running, p), append(addresses, address)
		}
		add(b.binary)
		add(b.binary)
		b.createSale(t, addresses[0])
		l := startLoad(t, addresses...)
		l.progress(t)

		// First the schema, while the old instances run.
		migrate := startBinary(t, next, []string{"DATABASE_URL=" + database.URL}, "migrate")
		if code := migrate.wait(t); code != 0 {
			t.Fatalf("migrate: exit code %d: %s", code, migrate.stderr.String())
		}
		var version int32
		if err := conn.QueryRow(t.Context(), `select coupond.coupon_schema_version()`).Scan(&version); err != nil || version != db.Version()+1 {
			t.Fatalf("schema version %d, %v; want %d", version, err, db.Version()+1)
		}
		l.progress(t)
		for _, p := range running {
			if status, _ := getOnce(p.url + "/health"); status != http.StatusOK {
				t.Errorf("old instance with the new schema: /health %d", status)
			}
		}
		// Then the instances, one after the other: start a new one, stop an old one.
		for range 2 {
			add(next)
			old := running[0]
			running, addresses = running[1:], addresses[1:]
			l.balance(addresses)
			l.progress(t)
			old.signal(syscall.SIGTERM)
			if code := old.wait(t); code != 0 {
				t.Errorf("old instance: exit code %d: %s", code, old.stderr.String())
			}
			l.progress(t)
		}
		claimed := l.end(t)
		b.row(t, "one migration, then two old instances replaced by two new ones", claimed, l.failed.Load())
		checkStoredBetween(t, conn, claimed, claimed)
	})
}

// nextBinary builds the next version of coupond, which has one more migration.
func nextBinary(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	migration, err := filepath.Abs(fmt.Sprintf("../../db/migrations/%03d_next.sql", db.Version()+1))
	if err != nil {
		t.Fatal(err)
	}
	source, overlay, binary := filepath.Join(dir, "next.sql"), filepath.Join(dir, "overlay.json"), filepath.Join(dir, "coupond")
	replace, err := json.Marshal(map[string]any{"Replace": map[string]string{migration: source}})
	if err != nil {
		t.Fatal(err)
	}
	const sql = "alter table coupond.coupons add column note text;\nalter table coupond.claims add column channel text not null default 'web';\n"
	if err := errors.Join(os.WriteFile(source, []byte(sql), 0o600), os.WriteFile(overlay, replace, 0o600)); err != nil {
		t.Fatal(err)
	}
	if output, err := exec.Command("go", "build", "-overlay", overlay, "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, output)
	}
	return binary
}

// claimLoad is a number of clients that claim continuously, each from one of several instances.
type claimLoad struct {
	mu        sync.Mutex
	addresses []string

	stopped         atomic.Bool
	claimed, failed atomic.Int64
	late            atomic.Int64 // clients that were too slow for drain.IdleGrace
	running         sync.WaitGroup
}

func startLoad(t *testing.T, addresses ...string) *claimLoad {
	t.Helper()
	l := &claimLoad{addresses: slices.Clone(addresses)}
	for i := range 16 {
		l.running.Go(func() { l.claim(t, i) })
	}
	t.Cleanup(func() { l.stopped.Store(true); l.running.Wait() })
	return l
}

// balance sets the addresses for new connections.
func (l *claimLoad) balance(addresses []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.addresses = slices.Clone(addresses)
}

// claim uses a connection until the instance announces that it closes it, then connects to the next
// instance.
func (l *claimLoad) claim(t *testing.T, i int) {
	for next := i; !l.stopped.Load(); next++ {
		l.mu.Lock()
		address := l.addresses[next%len(l.addresses)]
		l.mu.Unlock()
		conn, err := net.Dial("tcp", address)
		if err != nil {
			time.Sleep(time.Millisecond)
			continue // the instance is gone: try the next one
		}
		c, lastAnswer := rawhttp.New(conn), time.Now()
		for closes := false; !closes && !l.stopped.Load(); {
			body := claimBody(fmt.Sprint("user ", lastUser.Add(1)), saleCoupon)
			_, err := io.WriteString(c, fmt.Sprintf("POST /api/coupons/claim HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
			late := time.Since(lastAnswer) > drain.IdleGrace/2
			if err == nil {
				closes, err = c.Response(http.StatusCreated)
			}
			lastAnswer = time.Now()
			switch {
			case err == nil:
				l.claimed.Add(1)
			case late && (errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)):
				// On a busy machine a client may be idle for longer than a draining instance waits.
				// Then nothing of this claim was read.
				l.late.Add(1)
				closes = true
			default:
				l.failed.Add(1)
				t.Errorf("claim: %v", err)
				closes = true
			}
		}
		_ = conn.Close()
	}
}

// progress waits for 100 more claims, so that the current state has been used.
func (l *claimLoad) progress(t *testing.T) {
	t.Helper()
	before := l.claimed.Load()
	wait.For(t, "claims", func() bool { return l.claimed.Load() > before+100 || l.failed.Load() > 0 })
}

// end stops the clients and returns the number of successful claims.
func (l *claimLoad) end(t *testing.T) int {
	t.Helper()
	l.stopped.Store(true)
	l.running.Wait()
	if n := l.late.Load(); n > 0 {
		t.Logf("%d times, a client was too slow for the grace of a draining instance", n)
	}
	return int(l.claimed.Load())
}
