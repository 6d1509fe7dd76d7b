package localpg

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

const (
	ownerFile   = "lock"
	runningFile = "running"
)

// pollInterval is the time between two checks of something that another process changes.
const pollInterval = 20 * time.Millisecond

// lock gives this process the cluster: only the holder changes it. There are two locks. The process
// that called Start holds the first. initdb, the watchdog and all processes of the server inherit
// the second, and the kernel releases it when the last of them has ended. A process ID in a file
// would not show that: the ID may belong to another process by now.
//
// If the process of a running server has ended, lock waits until the server has ended, too.
func (c *cluster) lock(ctx context.Context) (err error) {
	if c.owner, err = openFile(filepath.Join(c.dir, ownerFile), os.O_RDWR); err != nil {
		return err
	}
	err = flock(c.owner, syscall.LOCK_EX)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = fmt.Errorf("PostgreSQL is already running in %s", c.dir)
	}
	if err == nil {
		c.running, err = lockFile(ctx, filepath.Join(c.dir, runningFile))
	}
	if err != nil {
		c.unlock()
	}
	return err
}

// unlock releases the first lock at once, even if a process that is just being started has a copy
// of the file until its exec.
func (c *cluster) unlock() {
	_ = flock(c.owner, syscall.LOCK_UN)
	_ = c.owner.Close()
	_ = c.running.Close() // fails if it is nil or closed
}

// lockFile opens or creates a file and waits for the lock on it.
func lockFile(ctx context.Context, path string) (*os.File, error) {
	file, err := openFile(path, os.O_RDWR)
	if err != nil {
		return nil, err
	}
	for flock(file, syscall.LOCK_EX) != nil {
		select {
		case <-time.After(pollInterval):
		case <-ctx.Done():
			_ = file.Close()
			return nil, fmt.Errorf("another process uses %s: %w", path, ctx.Err())
		}
	}
	return file, nil
}

// openFile opens or creates a private file. It follows no link: root may be using a directory of
// another user.
func openFile(path string, flag int) (*os.File, error) {
	return os.OpenFile(path, flag|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
}

// flock does not wait: it returns EWOULDBLOCK if another process holds the lock.
func flock(file *os.File, how int) error {
	return syscall.Flock(int(file.Fd()), how|syscall.LOCK_NB)
}
