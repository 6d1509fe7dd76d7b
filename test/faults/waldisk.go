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

// walDisk is a separate file system for PostgreSQL's WAL, small enough to be filled. It is in
// memory, which is enough: the faults include crashes of PostgreSQL, but not of the machine.
type walDisk struct {
	mount string
	link  string // in the data directory
}

// walDiskSize is several times max_wal_size.
const walDiskSize = "320m"

// moveWAL moves the WAL to a walDisk, if this program may mount one. The server runs before and
// after.
func (e *environment) moveWAL(ctx context.Context) error {
	if runtime.GOOS != "linux" || os.Geteuid() != 0 {
		e.noWALDisk = "only root on Linux can mount a disk for the WAL"
		return nil
	}
	mount := filepath.Join(e.home, "wal")
	if err := os.Mkdir(mount, 0o711); err != nil {
		return err
	}
	if output, err := command(ctx, "mount", "-t", "tmpfs", "-o", "size="+walDiskSize+",mode=711", "faults", mount); err != nil {
		e.noWALDisk = fmt.Sprintf("mount: %v: %s", err, output) // in an unprivileged container, for example
		return nil
	}
	data, err := filepath.EvalSymlinks(filepath.Join(e.options.Dir, "data"))
	e.walDisk = &walDisk{mount, filepath.Join(data, "pg_wal")}
	if err = errors.Join(err, e.stopPostgres((*localpg.Server).Stop)); err != nil {
		return err
	}
	if output, err := command(ctx, "cp", "-a", e.walDisk.link, e.walDisk.folder()); err != nil {
		return fmt.Errorf("cp: %w: %s", err, output)
	}
	if err := errors.Join(os.RemoveAll(e.walDisk.link), os.Symlink(e.walDisk.folder(), e.walDisk.link)); err != nil {
		return err
	}
	return e.startPostgres(ctx)
}

// folder is the path of the WAL.
func (d *walDisk) folder() string { return filepath.Join(d.mount, "pg_wal") }

// restore copies the WAL back into the data directory, for a later look at the data.
func (d *walDisk) restore() error {
	if target, err := os.Readlink(d.link); err != nil || target != d.folder() {
		return err // it was not moved
	}
	if err := os.Remove(d.link); err != nil {
		return err
	}
	if output, err := command(context.Background(), "cp", "-a", d.folder(), d.link); err != nil {
		return fmt.Errorf("cp: %w: %s", err, output)
	}
	return nil
}

func command(ctx context.Context, name string, args ...string) ([]byte, error) {
	return exec.CommandContext(ctx, name, args...).CombinedOutput()
}

func (d *walDisk) balloon() string { return filepath.Join(d.mount, "balloon") }

// fill uses all space that is left.
func (d *walDisk) fill() (err error) {
	balloon, err := os.OpenFile(d.balloon(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, balloon.Close()) }()
	for size := 1 << 20; size > 0; {
		_, err := balloon.Write(make([]byte, size))
		switch {
		case errors.Is(err, syscall.ENOSPC):
			size /= 16
		case err != nil:
			return err
		}
	}
	return nil
}

// free frees the space that fill used.
func (d *walDisk) free() error {
	err := os.Remove(d.balloon())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// unmount unmounts the disk, which deletes what is on it.
func (d *walDisk) unmount() error {
	ctx := context.Background()
	if output, err := command(ctx, "umount", d.mount); err != nil {
		// A process that is about to exit may have a file open; a lazy unmount waits for it.
		if lazy, err := command(ctx, "umount", "--lazy", d.mount); err != nil {
			return fmt.Errorf("umount: %w: %s%s", err, output, lazy)
		}
	}
	return nil
}
