package pgtest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"time"

	"scalable-coupon-system/internal/localpg"
)

// local is a server from the binaries of this machine.
type local struct {
	*localpg.Server
}

func startLocal(ctx context.Context) (s *instance, what string, err error) {
	dir, err := newHomeDir(ctx)
	if err != nil {
		return nil, "", err
	}
	running, err := localpg.Start(ctx, localpg.Options{Dir: dir, Settings: sharedSettings, Log: os.Stderr})
	if err != nil {
		return nil, "", errors.Join(err, localpg.Remove(ctx, dir))
	}
	return newInstance(running.URL("postgres"), local{running}), "from " + running.BinDir(), nil
}

func (l local) keep() (string, error) {
	if err := l.Detach(); err != nil {
		return "", err
	}
	return removeCommand(l.Server), nil
}

func (l local) close(*instance) error { return killAndRemove(l.Server) }

// removeCommand returns the shell command that ends a detached server and removes its data.
func removeCommand(s *localpg.Server) string {
	return fmt.Sprintf("kill -QUIT %d; sleep 1; rm -r %s", s.Pid(), s.Dir())
}

// killAndRemove kills a server and removes its data.
func killAndRemove(s *localpg.Server) error {
	_ = s.Kill()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return localpg.Remove(ctx, s.Dir())
}

// homePattern matches the names of the servers' home directories. They contain the package and the
// process that runs its tests.
var homePattern = regexp.MustCompile(`^coupond-pgtest-([0-9a-f]{8})-([0-9]+)-`)

// newHomeDir creates the home directory of a new server. It also removes old ones: those that
// failed tests of this package have kept, and those of killed processes.
func newHomeDir(ctx context.Context) (string, error) {
	entries, err := os.ReadDir(os.TempDir())
	if err != nil {
		return "", err
	}
	for _, entry := range entries {
		match := homePattern.FindStringSubmatch(entry.Name())
		if match == nil || !isOwnDir(entry) {
			continue
		}
		pid, err := strconv.Atoi(match[2])
		if err != nil || isAlive(pid) {
			continue
		}
		dir := filepath.Join(os.TempDir(), entry.Name())
		if _, err := localpg.Running(dir); err == nil && match[1] != packageID() && !isExpired(entry) {
			continue // another package keeps it for the user
		}
		if err := localpg.Remove(ctx, dir); err != nil {
			logf("%v", err)
		}
	}

	dir, err := os.MkdirTemp("", fmt.Sprintf("coupond-pgtest-%s-%d-", packageID(), os.Getpid()))
	if err != nil {
		return "", err
	}
	// If root runs the tests, the server's user must be able to pass through.
	return dir, os.Chmod(dir, 0o711)
}

// isOwnDir reports whether entry is a directory of the current user. Other users can create files
// of any name in the temporary directory.
func isOwnDir(entry fs.DirEntry) bool {
	info, err := entry.Info() // of the entry itself, not of the target of a link
	if err != nil || !info.IsDir() {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(stat.Uid) == os.Geteuid()
}

// isExpired reports whether a kept server is old enough to be removed by another package. Its own
// package may never run again, for example in a deleted clone.
func isExpired(entry fs.DirEntry) bool {
	info, err := entry.Info()
	return err == nil && time.Since(info.ModTime()) > keepTime
}

func isAlive(pid int) bool {
	err := syscall.Kill(pid, 0)
	return err == nil || errors.Is(err, syscall.EPERM)
}
