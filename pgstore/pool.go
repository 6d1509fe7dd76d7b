package pgstore

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// serviceRole is the role of every session, whatever the login. It may execute the functions and
// nothing else (db/migrations).
const serviceRole = "coupon_service"

// How ClaimTimeout (T) is divided. A claim may be queued for T/2 (batcher.go), so its two attempts
// have at least T/2 left, T/4 each:
//
//	0.10 T  lock_timeout of shared calls: longer than the batches of other instances hold a coupon;
//	        if it ends, the locked coupons are sent alone (ADR 0019).
//	0.15 T  lock_timeout of solo calls and creations.
//	0.20 T  statement_timeout: a batch may wait for several locks, one after the other.
//	0.25 T  or more: we give up the first attempt, if the server or the network does not answer. The
//	        server's own time-outs end before that, because their errors prove that nothing was
//	        committed, and because they keep the connection.
func sharedLockTimeout(claim time.Duration) time.Duration { return claim / 10 }
func lockTimeout(claim time.Duration) time.Duration       { return 3 * claim / 20 }
func statementTimeout(claim time.Duration) time.Duration  { return claim / 5 }

// slowAfter returns the time after which a claim counts as slow: 0.1 T. A full queue takes less
// when PostgreSQL is healthy. It is less than lock_timeout of a solo call, so that a claim that
// waited for a foreign lock and got it counts as slow as well.
func slowAfter(claim time.Duration) time.Duration { return claim / 10 }

// firstAttempt bounds the first of two attempts: half of the time that is left until ctx ends.
func firstAttempt(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, time.Until(deadline)/2)
}

// parsePoolConfig returns the configuration of the pool. Its sessions have the role coupon_service
// and the server-side time-outs, and never send a cancel request. onProxy is called for each
// session that turns out to be on a proxy.
//
// Statements are prepared once per connection (pgx's default). A transaction pooler must support
// that (max_prepared_statements), or the connection string must set default_query_exec_mode.
func parsePoolConfig(cfg Config, m *metrics, onProxy func()) (*pgxpool.Config, error) {
	pool, err := ParseURL(cfg.URL)
	if err != nil {
		return nil, fmt.Errorf("connection string: %w", err)
	}

	conn := pool.ConnConfig
	params := conn.RuntimeParams
	params["role"] = serviceRole
	// What follows is safe whatever the database, the login or the connection string sets. What a
	// pooler drops is found by Ready (session_problem).
	params["client_encoding"] = "UTF8"
	params["client_min_messages"] = "warning" // serverConn.notice needs warnings
	params["default_transaction_isolation"] = "read committed"
	params["default_transaction_read_only"] = "off"
	// Our calls are schema-qualified. All other names must resolve to PostgreSQL's own objects,
	// never to temporary ones.
	params["search_path"] = "pg_catalog, pg_temp"
	params["lock_timeout"] = milliseconds(sharedLockTimeout(cfg.ClaimTimeout))
	params["statement_timeout"] = milliseconds(statementTimeout(cfg.ClaimTimeout))
	// We never start an explicit transaction. If one is open by mistake, it must not keep a coupon
	// locked.
	params["idle_in_transaction_session_timeout"] = milliseconds(cfg.ClaimTimeout)
	if params["application_name"] == "" {
		params["application_name"] = "coupond"
	}

	// The bound is per host: a dead host must not delay the next one, and a busy one needs time for
	// TLS and authentication. It may exceed ClaimTimeout: the pool completes the connection after
	// its caller has given up, and gives it to the next caller.
	connectTimeout := max(2*time.Second, 2*cfg.ClaimTimeout/5)
	if conn.ConnectTimeout <= 0 || conn.ConnectTimeout > connectTimeout {
		conn.ConnectTimeout = connectTimeout
	}
	conn.OnPgError = keepConnection
	pool.BeforeConnect = func(_ context.Context, cfg *pgx.ConnConfig) error {
		instrument(cfg, m)
		return nil
	}
	// A session that was started before our functions were installed asks again.
	pool.PrepareConn = func(ctx context.Context, conn *pgx.Conn) (bool, error) {
		sc := serverConnOf(conn)
		if sc.kind == kindUnknown {
			if err := sc.prepare(ctx, conn.PgConn()); err != nil {
				return false, err
			}
		}
		if sc.kind == kindProxy {
			onProxy()
		}
		return true, nil
	}
	// pgxpool pings a connection that was idle for more than a second before it is used. That keeps
	// claims off broken connections; the bound keeps a silent server from using up the claim's
	// time.
	if pool.PingTimeout <= 0 {
		pool.PingTimeout = cfg.ClaimTimeout / 5
	}
	if pool.MaxConnLifetimeJitter <= 0 {
		pool.MaxConnLifetimeJitter = pool.MaxConnLifetime / 4 // so that they do not all end at once
	}
	return pool, nil
}

// keepConnection tells pgx whether a connection can be used after an error. It cannot if the server
// ended the session, nor if the server is read-only: then it is a standby by now, and the next
// connection may find the new primary (target_session_attrs).
func keepConnection(_ *pgconn.PgConn, err *pgconn.PgError) bool {
	switch err.SeverityUnlocalized {
	case "FATAL", "PANIC":
		return false
	}
	return err.Code != pgerrcode.ReadOnlySQLTransaction
}

func milliseconds(d time.Duration) string {
	return strconv.FormatInt(d.Milliseconds(), 10)
}
