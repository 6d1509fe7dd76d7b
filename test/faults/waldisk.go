package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"

	"scalable-coupon-system/internal/localpg"
)

// The WAL is on a file system of its own, small enough to be filled, but several times as large as
// max_wal_size. It is in memory, which is enough: the faults include crashes of PostgreSQL, but not
// of the machine. $0 is pg_wal, and $1 the size in bytes.
const (
	walDiskSize = 320 << 20
	cannotMount = 77
	mountScript = `mv "$0" "$0.copy" && mkdir "$0" && {
			mount -t tmpfs -o size=$1 faults "$0" || { rmdir "$0" && mv "$0.copy" "$0" && exit 77; }
		} && cp -a "$0.copy/." "$0" && rm -r "$0.copy"`
	// A process that is about to exit may have a file open; a lazy unmount waits for it.
	unmountScript = `cp -a "$0" "$0.copy" && { umount "$0" || umount --lazy "$0"; } && rmdir "$0" && mv "$0.copy" "$0"`
)

// pgWAL is the folder of the WAL.
func (e *environment) pgWAL() string { return filepath.Join(e.options.Dir, "data", "pg_wal") }

// mountWALDisk moves the WAL to its disk, if this program may mount one. The server runs before and
// after.
func (e *environment) mountWALDisk(ctx context.Context) error {
	if runtime.GOOS != "linux" || os.Geteuid() != 0 {
		e.noWALDisk = "only root on Linux can mount a disk for the WAL"
		return nil
	}
	if err := e.stopPostgres((*localpg.Server).Stop); err != nil {
		return err
	}
	output, err := exec.CommandContext(ctx, "sh", "-c", mountScript, e.pgWAL(), fmt.Sprint(walDiskSize)).CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == cannotMount {
		e.noWALDisk = fmt.Sprintf("mount: %s", output) // in an unprivileged container, for example
		return e.startPostgres(ctx)
	}
	if err != nil {
		return fmt.Errorf("mount a disk for the WAL: %w: %s", err, output)
	}
	e.walDisk = true
	return e.startPostgres(ctx)
}

// unmountWALDisk moves the WAL back into the data directory, for a later look at it.
func (e *environment) unmountWALDisk() error {
	if !e.walDisk {
		return nil
	}
	if output, err := exec.CommandContext(context.Background(), "sh", "-c", unmountScript, e.pgWAL()).CombinedOutput(); err != nil {
		return fmt.Errorf("unmount the disk for the WAL: %w: %s", err, output)
	}
	return nil
}

func (e *environment) balloon() string { return filepath.Join(e.pgWAL(), "balloon") }

// fillWALDisk uses all space that is left.
func (e *environment) fillWALDisk() error {
	err := os.WriteFile(e.balloon(), make([]byte, walDiskSize), 0o600)
	if errors.Is(err, syscall.ENOSPC) {
		return nil
	}
	return errors.Join(err, errors.New("the disk of the WAL is not full"))
}

// freeWALDisk frees the space that fillWALDisk used.
func (e *environment) freeWALDisk() error { return os.RemoveAll(e.balloon()) }
