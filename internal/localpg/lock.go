package localpg

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"syscall"
	"time"
)

// ErrRunning means that the cluster's server is already running. The error is a *RunningError.
var ErrRunning = errors.New("PostgreSQL is already running")

// ErrNotRunning means that the cluster has no running server.
var ErrNotRunning = errors.New("PostgreSQL is not running")

// RunningError says which process started the running server.
type RunningError struct {
	Dir string // the cluster's home directory
	Pid int    // the process that called Start, or a process of the server if it was detached or not started by Start
}

func (e *RunningError) Error() string {
	return fmt.Sprintf("PostgreSQL in %s is already running, started by process %d", e.Dir, e.Pid)
}

// Is makes errors.Is(err, ErrRunning) true.
func (e *RunningError) Is(target error) bool { return target == ErrRunning }

const (
	lockFile    = "lock"
	runningFile = "running"
)

// dirLock is the lock on a cluster's Dir. Only its holder changes the cluster.
//
// It is a flock(2) on two open files. initdb, the watchdog and all processes of the server inherit
// the second one, running, so that the kernel releases it when the last of them has ended. So the
// holder knows that no process uses the data, which a process ID in a file cannot show: the ID may
// belong to another process by now. The first one, lock, has the state of the server and is not
// inherited: if root starts the server, the server's account must not be able to write what root
// reads.
type dirLock struct {
	file     *os.File
	running  *os.File
	previous serverState // the content of file when the lock was acquired: the server's previous run

	mu   sync.Mutex
	refs int // release closes the file when this is 0
}

// serverState is the content of the lock file, as JSON.
type serverState struct {
	Owner      int    `json:"owner"`      // the process that started the server, or the watchdog of a detached one; 0 after the server's end
	Postmaster int    `json:"postmaster"` // 0 until the server is ready
	Port       int    `json:"port"`
	Sockets    string `json:"sockets"`
	BinDir     string `json:"bin_dir"`
}

// acquireLock acquires the lock on dir. If the owner of the running server has ended, it waits
// until the server has ended, too.
func acquireLock(ctx context.Context, dir string) (*dirLock, error) {
	l, err := openLock(dir)
	if err != nil {
		return nil, err
	}
	for {
		err := l.try()
		l.previous = readState(l.file)
		switch {
		case err == nil:
			if err := l.write(serverState{Owner: os.Getpid(), Port: l.previous.Port}); err != nil {
				l.release()
				return nil, err
			}
			return l, nil
		case !errors.Is(err, syscall.EWOULDBLOCK):
			l.close()
			return nil, fmt.Errorf("lock %s: %w", l.file.Name(), err)
		case isAlive(l.previous.Owner):
			l.close()
			return nil, &RunningError{Dir: dir, Pid: l.previous.Owner}
		}
		select {
		case <-ctx.Done():
			l.close()
			return nil, fmt.Errorf("the previous server in %s is still shutting down: %w", dir, context.Cause(ctx))
		case <-time.After(pollInterval):
		}
	}
}

// openLock opens the files of the lock on dir.
func openLock(dir string) (*dirLock, error) {
	file, err := openFile(filepath.Join(dir, lockFile), os.O_RDWR)
	if err != nil {
		return nil, err
	}
	running, err := openFile(filepath.Join(dir, runningFile), os.O_RDWR)
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	return &dirLock{file: file, running: running, refs: 1}, nil
}

// openFile opens or creates a private file. It follows no link: root may be using a directory of
// another user.
func openFile(path string, flag int) (*os.File, error) {
	return os.OpenFile(path, flag|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
}

// try acquires the lock or returns EWOULDBLOCK.
func (l *dirLock) try() error {
	if err := flock(l.file, syscall.LOCK_EX); err != nil {
		return err
	}
	return flock(l.running, syscall.LOCK_EX)
}

func (l *dirLock) close() {
	_ = l.file.Close()
	_ = l.running.Close()
}

var socketDir = regexp.MustCompile("^" + regexp.QuoteMeta(socketPrefix) + "[0-9]+$")

// removeStaleSocketDir removes the socket directory of the previous run. It is left over if the
// watchdog was killed together with the process that started it. It is removed with the rights of
// its owner.
func (l *dirLock) removeStaleSocketDir(ctx context.Context, owner *account) {
	if socketDir.MatchString(l.previous.Sockets) {
		_ = owner.command(ctx, "/bin/sh", "-c", `rm -rf -- "$0"`, l.previous.Sockets).Run()
	}
}

// retain adds a reference: release must be called once more.
func (l *dirLock) retain() *dirLock {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refs++
	return l
}

// release removes a reference. The last one ends the owner's claim to the server before the files
// are closed, because others may have the lock a little longer: the backends of a killed
// postmaster, and a process that was just started and has a copy of the files until its exec.
// Without an owner, acquireLock waits for them.
func (l *dirLock) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.refs--; l.refs == 0 {
		_ = l.write(serverState{Port: readState(l.file).Port})
		l.close()
	}
}

// stateSize is the padded size of the file, in bytes. One write replaces all of it; with truncate
// and write a reader could see an empty file.
const stateSize = 4 << 10

func (l *dirLock) write(s serverState) error {
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	_, err = l.file.WriteAt(fmt.Appendf(nil, "%-*s\n", stateSize-1, text), 0)
	return err
}

// readState returns the zero state if the file is new or not valid.
func readState(file *os.File) serverState {
	var s serverState
	text := make([]byte, stateSize)
	n, _ := file.ReadAt(text, 0)
	if json.Unmarshal(text[:n], &s) != nil {
		return serverState{}
	}
	return s
}

// flock does not wait: it returns EWOULDBLOCK if another process holds the lock.
func flock(file *os.File, how int) error {
	for {
		err := syscall.Flock(int(file.Fd()), how|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// pollInterval is the time between two checks of something that another process changes.
const pollInterval = 20 * time.Millisecond

func isAlive(pid int) bool {
	if pid <= 0 {
		return false
	}
	err := syscall.Kill(pid, 0)
	return err == nil || errors.Is(err, syscall.EPERM)
}

// Running returns the address of the running server of the cluster in dir, whichever process
// started it. The error is ErrNotRunning if there is none, or if it is still starting.
func Running(dir string) (*Address, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("localpg: %w", err)
	}
	running, err := os.Open(filepath.Join(dir, runningFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("localpg: %s: %w", dir, ErrNotRunning)
	}
	if err != nil {
		return nil, fmt.Errorf("localpg: %w", err)
	}
	defer func() { _ = running.Close() }()
	file, err := os.Open(filepath.Join(dir, lockFile))
	if err != nil {
		return nil, fmt.Errorf("localpg: %w", err)
	}
	defer func() { _ = file.Close() }()

	now := readState(file)
	if err := flock(running, syscall.LOCK_SH); err == nil || now.Postmaster == 0 {
		return nil, fmt.Errorf("localpg: %s: %w", dir, ErrNotRunning)
	}
	login, err := readLogin(dir)
	if err != nil {
		return nil, fmt.Errorf("localpg: %w", err)
	}
	return &Address{dir: dir, state: now, login: login}, nil
}
