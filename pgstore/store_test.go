package pgstore

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// testConfig is a Config for the database at url.
func testConfig(url string) Config {
	return Config{
		URL:              url,
		MaxConns:         8,
		ClaimConcurrency: 1,
		ClaimQueue:       100,
		ClaimTimeout:     5 * time.Second,
		SchemaVersion:    1,
	}
}

func TestOpenNamesAllThatMakesNoSense(t *testing.T) {
	_, err := Open(Config{ClaimTimeout: -time.Second})
	if err == nil {
		t.Fatal("opened")
	}
	for _, field := range []string{"URL", "MaxConns", "ClaimLanes", "ClaimQueue", "ClaimTimeout"} {
		if !strings.Contains(err.Error(), field) {
			t.Errorf("%s is not named in %q", field, err)
		}
	}
}

func TestOpenNeverShowsThePassword(t *testing.T) {
	const password = "s3cr3t"
	for _, url := range []string{
		"postgres://u:" + password + "@localhost:port/db",
		"postgres://u:" + password + "@localhost:99999/db",
		"postgres://u:" + password + "/x@localhost/db?sslmode=nonsense",
		"postgres://u:" + password + "%zz@localhost/db",
		"postgres://u:x/" + password + "@localhost/db?port=" + password,
		"postgres://u@[::1/" + password,
		"user=u password=" + password + " host",
		"user=u password='" + password + " host=localhost",
		"user=u passwort=" + password + " port=" + password,
		"host=localhost connect_timeout=" + password,
		"postgres://u:" + password + "@localhost/db?sslrootcert=/" + password + "&sslmode=verify-full",
		"postgres://u:" + password + "@localhost/db?sslmode=" + password,
		"postgres://u:" + password + "@localhost/db?pool_min_conns=" + password,
		password,
	} {
		s, err := Open(testConfig(url))
		if err == nil {
			s.Close()
			t.Errorf("%q was opened", url)
			continue
		}
		for e := err; e != nil; {
			if strings.Contains(e.Error(), password) {
				t.Errorf("%q: the error shows the password: %v", url, e)
			}
			unwrapper, ok := e.(interface{ Unwrap() error })
			if !ok {
				break
			}
			e = unwrapper.Unwrap()
		}
	}
}

func TestParse(t *testing.T) {
	cfg := testConfig("postgres://u@localhost/db?lock_timeout=1&statement_timeout=1&role=postgres&search_path=public")
	pool, err := parse(cfg, newMetrics(), new(peer))
	if err != nil {
		t.Fatal(err)
	}
	for param, want := range map[string]string{
		"role":                                "coupon_service",
		"search_path":                         "pg_catalog, pg_temp",
		"lock_timeout":                        "750",
		"statement_timeout":                   "1000",
		"idle_in_transaction_session_timeout": "5000",
		"application_name":                    "coupond",
	} {
		if got := pool.ConnConfig.RuntimeParams[param]; got != want {
			t.Errorf("%s is %q, want %q", param, got, want)
		}
	}
	if pool.ConnConfig.ConnectTimeout != 2*time.Second {
		t.Errorf("connecting may take %v", pool.ConnConfig.ConnectTimeout)
	}

	cfg = testConfig("postgres://u@localhost/db?application_name=mine&connect_timeout=1")
	cfg.ClaimTimeout = time.Minute
	if pool, err = parse(cfg, newMetrics(), new(peer)); err != nil {
		t.Fatal(err)
	}
	if got := pool.ConnConfig.RuntimeParams["application_name"]; got != "mine" {
		t.Errorf("application_name is %q", got)
	}
	if pool.ConnConfig.ConnectTimeout != time.Second {
		t.Errorf("connecting may take %v, though the connection string says 1 s", pool.ConnConfig.ConnectTimeout)
	}
}

// The server gives up before we do, and we leave time to ask again.
func TestTimeoutsFit(t *testing.T) {
	for _, claim := range []time.Duration{minClaimTimeout, time.Second, 5 * time.Second, time.Minute} {
		lock, statement := lockTimeout(claim), statementTimeout(claim)
		if lock < time.Millisecond || lock >= statement || statement >= claim/4 {
			t.Errorf("ClaimTimeout %v: lock_timeout %v, statement_timeout %v", claim, lock, statement)
		}
	}
}

// However much is asked of it, a session has one prepared statement for each of our
// calls, and no more.
func TestPreparedStatementsDoNotPileUp(t *testing.T) {
	t.Parallel()
	s := newStand(t, func(cfg *Config) { cfg.MaxConns = 1 })
	for i := range 50 {
		coupon := fmt.Sprint("c", i)
		if _, err := s.CreateCoupon(t.Context(), coupon, 1); err != nil {
			t.Fatal(err)
		}
		s.sendWithin(t, patience, crowd("a", coupon, "b", coupon))
		s.sendWithin(t, patience, crowd("a", coupon, "b", "unknown"))
		if _, _, err := s.Coupon(t.Context(), coupon); err != nil {
			t.Fatal(err)
		}
		wantReady(t, s.Store)
	}
	conn, err := s.pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	var statements int
	if err := conn.QueryRow(t.Context(), `select count(*) from pg_prepared_statements`).Scan(&statements); err != nil {
		t.Fatal(err)
	}
	if ours := 6 + 1; statements > ours { // and this one
		t.Errorf("the session has %d prepared statements, we have %d", statements, ours)
	}
	if made := s.pool.Stat().NewConnsCount(); made != 1 {
		t.Errorf("%d connections were made: this proves nothing", made)
	}
}
