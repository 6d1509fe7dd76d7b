package pgstore

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// testConfig returns a Config for the database at url.
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

func TestOpen_namesEveryInvalidField(t *testing.T) {
	_, err := Open(Config{ClaimTimeout: -time.Second})
	if err == nil {
		t.Fatal("Open returned no error")
	}
	for _, field := range []string{"URL", "MaxConns", "ClaimConcurrency", "ClaimQueue", "ClaimTimeout"} {
		if !strings.Contains(err.Error(), field) {
			t.Errorf("%q does not name %s", err, field)
		}
	}
}

func TestParsePoolConfig(t *testing.T) {
	cfg := testConfig("postgres://u@localhost/db?lock_timeout=1&statement_timeout=1&role=postgres&search_path=public" +
		"&client_encoding=LATIN1&client_min_messages=error&default_transaction_isolation=serializable&default_transaction_read_only=on")
	pool, err := parsePoolConfig(cfg, newMetrics(), func() {})
	if err != nil {
		t.Fatal(err)
	}
	for param, want := range map[string]string{
		"role":                                "coupon_service",
		"search_path":                         "pg_catalog, pg_temp",
		"lock_timeout":                        "500",
		"statement_timeout":                   "1000",
		"idle_in_transaction_session_timeout": "5000",
		"client_encoding":                     "UTF8",
		"client_min_messages":                 "warning",
		"default_transaction_isolation":       "read committed",
		"default_transaction_read_only":       "off",
		"application_name":                    "coupond",
	} {
		if got := pool.ConnConfig.RuntimeParams[param]; got != want {
			t.Errorf("%s is %q, want %q", param, got, want)
		}
	}
	// ConnectProblem names them.
	for param := range pool.ConnConfig.RuntimeParams {
		if param != "application_name" && param != "client_encoding" && !slices.Contains(sessionParams, param) {
			t.Errorf("sessionParams lacks %s", param)
		}
	}
	if pool.ConnConfig.ConnectTimeout != 2*time.Second {
		t.Errorf("ConnectTimeout is %v, want 2s", pool.ConnConfig.ConnectTimeout)
	}

	cfg = testConfig("postgres://u@localhost/db?application_name=mine&connect_timeout=1")
	cfg.ClaimTimeout = time.Minute
	if pool, err = parsePoolConfig(cfg, newMetrics(), func() {}); err != nil {
		t.Fatal(err)
	}
	if got := pool.ConnConfig.RuntimeParams["application_name"]; got != "mine" {
		t.Errorf("application_name is %q", got)
	}
	if pool.ConnConfig.ConnectTimeout != time.Second {
		t.Errorf("ConnectTimeout is %v, want 1s as in the connection string", pool.ConnConfig.ConnectTimeout)
	}
}

// The server's time-outs end before ours, and ours leave time for a retry.
func TestTimeouts_order(t *testing.T) {
	for _, claim := range []time.Duration{minClaimTimeout, time.Second, 5 * time.Second, time.Minute} {
		shared, lock, statement := sharedLockTimeout(claim), lockTimeout(claim), statementTimeout(claim)
		if shared < time.Millisecond || shared >= lock || lock >= statement || statement >= claim/4 {
			t.Errorf("ClaimTimeout %v: lock_timeout %v and %v, statement_timeout %v", claim, shared, lock, statement)
		}
	}
}
