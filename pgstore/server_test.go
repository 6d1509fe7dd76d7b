package pgstore

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"scalable-coupon-system/db"
	"scalable-coupon-system/internal/pgtest"
)

// startServer starts a server of the test's own, for what cannot be done to a
// shared one. It ends with the test.
func startServer(t testing.TB) *pgtest.Server {
	t.Helper()
	return pgtest.StartServer(t, map[string]string{"fsync": "off"})
}

func connect(t testing.TB, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// A cluster that has never seen a migration does not even have the role.
func TestReadyWithoutTheRole(t *testing.T) {
	t.Parallel()
	url := startServer(t).Empty(t).URL
	s := standOn(t, url, connect(t, url))
	wantReady(t, s.Store, "coupon_service", "coupond migrate")
	if _, err := s.Claim(t.Context(), "u", "c"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("a claim: %v", err)
	}
	if _, err := db.Apply(t.Context(), s.owner); err != nil {
		t.Fatal(err)
	}
	wantReady(t, s.Store)
}

// Encrypted connections are closed as promptly as others, and as uncancelled.
func TestGivingUpEncrypted(t *testing.T) {
	t.Parallel()
	url := startServer(t).New(t).URL
	owner := connect(t, url)
	encrypt(t, owner)
	s := standOn(t, url, owner, func(cfg *Config) {
		cfg.URL = withParam(cfg.URL, "sslmode", "require")
		cfg.ClaimTimeout = time.Minute
	})
	wantReady(t, s.Store)
	var encrypted bool
	if err := owner.QueryRow(t.Context(),
		`select bool_and(ssl) from pg_stat_ssl join pg_stat_activity using (pid) where application_name = 'coupond'`,
	).Scan(&encrypted); err != nil || !encrypted {
		t.Fatalf("the sessions are encrypted: %v, %v", encrypted, err)
	}
	s.giveUp(t)
}

// encrypt gives a server a certificate and has it offer encryption.
func encrypt(t *testing.T, owner *pgx.Conn) {
	t.Helper()
	// Not Ed25519: SCRAM binds to a hash of the certificate, and knows none for that one.
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}

	// The server writes the files itself, beside its own, so that it may read them whoever
	// it runs as, and nobody else.
	for name, block := range map[string]pem.Block{
		"server.crt": {Type: "CERTIFICATE", Bytes: certificate},
		"server.key": {Type: "PRIVATE KEY", Bytes: key},
	} {
		lines := `select unnest(string_to_array('` + string(pem.EncodeToMemory(&block)) + `', E'\n'))`
		if _, err := owner.Exec(t.Context(), `copy (`+lines+`) to program 'umask 077; cat > `+name+`'`); err != nil {
			t.Fatal(err)
		}
	}
	for _, sql := range []string{`alter system set ssl = on`, `select pg_reload_conf()`} {
		if _, err := owner.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the server offers encryption", func() bool {
		probe, err := pgx.Connect(t.Context(), withParam(owner.Config().ConnString(), "sslmode", "require"))
		if err != nil {
			return false
		}
		return probe.Close(t.Context()) == nil
	})
}

// A claim that waits for a synchronous standby is not told as claimed, however the
// wait ends, as long as it does not end with the standby's word.
func TestSynchronousStandby(t *testing.T) {
	t.Parallel()
	url := startServer(t).New(t).URL
	quick := func(cfg *Config) { cfg.ClaimTimeout = 8 * time.Second }
	s := standOn(t, url, connect(t, url), quick)
	s.create(t, "c", 100)
	if status, err := s.Claim(t.Context(), "before", "c"); status != Claimed {
		t.Fatal(status, err)
	}

	s.loseStandby(t)
	// A rejection commits nothing and returns at once.
	if status, err := s.Claim(t.Context(), "before", "c"); status != AlreadyClaimed {
		t.Fatal(status, err)
	}

	for _, test := range []struct{ user, end string }{
		{"cancelled", cancelWaiting},
		{"terminated", `select pg_terminate_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'`},
	} {
		// Each of a store that has no doubt yet: one that has sends no claim.
		store := openStore(t, s.proxy.URL(url), quick)
		answered := make(chan struct{})
		var ended atomic.Bool
		go func() {
			defer close(answered)
			status, err := store.Claim(t.Context(), test.user, "c")
			if status != "" || !errors.Is(err, ErrOutcomeUnknown) {
				t.Errorf("%s: %q, %v; want it unknown", test.user, status, err)
			}
			if !ended.Load() {
				t.Errorf("%s was answered while he waited for the standby", test.user)
			}
		}()
		eventually(t, "the claim waits for the standby", func() bool { return s.waitForStandby(t) > 0 })
		ended.Store(true)
		s.exec(t, test.end)
		<-answered
		// It is on this server's disk all the same: that is why it is unknown, and not refused.
		if holders := s.holders(t, "c"); !slices.Contains(holders, test.user) {
			t.Errorf("%s: held by %q", test.user, holders)
		}
		eventually(t, "nobody waits, nor asks whether commits come back", func() bool {
			s.exec(t, cancelWaiting)
			return s.waitForStandby(t) == 0
		})
	}

	// Nobody ends the wait but us. The claim goes on waiting, uncancelled, and stands when
	// the standby is there (here: is not wanted any more).
	start := time.Now()
	if status, err := s.Claim(t.Context(), "patient", "c"); status != "" || !errors.Is(err, ErrOutcomeUnknown) {
		t.Errorf("given up: %q, %v; want it unknown", status, err)
	}
	if took := time.Since(start); took > s.timeout+time.Second {
		t.Errorf("given up after %v", took)
	}
	if holders := s.holders(t, "c"); slices.Contains(holders, "patient") {
		t.Errorf("a claim that waits for its standby can be seen already: %q", holders)
	}
	s.wantNoCancelRequest(t)
	s.wantStandby(t, "")
	eventually(t, "the claim is committed", func() bool { return slices.Contains(s.holders(t, "c"), "patient") })
	eventually(t, "it is ready", func() bool { return s.Ready(t.Context()) == nil })
	if status, err := s.Claim(t.Context(), "after", "c"); status != Claimed {
		t.Errorf("afterwards: %q, %v", status, err)
	}
}

