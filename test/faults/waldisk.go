package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
)

// The WAL is on a file system of its own, small enough to be filled, but several times as large as
// max_wal_size. It is in memory, which is enough: the faults include crashes of PostgreSQL, but not
// of the machine. $0 is pg_wal, which becomes a link, and $1 the size in bytes.
const (
	walDiskSize = 320 << 20
	mountScript = `mkdir "$0.disk" && mount -t tmpfs -o size=$1 faults "$0.disk" &&
		cp -a "$0/." "$0.disk" && rm -r "$0" && ln -s "$0.disk" "$0"`
	// Moves the WAL back, for a later look at it. A process that is about to exit may have a file
	// open; a lazy unmount waits for it.
	unmountScript = `rm "$0" && cp -a "$0.disk" "$0" && { umount "$0.disk" || umount --lazy "$0.disk"; }`
)

// pgWAL is the folder of the WAL.
func (e *environment) pgWAL() string { return filepath.Join(e.options.Dir, "data", "pg_wal") }

// mountWALDisk moves the WAL to its disk, if this program may mount one: it must be root on Linux,
// and not in an unprivileged container. It stops the server.
func (e *environment) mountWALDisk(ctx context.Context) error {
	if err := e.postgres.Stop(); err != nil {
		return err
	}
	e.noWALDisk = ""
	if output, err := exec.CommandContext(ctx, "sh", "-c", mountScript, e.pgWAL(), fmt.Sprint(walDiskSize)).CombinedOutput(); err != nil {
		e.noWALDisk = fmt.Sprintf("%v: %s", err, output)
	}
	return nil
}

func (e *environment) unmountWALDisk() error {
	if e.noWALDisk != "" {
		return nil
	}
	if output, err := exec.CommandContext(context.Background(), "sh", "-c", unmountScript, e.pgWAL()).CombinedOutput(); err != nil {
		return fmt.Errorf("unmount the disk for the WAL: %w: %s", err, output)
	}
	return nil
}
