package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"scalable-coupon-system/db"
)

type migrateCommand struct {
	Database databaseSettings `embed:""`
	Proxy    bool             `help:"Install the PL/Proxy functions of a proxy instead of the schema."`
}

// Help returns the details of the command's help.
func (*migrateCommand) Help() string {
	return `Migrate the schema coupond in the database of DATABASE_URL to the version of this binary, and install its functions. A second run changes nothing. Several migrations may run at the same time, and the service may run meanwhile. If a statement does not get a lock within half a second, migrate prints which session holds it, lets the service's calls pass, and tries again.

The login must be a superuser, or own the database and be a member of the role coupon_service, which an administrator creates once (deploy/roles.sql). All objects belong to the owner of the schema coupond; the login of a later migration must be allowed to act as that role.

With --proxy, DATABASE_URL names an empty database that becomes a proxy in front of several servers (see deploy/shards). The login must be a superuser.`
}

// Run migrates the database, or makes it a proxy.
func (m *migrateCommand) Run(ctx context.Context, std streams) error {
	surviveBrokenPipes()
	return migrate(ctx, m.Database.connString, m.Database.address(), m.Proxy, std.stdout, std.stderr)
}

// migrate installs the schema, or the functions of a proxy, in the database of connString. It
// writes the result to stdout, and what it waits for or repairs to stderr. address names the
// database in messages.
func migrate(ctx context.Context, connString, address string, proxy bool, stdout, stderr io.Writer) (err error) {
	conn, err := connect(ctx, connString)
	if err != nil {
		return fmt.Errorf("cannot connect to %s: %w", address, err)
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()

	options := db.Options{Log: func(line string) {
		_, _ = fmt.Fprintf(stderr, "%s: %s\n", address, line) // the migration is useful even if nothing reads stderr
	}}
	if proxy {
		if err := db.ApplyProxy(ctx, conn, options); err != nil {
			return fmt.Errorf("cannot set up %s as a proxy: %w", address, err)
		}
		_, err = fmt.Fprintf(stdout, "%s: proxy of schema version %d; functions installed\n", address, db.Version())
		return err
	}
	result, err := db.Apply(ctx, conn, options)
	if err != nil {
		return fmt.Errorf("cannot migrate %s: %w", address, err)
	}
	version := fmt.Sprintf("%d already", result.To)
	if result.From != result.To {
		version = fmt.Sprintf("%d → %d", result.From, result.To)
	}
	_, err = fmt.Fprintf(stdout, "%s: schema version %s; functions installed\n", address, version)
	return err
}
