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

	"scalable-coupon-system/bench/check"
	"scalable-coupon-system/db"
	"scalable-coupon-system/internal/drain"
	"scalable-coupon-system/internal/pgtest"
	"scalable-coupon-system/internal/rawhttp"
	"scalable-coupon-system/internal/wait"
)

// upgrade performs a rolling upgrade of the service while clients claim.
func (b *bounds) upgrade(t *testing.T) {
	next := nextBinary(t)
	database := pgtest.New(t)
	conn := database.Connect(t)
	running := []*program{b.serveSale(t, database.URL, longTimeout), b.serve(t, b.binary, database.URL, longTimeout)}
	l := startLoad(t, 16, running...)
	l.progress(t)

	// First the schema, while the old instances run.
	startCommand(t, []string{"DATABASE_URL=" + database.URL}, exec.Command(next, "migrate")).exits(t, 0)
	var version int32
	if err := conn.QueryRow(t.Context(), `select coupond.coupon_schema_version()`).Scan(&version); err != nil || version != db.Version()+1 {
		t.Fatalf("schema version %d, %v; want %d", version, err, db.Version()+1)
	}
	l.progress(t)
	for _, p := range running {
		if status, _ := p.getOnce("/health"); status != http.StatusOK {
			t.Errorf("old instance with the new schema: /health %d", status)
		}
	}
	// Then the instances, one after the other: start a new one, stop an old one.
	for range 2 {
		old := running[0]
		running = append(running[1:], b.serve(t, next, database.URL, longTimeout))
		l.balance(running)
		l.progress(t)
		old.stop(t, syscall.SIGTERM)
		l.progress(t)
	}
	l.end(t, running[0])
}

// nextBinary builds the next version of coupond, which has one more migration.
func nextBinary(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	migration, err := filepath.Abs(fmt.Sprintf("../../db/migrations/%03d_next.sql", db.Version()+1))
	must(t, err)
	source, overlay, binary := filepath.Join(dir, "next.sql"), filepath.Join(dir, "overlay.json"), filepath.Join(dir, "coupond")
	replace, err := json.Marshal(map[string]any{"Replace": map[string]string{migration: source}})
	must(t, err)
	const sql = "alter table coupond.coupons add column note text;\nalter table coupond.claims add column channel text not null default 'web';\n"
	must(t, errors.Join(os.WriteFile(source, []byte(sql), 0o600), os.WriteFile(overlay, replace, 0o600)))
	must(t, build(binary, "-overlay", overlay))
	return binary
}

// claimLoad is a number of clients that claim continuously, each from one of several instances.
type claimLoad struct {
	mu        sync.Mutex
	instances []*program

	stopped         atomic.Bool
	claimed, failed atomic.Int64
	late            atomic.Int64 // clients that were too slow for drain.IdleGrace
	running         sync.WaitGroup
}

func startLoad(t *testing.T, clients int, instances ...*program) *claimLoad {
	t.Helper()
	l := &claimLoad{instances: instances}
	for i := range clients {
		l.running.Go(func() { l.claim(t, i) })
	}
	t.Cleanup(func() { l.stopped.Store(true); l.running.Wait() })
	return l
}

// balance sets the instances for new connections. A load balancer does that before it stops one.
func (l *claimLoad) balance(instances []*program) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.instances = slices.Clone(instances)
}

// connect connects to the next instance, or returns nil. It holds the lock meanwhile, so that no
// connection is made to an instance after balance has taken it out.
func (l *claimLoad) connect(next int) *rawhttp.Conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.instances) > 0 {
		if conn, err := net.Dial("tcp", l.instances[next%len(l.instances)].address); err == nil {
			return rawhttp.New(conn)
		}
	}
	return nil
}

// claim uses a connection until the instance announces that it closes it, then connects to the next
// instance.
func (l *claimLoad) claim(t *testing.T, i int) {
	for next := i; !l.stopped.Load(); next++ {
		c, lastAnswer := l.connect(next), time.Now()
		if c == nil {
			time.Sleep(time.Millisecond)
			continue // no instance, or it is gone: try the next one
		}
		for closes := false; !closes && !l.stopped.Load(); {
			_, err := io.WriteString(c, rawClaim(fmt.Sprint("user ", lastUser.Add(1))))
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
		_ = c.Close()
	}
}

// progress waits for 100 more claims, so that the current state has been used.
func (l *claimLoad) progress(t *testing.T) {
	t.Helper()
	before := l.claimed.Load()
	wait.For(t, "claims", func() bool { return l.claimed.Load() > before+100 || l.failed.Load() > 0 })
}

// end stops the clients, and compares the stored claims, as the service p reports them, with the
// number of successful ones, which it returns.
func (l *claimLoad) end(t *testing.T, p *program) int {
	t.Helper()
	l.stopped.Store(true)
	l.running.Wait()
	claimed := int(l.claimed.Load())
	t.Logf("%d claims; %d times, a client was too slow for the grace of a draining instance", claimed, l.late.Load())
	if err := check.Totals(claimed, 0, p.coupon(t, saleCoupon)); err != nil {
		t.Error(err)
	}
	return claimed
}
