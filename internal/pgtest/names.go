package pgtest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"scalable-coupon-system/internal/localpg"
)

// packagePrefix begins the names of all databases, containers and directories that this
// package's tests create on any server. The package under test is identified by the machine and the
// directory: go test runs it there.
var packagePrefix = sync.OnceValue(func() string {
	dir, _ := os.Getwd()
	machine, _ := os.Hostname()
	hash := sha256.Sum256([]byte(machine + "\x00" + dir))
	return "coupon_test_" + hex.EncodeToString(hash[:4]) + "_"
})

// runPrefix begins the names of this process.
func runPrefix() string { return packagePrefix() + strconv.Itoa(os.Getpid()) + "_" }

var invalidInName = regexp.MustCompile(`[^a-z0-9]+`)

// newName returns the name of a new database, which needs no quotes in SQL. It ends with the name
// of the test.
func (s *instance) newName(t testing.TB) string {
	t.Helper()
	part := invalidInName.ReplaceAllString(strings.ToLower(strings.TrimPrefix(t.Name(), "Test")), "_")
	return fmt.Sprintf("%s%d_%s", runPrefix(), s.created.Add(1), strings.Trim(part[:min(len(part), 24)], "_"))
}

// isLeftover reports whether a name is that of an earlier process of this package, which has kept
// the database of a failed test, or was killed. Call it before this process creates anything of
// that kind: an earlier process may have had the same ID.
func isLeftover(name string) bool {
	rest, ours := strings.CutPrefix(name, packagePrefix())
	text, _, _ := strings.Cut(rest, "_")
	pid, err := strconv.Atoi(text)
	return ours && err == nil && (pid == os.Getpid() || errors.Is(syscall.Kill(pid, 0), syscall.ESRCH))
}

// dropLeftovers drops the databases of earlier processes. Another process may do the same
// at the same time; what one of them fails to drop, a later run drops.
func (s *instance) dropLeftovers(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, s.admin.String())
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	rows, err := conn.Query(ctx, "select datname from pg_database")
	if err != nil {
		return err
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	for _, name := range names {
		if isLeftover(name) {
			_, _ = conn.Exec(ctx, dropDatabase(name))
		}
	}
	return err
}

// removeLeftoverHomes removes the home directories that killed processes have left.
var removeLeftoverHomes = sync.OnceFunc(func() {
	homes, _ := filepath.Glob(filepath.Join(os.TempDir(), packagePrefix()+"*")) // fails only for a malformed pattern
	for _, home := range homes {
		if isLeftover(filepath.Base(home)) {
			if err := removeHomeDir(home); err != nil {
				logf("%v", err)
			}
		}
	}
})

// newHomeDir creates the home directory of a new server.
func newHomeDir() (string, error) {
	removeLeftoverHomes()
	dir, err := os.MkdirTemp("", runPrefix())
	if err != nil {
		return "", err
	}
	// If root runs the tests, the server's user must be able to pass through.
	return dir, os.Chmod(dir, 0o711)
}

func removeHomeDir(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return localpg.Remove(ctx, dir)
}
