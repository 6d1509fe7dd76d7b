package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/alecthomas/kong"
	"github.com/rs/zerolog"

	"scalable-coupon-system/internal/localpg"
)

// devDatabase is the name of the database in the private PostgreSQL.
const devDatabase = "coupond"

type devCommand struct {
	Dir     string          `default:".coupond" help:"Directory for the data of PostgreSQL."`
	Listen  listenSettings  `embed:"" set:"listen_addr=127.0.0.1:8080"`
	Service serviceSettings `embed:""`
}

// Help returns the details of the command's help.
func (*devCommand) Help() string {
	return `Start a private PostgreSQL from binaries on this machine (downloaded if there are none), migrate its database, serve coupons from it over HTTP, and print commands to try next.

The data stay in the directory of --dir for the next start. While dev runs, the script psql in that directory opens psql on the database. Ctrl-C shuts the service down as it does for serve, then stops PostgreSQL. DATABASE_URL and the variables of libpq (PG…) are not used.

dev listens on this machine only; LISTEN_ADDR=:8080 lets other machines in. In the console format (LOG_FORMAT=auto on a terminal), the log has only those requests that the service could not answer; LOG_LEVEL=debug logs all.`
}

// Run serves with a private PostgreSQL until ctx is done.
func (c *devCommand) Run(ctx context.Context, command *kong.Context, stdout io.Writer, stderr *output) (err error) {
	// From now on connections wait in the accept queue, and are answered when the service runs.
	s, err := newService(ctx, c.Listen.ListenAddr, &c.Service, stderr)
	if err != nil {
		return err
	}
	defer func() { _ = s.listener.Close() }() // after an error; otherwise the service has closed it
	if c.Service.LogFormat == "console" && c.Service.LogLevel == "info" {
		s.requestsLog = s.log.Level(zerolog.WarnLevel)
	}

	server, err := localpg.Start(ctx, localpg.Options{
		Dir: c.Dir,
		Log: stderr,
		// For psql: select claim_coupon('ada', 'night owl').
		Settings: map[string]string{"search_path": "coupond, public"},
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	// If PostgreSQL ends, so does dev: nothing restarts a private PostgreSQL.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		<-server.Done()
		cancel(errors.New("the private PostgreSQL has ended"))
	}()
	if err := createDatabase(ctx, server); err != nil {
		return err
	}
	s.database = devURL(server, devDatabase)
	if err := migrate(ctx, s.database, devDatabase, false, stderr, stderr); err != nil {
		return err
	}
	psql := filepath.Join(server.Dir(), "psql")
	if err := writePsql(psql, server); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(psql)) }()

	steps := newOutput(stdout) // the service is useful even if nothing reads stdout
	defer steps.close()
	s.ready = func() { _, _ = io.WriteString(steps, firstSteps(s.listener.Addr(), c.Dir, shellQuote(psql))) }
	s.logStart(fmt.Sprintf("127.0.0.1:%d", server.Port()), command)
	return s.run(ctx)
}

// devURL returns the connection string of a database. Its clients give the password to no other
// server: when this one has ended, another user may listen on the port and ask for the password in
// clear or as MD5.
func devURL(server *localpg.Server, database string) string {
	return server.URL(database) + "&require_auth=scram-sha-256"
}

// createDatabase creates the database on server, unless it exists.
func createDatabase(ctx context.Context, server *localpg.Server) (err error) {
	conn, err := connect(ctx, devURL(server, "postgres"))
	if err != nil {
		return fmt.Errorf("cannot connect to the private PostgreSQL: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()

	var exists bool
	err = conn.QueryRow(ctx, "select exists (select from pg_catalog.pg_database where datname = $1)", devDatabase).Scan(&exists)
	if err != nil || exists {
		return err
	}
	_, err = conn.Exec(ctx, "create database "+devDatabase+" encoding 'UTF8' template template0")
	return err
}

// firstSteps returns the commands that a user may want to try first. Their coupon is not the
// README's, so that both can be tried.
func firstSteps(address net.Addr, dir, psql string) string {
	host := address.String()
	if tcp, ok := address.(*net.TCPAddr); ok && (tcp.IP.IsUnspecified() || tcp.IP.IsLoopback()) {
		host = fmt.Sprint("localhost:", tcp.Port)
	}
	return fmt.Sprintf(`
coupond serves http://%[1]s; its data are in %[2]s. Ctrl-C stops it.

Create a coupon, claim it, read it:

  curl -si %[1]s/api/coupons -H 'Content-Type: application/json' -d '{"name": "night owl", "amount": 2}'
  curl -sw '%%{http_code}\n' %[1]s/api/coupons/claim -H 'Content-Type: application/json' -d '{"user_id": "ada", "coupon_name": "night owl"}'
  curl -s %[1]s/api/coupons/night%%20owl

The same in psql:

  %[3]s
  select claim_coupon('ada', 'night owl');
  select coupon_name, claim_number, user_id from claims;

`, host, dir, psql)
}

// writePsql writes a script to path that opens psql on the database and passes its arguments on to
// psql. It prefers the psql of the server's own version, and ignores the variables of libpq in the
// user's environment: PGHOSTADDR, for example, would make psql connect to another server.
func writePsql(path string, server *localpg.Server) error {
	script := fmt.Sprintf(`#!/bin/sh
# Opens psql on the database of a running coupond dev, which wrote this file and removes it when it ends.
for variable in $(env | sed -n 's/^\(PG[A-Za-z0-9_]*\)=.*/\1/p'); do
  unset "$variable"
done
PATH=%s:$PATH
exec %s "$@"
`, shellQuote(server.BinDir()), server.Psql(devDatabase))
	_ = os.Remove(path) // an old file may have another mode, or be a link
	return os.WriteFile(path, []byte(script), 0o700)
}

func shellQuote(s string) string {
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
