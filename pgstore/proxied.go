package pgstore

import (
	"context"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
)

// proxiedSQL: are our functions those of a proxy (db/proxy)? No row while there are none.
const proxiedSQL = `
	select l.lanname = 'plproxy'
	from pg_catalog.pg_proc as p
	join pg_catalog.pg_language as l
		on l.oid = p.prolang
	where p.oid = pg_catalog.to_regprocedure('public.claim_coupons(text[], text)')`

// peer is whom the store speaks to, once that has mattered.
type peer struct{ known atomic.Pointer[bool] }

// proxied tells whether the server hands our calls on to shards, whose commits its
// errors say nothing of. It is asked when a call has failed in a way that would prove
// something, and once: a database does not turn into a proxy, nor back. Who cannot be
// asked may be one.
func (s *Store) proxied(ctx context.Context) bool {
	if known := s.peer.known.Load(); known != nil {
		return *known
	}
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return true
	}
	defer conn.Release()
	var is bool
	if err := conn.QueryRow(ctx, proxiedSQL, pgx.QueryExecModeExec).Scan(&is); err != nil {
		return true
	}
	s.peer.known.Store(&is)
	return is
}
