package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/spf13/cobra"

	"scalable-coupon-system/internal/localpg"
)

// devDatabase is the database that dev keeps in its private PostgreSQL.
const devDatabase = "coupons"

// devConfig is all that `coupond dev` reads from the environment.
type devConfig struct {
	Listen  listenConfig
	Service serviceConfig
	Log     logConfig
}

func newDevCommand(vars environment, stdout, stderr io.Writer) *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Serve with a private PostgreSQL: nothing to install or configure",
		Long: `Start a private PostgreSQL from binaries on this machine (downloaded when there
are none), bring its schema up to date, serve coupons from it over HTTP, and
print what to type next.

The data stay in the directory of --dir, for the next start. While it runs, the
program psql in there opens psql on the database. Ctrl-C ends the service as it
ends serve, then stops PostgreSQL. DATABASE_URL is not read.`,
		Args:        noArguments,
		Annotations: map[string]string{environmentNote: describe(&devConfig{})},
		RunE: func(cmd *cobra.Command, _ []string) error {
			return dev(cmd.Context(), vars, dir, stdout, stderr)
		},
	}
	cmd.Flags().StringVar(&dir, "dir", ".coupond", "where PostgreSQL keeps its data")
	return cmd
}

func dev(ctx context.Context, vars environment, dir string, stdout, stderr io.Writer) (err error) {
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
	// From here on connections queue at the door, and are answered when the service runs.
	defer func() { _ = listener.Close() }() // the service has closed it, unless we did not get that far
	if err := noteDev(lock, listener.Addr()); err != nil {
		return err
	}

	server, err := localpg.Start(ctx, localpg.Options{Dir: dir, Log: stderr})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	// Without its PostgreSQL there is nothing to serve: unlike serve's, nobody brings it back.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-server.Done():
			cancel(errors.New("the private PostgreSQL has ended"))
		case <-ctx.Done():
		}
	}()
	if err := createDatabase(ctx, server.URL("postgres"), devDatabase); err != nil {
		return err
	}
	if err := migrate(ctx, server.URL(devDatabase), devDatabase, stderr); err != nil {
		return err
	}

	psql := filepath.Join(dir, "psql")
	if err := writePsql(psql, server); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(psql)) }()

	logStart(log, fmt.Sprintf("127.0.0.1:%d", server.Port()), &config)
	s := service{
		config:   config.Service,
		database: server.URL(devDatabase),
		listener: listener,
		log:      log,
		ready: func() {
			// Nobody to tell when stdout is closed; the service is of use all the same.
			_, _ = io.WriteString(stdout, whatNext(baseURL(listener.Addr()), dir, psqlLine(psql, server)))
		},
	}
	return s.run(ctx)
}

// createDatabase creates the database called name on the server of connString, unless it is there.
func createDatabase(ctx context.Context, connString, name string) (err error) {
	conn, err := connect(ctx, connString)
	if err != nil {
		return fmt.Errorf("cannot connect to the private PostgreSQL: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()

	_, err = conn.Exec(ctx, "create database "+pgx.Identifier{name}.Sanitize()+" encoding 'UTF8' template template0")
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.Code == pgerrcode.DuplicateDatabase {
		return nil
	}
	return err
}

// baseURL is the service's as a person on this machine types it.
func baseURL(address net.Addr) string {
	if tcp, ok := address.(*net.TCPAddr); ok && tcp.IP.IsUnspecified() {
		return fmt.Sprintf("http://localhost:%d", tcp.Port)
	}
	return "http://" + address.String()
}

// psqlLine opens psql on the database. It is what works everywhere on this machine, or our own program where only the server's
// folder has a psql.
func psqlLine(program string, server *localpg.Server) string {
	if _, err := exec.LookPath("psql"); err != nil {
		return program
	}
	return server.Psql(devDatabase)
}

// whatNext is what a person who has just started dev may want to type.
func whatNext(url, dir, psql string) string {
	return fmt.Sprintf(`
coupond serves at %[1]s; its data are in %[2]s. Ctrl-C ends it.

Create a coupon, claim it, read it:

  curl -i %[1]s/api/coupons -H 'Content-Type: application/json' -d '{"name": "SALE", "amount": 5}'
  curl -i %[1]s/api/coupons/claim -H 'Content-Type: application/json' -d '{"user_id": "ann", "coupon_name": "SALE"}'
  curl -i %[1]s/api/coupons/SALE

The same in psql:

  %[3]s
  select claim_coupon('bob', 'SALE');
  select claim_number, user_id, claimed_at from claims;

`, url, dir, psql)
}

// writePsql writes the program at path that opens psql on the database, with the psql of the server's own version when there is
// one. Its arguments go to psql.
func writePsql(path string, server *localpg.Server) error {
	script := fmt.Sprintf(`#!/bin/sh
# Opens psql on the database of the coupond dev that runs (it wrote this file, and removes it when it ends).
PATH=%s:$PATH
exec %s "$@"
`, shellQuote(server.BinDir()), server.Psql(devDatabase))
	// Written anew and not over an old one, whose mode may be another.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.WriteFile(path, []byte(script), 0o700)
}

func shellQuote(s string) string {
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// lockDev takes the right to be the one dev that runs in dir; closing the file gives it back, and so does the end of the process,
// however it ends. localpg has a lock of its own on the data: this one stands in front of it to be able to say where the first
// one serves. The error tells which process has it.
func lockDev(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(filepath.Join(dir, "dev"), os.O_RDWR|os.O_CREATE, 0o600)
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
		note = []byte("it is just starting")
	}
	return nil, fmt.Errorf("coupond dev runs in %s already: %s", dir, strings.TrimSpace(string(note)))
}

// noteDev writes into the lock what the next one is told.
func noteDev(lock *os.File, address net.Addr) error {
	_, err := fmt.Fprintf(lock, "process %d, %s\n", os.Getpid(), baseURL(address))
	return err
}
