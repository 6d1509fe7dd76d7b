package pgstore

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// isProxySQL returns whether our functions are those of a proxy (db/proxy), and no row if they are
// not installed.
const isProxySQL = `
select l.lanname = 'plproxy'
from pg_catalog.pg_proc as p
join pg_catalog.pg_language as l
  on l.oid = p.prolang
where p.oid = pg_catalog.to_regprocedure('coupond.claim_coupon(text, text)')`

// serverKind is whether the server is a proxy, as soon as that is known. It never changes: a
// database does not become a proxy, nor the reverse.
type serverKind struct{ proxy atomic.Pointer[bool] }

// isProxy reports whether the server is known to be a proxy.
func (k *serverKind) isProxy() bool {
	proxy := k.proxy.Load()
	return proxy != nil && *proxy
}

// mayBeProxy reports whether the server is a proxy. The errors of a proxy say nothing about the
// commits of its shards. If the server cannot be asked, mayBeProxy returns true. Without our
// functions it is not a proxy.
func (s *Store) mayBeProxy(ctx context.Context) bool {
	if proxy := s.kind.proxy.Load(); proxy != nil {
		return *proxy
	}
	isProxy, err := s.detectProxy(ctx, s.pool)
	return isProxy || err != nil && !errors.Is(err, pgx.ErrNoRows)
}

// ensureKindKnown finds out whether the server is a proxy, before a writing call is sent. It
// returns nil if our functions are not installed, because then no call can commit anything.
func (s *Store) ensureKindKnown(ctx context.Context) error {
	if s.kind.proxy.Load() != nil {
		return nil
	}
	_, err := s.detectProxy(ctx, s.pool)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	return err
}

// detectProxy asks the server, on a connection of the pool, and stores the answer.
func (s *Store) detectProxy(ctx context.Context, pool *pgxpool.Pool) (isProxy bool, err error) {
	if err := pool.QueryRow(ctx, isProxySQL, pgx.QueryExecModeExec).Scan(&isProxy); err != nil {
		return false, err
	}
	s.kind.proxy.Store(&isProxy)
	return isProxy, nil
}
