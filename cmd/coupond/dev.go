package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"scalable-coupon-system/internal/localpg"
)

// devDatabase is the name of the database in the private PostgreSQL, and of its superuser.
const devDatabase = "coupond"

// devConfig is the configuration of `coupond dev`.
type devConfig struct {
	Listen  devListenConfig
	Service serviceConfig
	Log     logConfig
}

func newDevCommand(vars environment, stdout io.Writer, stderr *output) *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Serve with a private PostgreSQL; nothing to install",
		Long: `Start a private PostgreSQL from binaries on this machine (downloaded if there
are none), migrate its database, serve coupons from it over HTTP, and print
commands to try next.

The data stay in the directory of --dir for the next start. While dev runs, the
script psql in that directory opens psql on the database. Ctrl-C shuts the
service down as it does for serve, then stops PostgreSQL. DATABASE_URL and the
variables of libpq (PG…) are not used.

dev listens on this machine only; LISTEN_ADDR=:8080 lets other machines in.`,
		Args:        noArguments,
		Annotations: map[string]string{environmentNote: describe(&devConfig{})},
		RunE: func(cmd *cobra.Command, _ []string) error {
			return dev(cmd.Context(), vars, dir, stdout, stderr)
		},
	}
	cmd.Flags().StringVar(&dir, "dir", ".coupond", "directory for the data of PostgreSQL")
	return cmd
}

func dev(ctx context.Context, vars environment, dir string, stdout io.Writer, stderr *output) (err error) {
	surviveBrokenPipes()
	var config devConfig
	if err := load(vars, &config); err != nil {
		return err
	}
	log, err := newLogger(stderr, &config.Log)
	if err != nil {
		return err
	}

	lock, err := lockDev(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	listener, err := listenAt(ctx, config.Listen.Addr)
	if err != nil {
		return err
	}
	// From now on connections wait in the accept queue, and are answered when the service runs.
	defer func() { _ = listener.Close() }() // after an error; otherwise the service has closed it
	if err := writeDevNote(lock, listener.Addr()); err != nil {
		return err
	}

	server, err := localpg.Start(ctx, localpg.Options{
		Dir:  dir,
		User: devDatabase,
		Log:  stderr,
		// For psql: select claim_coupon('ada', 'early bird').
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
		select {
		case <-server.Done():
			cancel(errors.New("the private PostgreSQL has ended"))
		case <-ctx.Done():
		}
	}()
	if err := createDatabase(ctx, server); err != nil {
		return err
	}
	if err := migrate(ctx, devURL(server, devDatabase), devDatabase, stderr, stderr); err != nil {
		return err
	}

	psql := filepath.Join(server.Dir(), "psql")
	if err := writePsql(psql, server); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(psql)) }()

	logStart(log, fmt.Sprintf("127.0.0.1:%d", server.Port()), &config)
	steps := newOutput(stdout) // the service is useful even if nothing reads stdout
	defer steps.close()
	s := service{
		config:   config.Service,
		database: devURL(server, devDatabase),
		listener: listener,
		log:      log,
		output:   stderr,
		ready: func() {
			_, _ = io.WriteString(steps, firstSteps(baseURL(listener.Addr()), dir, shellWord(psql)))
		},
	}
	return s.run(ctx)
}

// devURL returns the connection string of a database. Its clients give the password to no other
// server: when this one has ended, another user may listen on the port and ask for the password in
// clear or as MD5.
func devURL(server *localpg.Server, database string) string {
	return server.URL(database) + "&require_auth=scram-sha-256"
}

// earlierDatabase is the name of dev's database in earlier versions.
const earlierDatabase = "coupons"

// createDatabase creates the database on server, unless it exists.
func createDatabase(ctx context.Context, server *localpg.Server) (err error) {
	conn, err := connect(ctx, devURL(server, "postgres"))
	if err != nil {
		return fmt.Errorf("cannot connect to the private PostgreSQL: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()

	rows, err := conn.Query(ctx, "select datname from pg_catalog.pg_database")
	if err != nil {
		return err
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	switch {
	case err != nil:
		return err
	case slices.Contains(names, devDatabase):
		return nil
	case slices.Contains(names, earlierDatabase):
		return fmt.Errorf("the data in %s are those of an earlier version of coupond, which this version cannot use:"+
			" to start with an empty database, remove the directory (rm -r %s)", server.Dir(), shellWord(server.Dir()))
	}
	_, err = conn.Exec(ctx, "create database "+pgx.Identifier{devDatabase}.Sanitize()+" encoding 'UTF8' template template0")
	return err
}

// baseURL returns the URL of the service for a user on this machine.
func baseURL(address net.Addr) string {
	if tcp, ok := address.(*net.TCPAddr); ok && tcp.IP.IsUnspecified() {
		return fmt.Sprintf("http://localhost:%d", tcp.Port)
	}
	return "http://" + address.String()
}

// firstSteps returns the commands that a user may want to try first. They are those of the README's
// session, so that it can be continued.
func firstSteps(url, dir, psql string) string {
	host := strings.Replace(strings.TrimPrefix(url, "http://"), "127.0.0.1:", "localhost:", 1)
	return fmt.Sprintf(`
coupond serves %[1]s; its data are in %[3]s. Ctrl-C stops it.

Create a coupon, claim it, read it:

  curl -si %[2]s/api/coupons -H 'Content-Type: application/json' -d '{"name": "early bird", "amount": 2}'
  curl -sw '%%{http_code}\n' %[2]s/api/coupons/claim -H 'Content-Type: application/json' -d '{"user_id": "ada", "coupon_name": "early bird"}'
  curl -s %[2]s/api/coupons/early%%20bird

The same in psql:

  %[4]s
  select claim_coupon('ada', 'early bird');
  select coupon_name, claim_number, user_id from claims;

`, url, host, dir, psql)
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
	// An old file may have another mode, or be a link, so it is removed instead of overwritten.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o700)
	if err != nil {
		return err
	}
	_, err = file.WriteString(script)
	return errors.Join(err, file.Close())
}

// shellWord returns a path as a word of a shell command, in quotes only if it needs them.
func shellWord(path string) string {
	if strings.Trim(path, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789/._-") == "" {
		return path
	}
	return shellQuote(path)
}

func shellQuote(s string) string {
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// lockDev locks dir, so that only one dev runs in it. Closing the file or the end of the process
// releases the lock. localpg also locks the data, but only this lock's error names the process and
// the URL of the dev that holds it.
func lockDev(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	// Root may be using a directory of another user, who has put a link there.
	file, err := os.OpenFile(filepath.Join(dir, "dev"), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil {
		return file, file.Truncate(0)
	}
	defer func() { _ = file.Close() }()
	if !errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, fmt.Errorf("cannot lock %s: %w", file.Name(), err)
	}
	note, err := io.ReadAll(io.LimitReader(file, 1<<10))
	if err != nil {
		return nil, err
	}
	if len(note) == 0 {
		note = []byte("it is starting")
	}
	return nil, fmt.Errorf("coupond dev is already running in %s: %s", dir, strings.TrimSpace(string(note)))
}

// writeDevNote writes the process and the URL to the lock file, for the error of lockDev.
func writeDevNote(lock *os.File, address net.Addr) error {
	_, err := fmt.Fprintf(lock, "process %d, %s\n", os.Getpid(), baseURL(address))
	return err
}
