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

// walDisk is a disk of its own for PostgreSQL's WAL, so small that it can be filled: a file system in memory. It is not written
// through to anything; but what is proved here survives crashes of PostgreSQL, not of the machine, and a full disk is full.
type walDisk struct {
	mount string
	link  string // in the data directory
}

// walDiskSize leaves room for several times max_wal_size.
const walDiskSize = "320m"

// moveWAL moves the WAL to a disk of its own, where we may mount one. The server runs before and after.
func (w *world) moveWAL(ctx context.Context) error {
	if runtime.GOOS != "linux" || os.Geteuid() != 0 {
		w.noWAL = "a disk for the WAL can only be mounted by root on Linux"
		return nil
	}
	mount := filepath.Join(w.home, "wal")
	if err := os.Mkdir(mount, 0o711); err != nil {
		return err
	}
	if output, err := command(ctx, "mount", "-t", "tmpfs", "-o", "size="+walDiskSize+",mode=711", "prove", mount); err != nil {
		w.noWAL = fmt.Sprintf("mount: %v: %s", err, output) // as in a container without the right to
		return nil
	}
	data, err := filepath.EvalSymlinks(filepath.Join(w.options.Dir, "data"))
	w.wal = &walDisk{mount, filepath.Join(data, "pg_wal")}
	if err = errors.Join(err, w.stopPostgres((*localpg.Server).Stop)); err != nil {
		return err
	}
	if output, err := command(ctx, "cp", "-a", w.wal.link, w.wal.folder()); err != nil {
		return fmt.Errorf("cp: %w: %s", err, output)
	}
	if err := errors.Join(os.RemoveAll(w.wal.link), os.Symlink(w.wal.folder(), w.wal.link)); err != nil {
		return err
	}
	return w.startPostgres(ctx)
}

// folder is where the WAL is.
func (d *walDisk) folder() string { return filepath.Join(d.mount, "pg_wal") }

// back puts the WAL where PostgreSQL made it, for somebody who will look at the data.
func (d *walDisk) back() error {
	if target, err := os.Readlink(d.link); err != nil || target != d.folder() {
		return err // it was not moved yet
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

// fill takes every byte that is left.
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

// free gives it back.
func (d *walDisk) free() error {
	err := os.Remove(d.balloon())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// remove unmounts the disk; what is on it is gone.
func (d *walDisk) remove() error {
	ctx := context.Background()
	if output, err := command(ctx, "umount", d.mount); err != nil {
		// A process that is just ending may have a file open: then it goes when that does.
		if lazy, err := command(ctx, "umount", "--lazy", d.mount); err != nil {
			return fmt.Errorf("umount: %w: %s%s", err, output, lazy)
		}
	}
	return nil
}
