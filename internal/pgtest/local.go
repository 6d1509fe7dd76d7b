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

// local is a server from this machine's binaries.
type local struct {
	*localpg.Server
}

func startLocal(ctx context.Context) (s *server, what string, err error) {
	dir, err := newHome(ctx)
	if err != nil {
		return nil, "", err
	}
	running, err := localpg.Start(ctx, localpg.Options{Dir: dir, Settings: settings, Log: os.Stderr})
	if err != nil {
		return nil, "", errors.Join(err, localpg.Remove(ctx, dir))
	}
	return newServer(running.URL("postgres"), local{running}), "from " + running.BinDir(), nil
}

func (l local) keep() (string, error) {
	if err := l.Detach(); err != nil {
		return "", err
	}
	return removal(l.Server), nil
}

func (l local) close(*server) error { return end(l.Server) }

// removal is the command that ends a detached server and removes its data.
func removal(s *localpg.Server) string {
	return fmt.Sprintf("kill -QUIT %d; sleep 1; rm -r %s", s.Pid(), s.Dir())
}

// end stops a server and removes its data. Whether it stops in an orderly way is of no interest any more.
func end(s *localpg.Server) error {
	_ = s.Kill()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return localpg.Remove(ctx, s.Dir())
}

// homePattern are the names of our servers' homes: the package, and the process whose tests they are for.
var homePattern = regexp.MustCompile(`^coupon-dbtest-([0-9a-f]{8})-([0-9]+)-`)

// newHome makes the folder of a new server, and removes those that are of no use any more: what failed tests of this package
// have left before, and what is left of processes that were killed.
func newHome(ctx context.Context) (string, error) {
	entries, err := os.ReadDir(os.TempDir())
	if err != nil {
		return "", err
	}
	for _, entry := range entries {
		match := homePattern.FindStringSubmatch(entry.Name())
		if match == nil || !isOurs(entry) {
			continue
		}
		pid, err := strconv.Atoi(match[2])
		if err != nil || isAlive(pid) {
			continue
		}
		dir := filepath.Join(os.TempDir(), entry.Name())
		if _, err := localpg.Running(dir); err == nil && match[1] != thisPackage() && !isOld(entry) {
			continue // kept for somebody else
		}
		if err := localpg.Remove(ctx, dir); err != nil {
			say("%v", err)
		}
	}

	dir, err := os.MkdirTemp("", fmt.Sprintf("coupon-dbtest-%s-%d-", thisPackage(), os.Getpid()))
	if err != nil {
		return "", err
	}
	// To be passed through by the user as whom root's server runs.
	return dir, os.Chmod(dir, 0o711)
}

// isOurs is false for what another user has put into the folder for temporary files, of whatever name.
func isOurs(entry fs.DirEntry) bool {
	info, err := entry.Info() // of the entry itself, not of what it may link to
	if err != nil || !info.IsDir() {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(stat.Uid) == os.Geteuid()
}

// isOld is true for what nobody will look at any more: the package of a removed clone never runs again.
func isOld(entry fs.DirEntry) bool {
	info, err := entry.Info()
	return err == nil && time.Since(info.ModTime()) > workingDay
}

func isAlive(pid int) bool {
	err := syscall.Kill(pid, 0)
	return err == nil || errors.Is(err, syscall.EPERM)
}
