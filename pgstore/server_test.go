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
	"scalable-coupon-system/internal/wait"
)

// startServer starts a server for one test, for what must not be done to a shared one. It ends with
// the test.
func startServer(t testing.TB) *pgtest.Server {
	t.Helper()
	return pgtest.StartServer(t, map[string]string{"fsync": "off", "wal_level": "logical", "max_connections": "500"})
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

// A cluster that was never migrated does not have the role.
func TestReady_missingRole(t *testing.T) {
	t.Parallel()
	url := startServer(t).Empty(t).URL
	s := newTestStoreAt(t, url, connect(t, url))
	wantReady(t, s.Store, "coupon_service", "coupond migrate")
	s.wantClaim(t, "u", "c", ErrUnavailable)
	if _, err := db.Apply(t.Context(), s.owner, db.Options{}); err != nil {
		t.Fatal(err)
	}
	wantReady(t, s.Store)
}

// Encrypted connections are closed as promptly as others, and without a cancel request.
func TestServerConn_closesInsteadOfCancellingWithTLS(t *testing.T) {
	t.Parallel()
	url := startServer(t).New(t).URL
	owner := connect(t, url)
	encrypt(t, owner)
	s := newTestStoreAt(t, url, owner, func(cfg *Config) {
		cfg.URL = withParam(cfg.URL, "sslmode", "require")
		cfg.ClaimTimeout = time.Minute
	})
	wantReady(t, s.Store)
	var encrypted bool
	if err := owner.QueryRow(t.Context(),
		`select bool_and(ssl) from pg_stat_ssl join pg_stat_activity using (pid) where application_name = 'coupond'`,
	).Scan(&encrypted); err != nil || !encrypted {
		t.Fatalf("sessions are encrypted: %v, error %v", encrypted, err)
	}
	s.abandonLockedClaim(t)
}

// encrypt gives a server a certificate and enables TLS.
func encrypt(t *testing.T, owner *pgx.Conn) {
	t.Helper()
	// Not Ed25519: SCRAM channel binding needs a hash of the certificate and has none for Ed25519.
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

	// The server writes the files itself, so that it can read them whatever user it runs as.
	for name, block := range map[string]pem.Block{
		"server.crt": {Type: "CERTIFICATE", Bytes: certificate},
		"server.key": {Type: "PRIVATE KEY", Bytes: key},
	} {
		lines := `select unnest(string_to_array('` + string(pem.EncodeToMemory(&block)) + `', E'\n'))`
		execSQL(t, owner, `copy (`+lines+`) to program 'umask 077; cat > `+name+`'`)
	}
	for _, sql := range []string{`alter system set ssl = on`, `select pg_reload_conf()`} {
		execSQL(t, owner, sql)
	}
	wait.For(t, "the server to offer TLS", func() bool {
		conn, err := pgx.Connect(t.Context(), withParam(owner.Config().ConnString(), "sslmode", "require"))
		if err != nil {
			return false
		}
		return conn.Close(t.Context()) == nil
	})
}

// A claim that waits for a synchronous standby does not return claimed unless the standby confirms
// it, however the wait ends.
func TestClaim_synchronousStandby(t *testing.T) {
	t.Parallel()
	shortTimeout := func(cfg *Config) { cfg.ClaimTimeout = 4 * time.Second }
	s := newServerStore(t, shortTimeout)
	s.create(t, "c", 100)
	s.wantClaim(t, "before", "c", Claimed)

	s.loseStandby(t)
	// A rejection writes nothing and does not wait.
	s.wantClaim(t, "before", "c", AlreadyClaimed)

	// These would end the wait early, or hide the warning. They hold for sessions that start later.
	s.set(t, "synchronous_commit", "off")
	s.set(t, "client_min_messages", "error")
	for _, test := range []struct{ user, end string }{
		{"cancelled", cancelWaiting},
		{"terminated", `select pg_terminate_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'`},
	} {
		// A new store for each: once the server is suspect, a store sends no claim.
		store := openStore(t, s.proxy.URL(s.url), shortTimeout)
		answered := make(chan struct{})
		var ended atomic.Bool
		go func() {
			defer close(answered)
			status, err := store.Claim(t.Context(), test.user, "c")
			if status != "" || !errors.Is(err, ErrOutcomeUnknown) {
				t.Errorf("%s: %q, %v; want ErrOutcomeUnknown", test.user, status, err)
			}
			if !ended.Load() {
				t.Errorf("%s: answered while the commit waited for the standby", test.user)
			}
		}()
		wait.For(t, "the claim to wait for the standby", func() bool { return s.sessionsWaiting(t) > 0 })
		ended.Store(true)
		s.exec(t, test.end)
		<-answered
		// The claim is committed on this server: that is why its outcome is unknown.
		if holders := s.holders(t, "c"); !slices.Contains(holders, test.user) {
			t.Errorf("%s: holders are %q, want them to include it", test.user, holders)
		}
		store.Close() // its probe would wait for the standby as well
		wait.For(t, "all sessions, the probe's included, to end their wait", func() bool {
			s.exec(t, cancelWaiting)
			return s.sessionsWaiting(t) == 0
		})
	}

	// We give up the wait. The claim continues to wait, without a cancel request, and is committed
	// when the standby answers (here: when none is required any more).
	start := time.Now()
	s.wantClaim(t, "given up", "c", ErrOutcomeUnknown)
	if took := time.Since(start); took > s.timeout+time.Second {
		t.Errorf("given up after %v, want at most %v", took, s.timeout+time.Second)
	}
	if holders := s.holders(t, "c"); slices.Contains(holders, "given up") {
		t.Errorf("a claim that waits for the standby is visible: %q", holders)
	}
	s.wantNoCancelRequest(t)
	s.setStandbyName(t, "")
	wait.For(t, "the claim to be committed", func() bool { return slices.Contains(s.holders(t, "c"), "given up") })
	wait.For(t, "Ready", func() bool { return isReady(t, s.Store) })
	s.wantClaim(t, "after", "c", Claimed)
}

// The server crashes during a sale and is started again: all outcomes are true, and the sale
// continues without a restart of the store.
func TestStore_serverCrashes(t *testing.T) {
	t.Parallel()
	server := startServer(t)
	url := server.New(t).URL
	s := newTestStoreAt(t, url, connect(t, url), func(cfg *Config) { cfg.ClaimTimeout = 4 * time.Second })
	s.create(t, "c", 1_000_000)

	var answers recorder
	stop := concurrently(t, 8, func(client, n int) {
		user := fmt.Sprint(client, "/", n)
		status, err := s.Claim(t.Context(), user, "c")
		record(&answers, user, status, err)
		if err != nil {
			time.Sleep(10 * time.Millisecond)
		}
	})
	claimed := func() int { return answers.count(string(Claimed)) }
	for range 2 {
		before := claimed()
		wait.For(t, "claims before the crash", func() bool { return claimed() > before+100 })
		refusedBefore := answers.count(refused)
		if err := server.Kill(); err != nil {
			t.Fatal(err)
		}
		wait.For(t, "claims that are refused", func() bool { return answers.count(refused) > refusedBefore })
		wantReady(t, s.Store, "does not answer")
		if err := server.Start(); err != nil {
			t.Fatal(err)
		}
	}
	before := claimed()
	wait.For(t, "claims after the restart", func() bool { return claimed() > before+100 })
	wantReady(t, s.Store)
	stop()
	s.owner = connect(t, url)
	answers.wantTrue(t, s.holders(t, "c"), 1_000_000)
}

func TestClose_leaksNothing(t *testing.T) {
	database := pgtest.New(t)
	owner := database.Connect(t)
	before := goleak.IgnoreCurrent()

	cfg := testConfig(database.URL)
	cfg.ClaimTimeout = longTimeout
	store, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s := &testStore{Store: store, url: database.URL, owner: owner}
	s.create(t, "c", 1000)
	unlock := s.lock(t, "c")
	wantReady(t, store)
	var callers sync.WaitGroup
	for i := range 5 {
		callers.Go(func() {
			s.wantClaim(t, fmt.Sprint(i), "c", Claimed)
		})
	}
	if _, _, err := s.Coupon(t.Context(), "c"); err != nil {
		t.Error(err)
	}
	wait.For(t, "a call in flight and four queued claims", func() bool {
		return s.serverOf("c").batcher.load() == load{pending: 4, shared: 1}
	})
	time.AfterFunc(100*time.Millisecond, unlock)
	store.Close()
	callers.Wait()

	wait.For(t, "the sessions to end", func() bool { return s.sessions(t) == 0 })
	goleak.VerifyNone(t, before)

	// Calls after Close are refused, and a second Close has no effect.
	s.wantClaim(t, "late", "c", ErrUnavailable)
	s.wantCreate(t, "late", 1, ErrUnavailable)
	s.wantReadError(t, "c", ErrUnavailable)
	if isReady(t, store) {
		t.Error("ready after Close")
	}
	store.Close()
}
