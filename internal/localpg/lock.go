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

// ErrRunning says that the cluster's server runs already; the error itself is a *RunningError.
var ErrRunning = errors.New("PostgreSQL runs there already")

// ErrNotRunning says that no server of the cluster answers.
var ErrNotRunning = errors.New("no PostgreSQL runs there")

// RunningError tells which process has started the server that runs already.
type RunningError struct {
	Dir string // the cluster's home
	Pid int    // the process that called Start; for a server that was detached or started by other means, one of its own
}

func (e *RunningError) Error() string {
	return fmt.Sprintf("%s runs already, started by process %d", e.Dir, e.Pid)
}

// Is makes errors.Is(err, ErrRunning) true.
func (e *RunningError) Is(target error) bool { return target == ErrRunning }

const lockFile = "lock"

// lock is the right to touch the cluster of a Dir.
//
// It is a flock(2) on an open file that initdb, the watchdog and every process of the server inherit. The kernel lets go of it
// when the last of them is gone, and not before: so whoever gets it knows that nothing works on the data any more, which no pid
// in a file can say (a pid may have been given to another process meanwhile).
type lock struct {
	file *os.File
	last state // what the file said when the lock was taken: how the cluster ran the last time

	mu     sync.Mutex
	shares int
}

// state is what the lock file says, as JSON.
type state struct {
	Owner      int    `json:"owner"`      // the process that answers for the server; 0: none does any more
	Postmaster int    `json:"postmaster"` // the server's first process; 0 until it is ready
	Port       int    `json:"port"`
	Sockets    string `json:"sockets"`
	BinDir     string `json:"bin_dir"`
}

// acquire takes the lock of dir. A server whose owner is gone is about to end: that is waited for.
func acquire(ctx context.Context, dir string) (*lock, error) {
	path := filepath.Join(dir, lockFile)
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := flock(file, syscall.LOCK_EX)
		last := readState(file)
		switch {
		case err == nil:
			l := &lock{file: file, last: last, shares: 1}
			if err := l.write(state{Owner: os.Getpid(), Port: last.Port}); err != nil {
				l.close()
				return nil, err
			}
			return l, nil
		case !errors.Is(err, syscall.EWOULDBLOCK):
			_ = file.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		case isAlive(last.Owner):
			_ = file.Close()
			return nil, &RunningError{Dir: dir, Pid: last.Owner}
		}
		select {
		case <-ctx.Done():
			_ = file.Close()
			return nil, fmt.Errorf("the last server in %s is still shutting down: %w", dir, context.Cause(ctx))
		case <-pause():
		}
	}
}

// dropStaleSockets removes the folder of the last server's socket, where its watchdog was killed together with us.
func (l *lock) dropStaleSockets() {
	if strings.HasPrefix(l.last.Sockets, socketPrefix) {
		_ = os.RemoveAll(l.last.Sockets)
	}
}

// share makes one more close necessary.
func (l *lock) share() *lock {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.shares++
	return l
}

func (l *lock) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shares--; l.shares == 0 {
		_ = l.file.Close()
	}
}

// stateSize is what the file's text is padded to, so that one write replaces it whole: a truncate and a write would show an
// empty file in between.
const stateSize = 4 << 10

func (l *lock) write(s state) error {
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	_, err = l.file.WriteAt(fmt.Appendf(nil, "%-*s\n", stateSize-1, text), 0)
	return err
}

// readState returns the zero state for a file that says nothing sensible, such as a new one.
func readState(file *os.File) state {
	var s state
	text := make([]byte, stateSize)
	n, _ := file.ReadAt(text, 0)
	if json.Unmarshal(text[:n], &s) != nil {
		return state{}
	}
	return s
}

// flock never waits: a lock that others hold is EWOULDBLOCK.
func flock(file *os.File, how int) error {
	for {
		err := syscall.Flock(int(file.Fd()), how|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// pause is how long to wait between two looks at something that others change.
func pause() <-chan time.Time { return time.After(20 * time.Millisecond) }

func isAlive(pid int) bool {
	if pid <= 0 {
		return false
	}
	err := syscall.Kill(pid, 0)
	return err == nil || errors.Is(err, syscall.EPERM)
}

// Running tells where the server of the cluster in dir listens, whichever process started it.
//
// Errors: ErrNotRunning when there is none, or none that is ready.
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
	defer file.Close()

	now := readState(file)
	if err := flock(file, syscall.LOCK_SH); err == nil || now.Postmaster == 0 {
		return nil, fmt.Errorf("localpg: %s: %w", dir, ErrNotRunning)
	}
	password, err := readPassword(dir)
	if err != nil {
		return nil, fmt.Errorf("localpg: %w", err)
	}
	return &Address{dir: dir, state: now, password: password}, nil
}
