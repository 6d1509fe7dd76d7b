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

// What Apply and ApplyProxy refuse: each other's databases.
var (
	ErrNotAProxy = errors.New("the database has coupons of its own")
	ErrIsAProxy  = errors.New("the database is a proxy")
)

// refuseProxy keeps tables off a proxy, whose functions would never use them.
func refuseProxy(ctx context.Context, conn *pgx.Conn) error {
	var is bool
	err := conn.QueryRow(ctx, `
		select exists (
		  select
		  from pg_catalog.pg_proc as p
		  join pg_catalog.pg_language as l
		    on l.oid = p.prolang
		  where p.oid = pg_catalog.to_regprocedure('public.claim_coupons(text[], text)')
		    and l.lanname = 'plproxy'
		)`).Scan(&is)
	if err != nil {
		return fmt.Errorf("look at the database: %w", err)
	}
	if is {
		return fmt.Errorf("%w: its functions are brought up to date by coupond migrate --proxy", ErrIsAProxy)
	}
	return nil
}

// ApplyProxy makes a proxy of conn's database, or brings one up to date: it installs the functions with the signatures of
// ours that hand each call on to the shard which owns the coupon (PL/Proxy), and keeps nothing. Which shards there are is the
// operator's to say, by the foreign server "coupons" (deploy/shards). Running it again changes nothing.
//
// The login must be a superuser, as PL/Proxy is no trusted language.
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

	var occupied, installed bool
	var version int32
	err = conn.QueryRow(ctx, `
		select
		  pg_catalog.to_regclass('public.coupons') is not null,
		  pg_catalog.to_regprocedure('public.coupon_schema_version()') is not null`).Scan(&occupied, &installed)
	if err == nil && installed && !occupied {
		err = conn.QueryRow(ctx, "select public.coupon_schema_version()").Scan(&version)
	}
	if err != nil {
		return fmt.Errorf("look at the database: %w", err)
	}
	if occupied {
		return fmt.Errorf("%w: a proxy keeps nothing; give it an empty database", ErrNotAProxy)
	}
	if err := refuseNewer(version, Version()); err != nil {
		return err
	}
	return install(ctx, conn, files, "proxy", map[string]any{"version": Version()})
}
