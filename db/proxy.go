package db

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"

	"github.com/jackc/pgx/v5"
)

//go:embed proxy/*.sql
var proxyFiles embed.FS

// Errors of Apply for the database of a proxy, and of ApplyProxy for a database with coupons.
var (
	ErrNotAProxy = errors.New("the database has coupons of its own")
	ErrIsAProxy  = errors.New("the database is a proxy")
)

// refuseProxy returns an error if the database is a proxy, on which tables would not be used.
func refuseProxy(ctx context.Context, conn *pgx.Conn) error {
	var isProxy bool
	err := conn.QueryRow(ctx, `
		select exists (
		  select
		  from pg_catalog.pg_proc as p
		  join pg_catalog.pg_language as l
		    on l.oid = p.prolang
		  where p.oid = pg_catalog.to_regprocedure('public.claim_coupons(text[], text)')
		    and l.lanname = 'plproxy'
		)`).Scan(&isProxy)
	if err != nil {
		return fmt.Errorf("read the database's functions: %w", err)
	}
	if isProxy {
		return fmt.Errorf("%w; update it with coupond migrate --proxy", ErrIsAProxy)
	}
	return nil
}

// ApplyProxy makes conn's database a proxy, or brings one up to date: it installs PL/Proxy
// functions with the same signatures, which call the shard that owns the coupon. A proxy stores no
// coupons. The operator defines the shards with the foreign server "coupons" (deploy/shards).
// Applying it again changes nothing.
//
// The login must be a superuser, because PL/Proxy is not a trusted language. If the database has
// coupons, ApplyProxy returns ErrNotAProxy.
func ApplyProxy(ctx context.Context, conn *pgx.Conn) error {
	return applyProxyFiles(ctx, conn, proxyFiles)
}

func applyProxyFiles(ctx context.Context, conn *pgx.Conn, files fs.FS) error {
	if err := checkServer(ctx, conn); err != nil {
		return err
	}
	unlock, err := lock(ctx, conn)
	if err != nil {
		return err
	}
	defer unlock()

	var hasCoupons, installed bool
	var version int32
	err = conn.QueryRow(ctx, `
		select
		  pg_catalog.to_regclass('public.coupons') is not null,
		  pg_catalog.to_regprocedure('public.coupon_schema_version()') is not null`).Scan(&hasCoupons, &installed)
	if err == nil && installed && !hasCoupons {
		err = conn.QueryRow(ctx, "select public.coupon_schema_version()").Scan(&version)
	}
	if err != nil {
		return fmt.Errorf("read the database's tables and schema version: %w", err)
	}
	if hasCoupons {
		return fmt.Errorf("%w: a proxy stores none; use an empty database", ErrNotAProxy)
	}
	if err := refuseNewer(version, Version()); err != nil {
		return err
	}
	return install(ctx, conn, files, "proxy", map[string]any{"version": Version()})
}
