package pgstore

import (
	"context"
	"errors"
	"io/fs"
	"strconv"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// serviceRole is what every connection works as, whoever logged in: it may call the
// functions and nothing else (db/migrations).
const serviceRole = "coupon_service"

// How ClaimTimeout (T) is divided. A claim may queue for half of it (lanes.go), so that
// at least T/2 is left for its two calls, and T/4 for each:
//
//	0.15 T  lock_timeout: longer than it takes the crowds of several instances to
//	        have their turns at a hot coupon (some 50 ms each), short enough that a
//	        coupon locked by somebody's open transaction holds up its lane for 0.3 T
//	        only: the crowd, then that coupon alone.
//	0.20 T  statement_timeout: a crowd may meet several such locks, one by one.
//	0.25 T  or more: the first call is given up by us, for a server or a network that
//	        is silent. The server's own time-outs come before that, because their
//	        answer says surely that nothing happened, and keeps the connection.
func lockTimeout(claim time.Duration) time.Duration      { return 3 * claim / 20 }
func statementTimeout(claim time.Duration) time.Duration { return claim / 5 }

// slowAfter is when a claim is slow: 0.1 T, so 500 ms. A full queue at 30,000 claims a
// second is served in 140 ms, so that is no crowd; and it is below lock_timeout, so that
// a claim which got a lock that somebody held is told of as well.
func slowAfter(claim time.Duration) time.Duration { return claim / 10 }

// firstTry bounds the first of two calls: half of the time that ctx leaves.
func firstTry(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, time.Until(deadline)/2)
}

// parse turns cfg into the configuration of a pool whose connections all work as
// coupon_service, under the server's own time-outs, and are never cancelled.
//
// Statements are prepared once a connection (pgx's default), which behind a pooler
// of transactions wants its max_prepared_statements; default_query_exec_mode in the
// connection string changes it.
func parse(cfg Config, m *metrics, peer *peer) (*pgxpool.Config, error) {
	pool, err := pgxpool.ParseConfig(cfg.URL)
	if err != nil {
		return nil, explainParseError(err)
	}

	conn := pool.ConnConfig
	params := conn.RuntimeParams
	params["role"] = serviceRole
	// Our calls are schema-qualified; whatever else a session might look up by name
	// is PostgreSQL's own, never a temporary object.
	params["search_path"] = "pg_catalog, pg_temp"
	params["lock_timeout"] = milliseconds(lockTimeout(cfg.ClaimTimeout))
	params["statement_timeout"] = milliseconds(statementTimeout(cfg.ClaimTimeout))
	// We never begin a transaction; should one ever stand open, it must not keep a
	// coupon locked.
	params["idle_in_transaction_session_timeout"] = milliseconds(cfg.ClaimTimeout)
	if params["application_name"] == "" {
		params["application_name"] = "coupond"
	}

	// For each of the hosts: a dead one must not keep us from the next, and a busy one
	// needs its time for TLS and the password. It may be longer than ClaimTimeout:
	// making a connection goes on when the caller who wanted it has given up, and the
	// next caller has it.
	connectTimeout := max(2*time.Second, 2*cfg.ClaimTimeout/5)
	if conn.ConnectTimeout <= 0 || conn.ConnectTimeout > connectTimeout {
		conn.ConnectTimeout = connectTimeout
	}
	conn.OnPgError = keepConnection

	pool.BeforeConnect = func(_ context.Context, cfg *pgx.ConnConfig) error {
		proxied := peer.isProxy()
		if proxied {
			behindProxy(cfg.RuntimeParams)
		}
		newWire(cfg, m, proxied)
		return nil
	}
	// Those that were made before it was known are replaced.
	pool.PrepareConn = func(_ context.Context, conn *pgx.Conn) (bool, error) {
		return wireOf(conn).proxied == peer.isProxy(), nil
	}
	// A connection that was idle for more than a second is pinged before it carries a
	// call (pgxpool's default), which keeps claims off connections that died
	// meanwhile; a silent server must not use up the claim's time by that.
	if pool.PingTimeout <= 0 {
		pool.PingTimeout = cfg.ClaimTimeout / 5
	}
	if pool.MaxConnLifetimeJitter <= 0 {
		pool.MaxConnLifetimeJitter = pool.MaxConnLifetime / 4 // not all of them at once
	}
	return pool, nil
}

// behindProxy changes the parameters of a session to those of a session of a proxy. A
// statement_timeout there comes in the middle of what the shard does, and PL/Proxy passes it
// on as a cancel request. From a shard that is silent nobody takes that, and the session
// hangs. One that waits for its synchronous standby gives up the waiting, and then tells
// everybody of a claim that no standby has. So the shard's own time-outs end what takes too
// long, or we do, by closing the connection, and the proxy looks now and then whether
// anybody is still there.
func behindProxy(params map[string]string) {
	params["statement_timeout"] = "0"
	params["client_connection_check_interval"] = "1000"
}

// questions turns the configuration of the pool into that of the connections on which the
// shards are asked. Whoever asks has bounds of his own: one reads the map, mostSilent
// questions and an inquiry for each shard may be under way, and there are fewer shards than
// what is set here.
func questions(pool *pgxpool.Config) *pgxpool.Config {
	pool = pool.Copy()
	pool.MaxConns, pool.MinConns, pool.MinIdleConns = 1<<17, 0, 0
	return pool
}

// keepConnection tells pgx whether a connection is of use after an error. It is
// not when the server ends it, nor when the server is read-only: then it is a
// standby by now, and the next connection may find the new primary
// (target_session_attrs).
func keepConnection(_ *pgconn.PgConn, err *pgconn.PgError) bool {
	switch err.SeverityUnlocalized {
	case "FATAL", "PANIC":
		return false
	}
	return err.Code != pgerrcode.ReadOnlySQLTransaction
}

// explainParseError says what can be said about a connection string that does not
// parse without quoting any of it: the driver masks passwords as well as it can,
// but what is a password in a broken string nobody can know.
func explainParseError(err error) error {
	const advice = "; wanted is postgres://user:password@host:5432/database?sslmode=… or keyword=value pairs" +
		" (it is not shown here because it may hold a password)"
	if _, ok := errors.AsType[*fs.PathError](err); ok {
		return errors.New("the connection string names a file that cannot be read (a certificate, a key, a service file)" + advice)
	}
	if _, ok := errors.AsType[*strconv.NumError](err); ok {
		return errors.New("the connection string has something else where a number belongs (a port, a time-out, a size)" + advice)
	}
	return errors.New("the connection string is malformed, or has a value that is not allowed" + advice)
}

func milliseconds(d time.Duration) string {
	return strconv.FormatInt(d.Milliseconds(), 10)
}
