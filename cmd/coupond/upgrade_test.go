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

// upgrades installs the functions anew, and rolls the service from one version to the next, while clients claim.
func (b *bounds) upgrades(t *testing.T) {
	b.table("Upgrades under load", "16 clients claim, each as soon as it has its answer. Whoever meets a closed door goes to the other instance, as a load balancer does.",
		"what | claims meanwhile, all 201 | failed")

	t.Run("functions installed anew 50 times", func(t *testing.T) {
		const installs = 50
		database := pgtest.New(t)
		_, address := b.serve(t, b.binary, database.URL, 0)
		b.sell(t, address)
		l := newLoad(t, address)
		conn := database.Connect(t)
		for range installs {
			if _, err := db.Apply(t.Context(), conn); err != nil {
				t.Fatal(err)
			}
			l.progress(t)
		}
		claimed := l.end(t)
		b.row(t, fmt.Sprintf("the functions installed anew, %d times", installs), claimed, l.failed.Load())
		storedBetween(t, conn, claimed, claimed)
	})

	t.Run("rolled to the next version", func(t *testing.T) {
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
		b.sell(t, addresses[0])
		l := newLoad(t, addresses...)
		l.progress(t)

		// First the schema, under the old instances.
		migrate := startBinary(t, next, []string{"DATABASE_URL=" + database.URL}, "migrate")
		if code := migrate.wait(t); code != 0 {
			t.Fatalf("migrate: exit code %d: %s", code, migrate.stderr.String())
		}
		var version int32
		if err := conn.QueryRow(t.Context(), `select public.coupon_schema_version()`).Scan(&version); err != nil || version != db.Version()+1 {
			t.Fatalf("schema version %d, %v; want %d", version, err, db.Version()+1)
		}
		l.progress(t)
		for _, p := range running {
			if status, _ := probe(p.url + "/health"); status != http.StatusOK {
				t.Errorf("an old instance on the new schema: /health %d", status)
			}
		}
		// Then one instance after the other: a new one comes, an old one goes.
		for range 2 {
			add(next)
			old := running[0]
			running, addresses = running[1:], addresses[1:]
			l.balance(addresses)
			l.progress(t)
			old.signal(syscall.SIGTERM)
			if code := old.wait(t); code != 0 {
				t.Errorf("an old instance ended with %d: %s", code, old.stderr.String())
			}
			l.progress(t)
		}
		claimed := l.end(t)
		b.row(t, "a migration added, two old instances replaced by two new ones", claimed, l.failed.Load())
		storedBetween(t, conn, claimed, claimed)
	})
}

// nextBinary builds the next version of coupond: this one with one migration more.
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
	const sql = "alter table public.coupons add column note text;\nalter table public.claims add column channel text not null default 'web';\n"
	if err := errors.Join(os.WriteFile(source, []byte(sql), 0o600), os.WriteFile(overlay, replace, 0o600)); err != nil {
		t.Fatal(err)
	}
	if output, err := exec.Command("go", "build", "-overlay", overlay, "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, output)
	}
	return binary
}

// clients claim without end at one of several instances each.
type clients struct {
	mu        sync.Mutex
	addresses []string

	over            atomic.Bool
	claimed, failed atomic.Int64
	late            atomic.Int64
	all             sync.WaitGroup
}

func newLoad(t *testing.T, addresses ...string) *clients {
	t.Helper()
	l := &clients{addresses: slices.Clone(addresses)}
	for i := range 16 {
		l.all.Go(func() { l.claim(t, i) })
	}
	t.Cleanup(func() { l.over.Store(true); l.all.Wait() })
	return l
}

// balance sets where new connections go.
func (l *clients) balance(addresses []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.addresses = slices.Clone(addresses)
}

// claim keeps a connection until the instance says that it is the last answer, and then goes to the next instance.
func (l *clients) claim(t *testing.T, i int) {
	for turn := i; !l.over.Load(); turn++ {
		l.mu.Lock()
		address := l.addresses[turn%len(l.addresses)]
		l.mu.Unlock()
		conn, err := net.Dial("tcp", address)
		if err != nil {
			time.Sleep(time.Millisecond)
			continue // nobody there: the next one
		}
		g, heard := rawhttp.New(conn), time.Now()
		for closes := false; !closes && !l.over.Load(); {
			body := claimBody(fmt.Sprint("user ", users.Add(1)), sold)
			_, err := io.WriteString(g, fmt.Sprintf("POST /api/coupons/claim HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
			silent := time.Since(heard) > drain.IdleGrace/2
			if err == nil {
				closes, err = g.Response(http.StatusCreated)
			}
			heard = time.Now()
			switch {
			case err == nil:
				l.claimed.Add(1)
			case silent && (errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)):
				// On a busy machine a client may be silent for longer than a closing door waits: then nothing was read of this claim.
				l.late.Add(1)
				closes = true
			default:
				l.failed.Add(1)
				t.Errorf("a claim: %v", err)
				closes = true
			}
		}
		_ = conn.Close()
	}
}

// progress waits until every client can have claimed with what there is now.
func (l *clients) progress(t *testing.T) {
	t.Helper()
	before := l.claimed.Load()
	wait.For(t, "claims", func() bool { return l.claimed.Load() > before+100 || l.failed.Load() > 0 })
}

// end stops the clients and returns how many claims they were granted.
func (l *clients) end(t *testing.T) int {
	t.Helper()
	l.over.Store(true)
	l.all.Wait()
	if n := l.late.Load(); n > 0 {
		t.Logf("%d clients were too slow for the grace of a closing door", n)
	}
	return int(l.claimed.Load())
}
