package localpg

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
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

const lockFile = "lock"

// dirLock is the lock on a cluster's Dir. Only its holder changes the cluster.
//
// It is a flock(2) on an open file that initdb, the watchdog and all processes of the server
// inherit. The kernel releases it when the last of them has ended. So the holder knows that no
// process uses the data, which a process ID in a file cannot show: the ID may belong to another
// process by now.
type dirLock struct {
	file     *os.File
	previous serverState // the file's content when the lock was acquired: the server's previous run

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
	path := filepath.Join(dir, lockFile)
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := flock(file, syscall.LOCK_EX)
		previous := readState(file)
		switch {
		case err == nil:
			l := &dirLock{file: file, previous: previous, refs: 1}
			if err := l.write(serverState{Owner: os.Getpid(), Port: previous.Port}); err != nil {
				l.release()
				return nil, err
			}
			return l, nil
		case !errors.Is(err, syscall.EWOULDBLOCK):
			_ = file.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		case isAlive(previous.Owner):
			_ = file.Close()
			return nil, &RunningError{Dir: dir, Pid: previous.Owner}
		}
		select {
		case <-ctx.Done():
			_ = file.Close()
			return nil, fmt.Errorf("the previous server in %s is still shutting down: %w", dir, context.Cause(ctx))
		case <-time.After(pollInterval):
		}
	}
}

// removeStaleSocketDir removes the socket directory of the previous run. It is left over if the
// watchdog was killed together with the process that started it.
func (l *dirLock) removeStaleSocketDir() {
	if strings.HasPrefix(l.previous.Sockets, socketPrefix) {
		_ = os.RemoveAll(l.previous.Sockets)
	}
}

// retain adds a reference: release must be called once more.
func (l *dirLock) retain() *dirLock {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refs++
	return l
}

// release removes a reference. The last one ends the owner's claim to the server before the file is
// closed, because others may have the lock a little longer: the backends of a killed postmaster,
// and a process that was just started and has a copy of the file until its exec. Without an owner,
// acquireLock waits for them.
func (l *dirLock) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.refs--; l.refs == 0 {
		_ = l.write(serverState{Port: readState(l.file).Port})
		_ = l.file.Close()
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
	file, err := os.Open(filepath.Join(dir, lockFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("localpg: %s: %w", dir, ErrNotRunning)
	}
	if err != nil {
		return nil, fmt.Errorf("localpg: %w", err)
	}
	defer func() { _ = file.Close() }()

	now := readState(file)
	if err := flock(file, syscall.LOCK_SH); err == nil || now.Postmaster == 0 {
		return nil, fmt.Errorf("localpg: %s: %w", dir, ErrNotRunning)
	}
	login, err := readLogin(dir)
	if err != nil {
		return nil, fmt.Errorf("localpg: %w", err)
	}
	return &Address{dir: dir, state: now, login: login}, nil
}