// The server crashes and comes back in the middle of a sale: who was told "claimed"
// has it, nobody is told a guess, and the sale goes on without a restart.
func TestServerCrashes(t *testing.T) {
	t.Parallel()
	server := startServer(t)
	url := server.New(t).URL
	s := standOn(t, url, connect(t, url), func(cfg *Config) { cfg.ClaimTimeout = 4 * time.Second })
	s.create(t, "c", 1_000_000)

	var mu sync.Mutex
	answers := make(map[string]string) // what each user was told
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for i := range 8 {
		clients.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				user := fmt.Sprint(i, "/", n)
				status, err := s.Claim(t.Context(), user, "c")
				answer := string(status)
				switch {
				case errors.Is(err, ErrOutcomeUnknown):
					answer = "unknown"
				case errors.Is(err, ErrUnavailable), errors.Is(err, ErrOverloaded):
					answer = "refused"
				case err != nil:
					answer = err.Error()
				}
				mu.Lock()
				answers[user] = answer
				mu.Unlock()
			}
		})
	}
	count := func(answer string) (n int) {
		mu.Lock()
		defer mu.Unlock()
		for _, a := range answers {
			if a == answer {
				n++
			}
		}
		return n
	}
	for range 2 {
		before := count("claimed")
		eventually(t, "claims are granted", func() bool { return count("claimed") > before+100 })
		refused := count("refused")
		if err := server.Kill(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "claims are refused", func() bool { return count("refused") > refused })
		wantReady(t, s.Store, "does not answer")
		if err := server.Start(); err != nil {
			t.Fatal(err)
		}
	}
	before := count("claimed")
	eventually(t, "claims are granted again", func() bool { return count("claimed") > before+100 })
	wantReady(t, s.Store)
	close(stop)
	clients.Wait()

	s.owner = connect(t, url)
	has := make(map[string]bool)
	for _, user := range s.holders(t, "c") {
		has[user] = true
	}
	for user, answer := range answers {
		switch answer {
		case "claimed":
			if !has[user] {
				t.Errorf("%s was told that he has it, and does not", user)
			}
		case "refused":
			if has[user] {
				t.Errorf("%s was told that surely nothing happened, and has it", user)
			}
		case "unknown":
		default:
			t.Errorf("%s was told %q", user, answer)
		}
	}
	t.Logf("claimed %d, refused %d, unknown %d", count("claimed"), count("refused"), count("unknown"))
}

// After Close nothing is left: no goroutine here and no session there.
func TestCloseLeavesNothing(t *testing.T) {
	database := pgtest.New(t)
	owner := database.Connect(t)
	before := goleak.IgnoreCurrent()

	cfg := testConfig(database.URL)
	cfg.ClaimTimeout = patience
	store, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s := &stand{Store: store, url: database.URL, owner: owner}
	s.create(t, "c", 1000)
	unlock := s.lock(t, "c")
	wantReady(t, store)
	var callers sync.WaitGroup
	for i := range 5 {
		callers.Go(func() {
			if status, err := s.Claim(t.Context(), fmt.Sprint(i), "c"); status != Claimed {
				t.Errorf("a claim that waits at Close: %q, %v; want it answered", status, err)
			}
		})
	}
	if _, _, err := s.Coupon(t.Context(), "c"); err != nil {
		t.Error(err)
	}
	eventually(t, "one claim is under way and all others queue for it", func() bool {
		l := s.lanes.of("c")
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.busy && len(l.queue) == 4
	})
	time.AfterFunc(100*time.Millisecond, unlock)
	store.Close()
	callers.Wait()

	eventually(t, "the sessions end", func() bool { return s.sessions(t) == 0 })
	goleak.VerifyNone(t, before)

	// What comes late is refused, not hung, and a second Close does no harm.
	if _, err := s.Claim(t.Context(), "late", "c"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("a claim after Close: %v", err)
	}
	if _, err := s.CreateCoupon(t.Context(), "late", 1); !errors.Is(err, ErrUnavailable) {
		t.Errorf("a creation after Close: %v", err)
	}
	if _, _, err := s.Coupon(t.Context(), "c"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("a read after Close: %v", err)
	}
	if err := s.Ready(t.Context()); err == nil {
		t.Error("ready after Close")
	}
	store.Close()
}
