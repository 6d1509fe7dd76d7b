package db

import (
	"context"
	"embed"
	"fmt"
	"io/fs"

	"github.com/jackc/pgx/v5"
)

//go:embed proxy/*.sql
var proxyFiles embed.FS

// ApplyProxy makes conn's database a proxy, or brings one up to date: it installs PL/Proxy
// functions with the same signatures, which call the shard that owns the coupon. A proxy stores no
// coupons. The operator defines the shards with the foreign server "coupond" (deploy/shards).
// Applying it again changes nothing.
//
// The login must be a superuser, because PL/Proxy is not a trusted language. If the database has
// coupons, ApplyProxy returns ErrNotAProxy.
func ApplyProxy(ctx context.Context, conn *pgx.Conn, options Options) error {
	return applyProxyFiles(ctx, conn, proxyFiles, options)
}

func applyProxyFiles(ctx context.Context, conn *pgx.Conn, files fs.FS, options Options) error {
	i := newInstaller(conn, options)
	defer i.close(ctx)
	return explain(i.applyProxy(ctx, files))
}

func (i *installer) applyProxy(ctx context.Context, files fs.FS) error {
	code, err := loadFunctions(files, "proxy")
	if err != nil {
		return err
	}
	if err := i.begin(ctx, files, prepareData{Version: Version(), Program: "program", Proxy: true}); err != nil {
		return err
	}

	var installed bool
	var version int32
	err = i.conn.QueryRow(ctx, "select pg_catalog.to_regprocedure('coupond.coupon_schema_version()') is not null").Scan(&installed)
	if err == nil && installed {
		err = i.conn.QueryRow(ctx, "select coupond.coupon_schema_version()").Scan(&version)
	}
	if err != nil {
		return fmt.Errorf("read the version of the proxy's functions: %w", err)
	}
	if version > Version() {
		return fmt.Errorf("%w: the database has version %d, this program installs version %d; run the newer program's migrate --proxy",
			ErrSchemaIsNewer, version, Version())
	}
	return i.install(ctx, code, map[string]any{"version": Version()})
}
