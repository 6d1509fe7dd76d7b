package pgstore

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// proxiedSQL: are our functions those of a proxy (db/proxy)? No row while there are none.
const proxiedSQL = `
	select l.lanname = 'plproxy'
	from pg_catalog.pg_proc as p
	join pg_catalog.pg_language as l
		on l.oid = p.prolang
	where p.oid = pg_catalog.to_regprocedure('public.claim_coupon(text, text)')`

// peer is whom the store speaks to, once that is known.
type peer struct{ known atomic.Pointer[bool] }

func (p *peer) isProxy() bool {
	known := p.known.Load()
	return known != nil && *known
}

// proxied tells whether the server hands our calls on to shards, whose commits its
// errors say nothing of. It is asked at the start and by each call, until that is answered
// once: a database does not turn into a proxy, nor back. Who cannot be asked may be one.
func (s *Store) proxied(ctx context.Context) bool {
	if known := s.peer.known.Load(); known != nil {
		return *known
	}
	is, err := s.askProxied(ctx, s.pool)
	return is || err != nil
}

// knowPeer sees that it is known whom the store speaks to, before anything is sent that
// commits. Where our functions are missing nothing can be.
func (s *Store) knowPeer(ctx context.Context) error {
	if s.peer.known.Load() != nil {
		return nil
	}
	_, err := s.askProxied(ctx, s.pool)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	return err
}

// askProxied asks the server, on a connection of the pool, and remembers the answer.
func (s *Store) askProxied(ctx context.Context, pool *pgxpool.Pool) (is bool, err error) {
	if err := pool.QueryRow(ctx, proxiedSQL, pgx.QueryExecModeExec).Scan(&is); err != nil {
		return false, err
	}
	s.peer.known.Store(&is)
	return is, nil
}
