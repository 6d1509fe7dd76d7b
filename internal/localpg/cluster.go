package localpg

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// fallbackDir holds the data of root's clusters if the server's account cannot enter their Dir.
// Tests replace it.
var fallbackDir = "/var/lib/coupond"

// cluster is the cluster of a Dir. Its methods are called with the lock on Dir held.
type cluster struct {
	dir     string   // its home directory, as an absolute path
	data    string   // its data directory, with links resolved
	major   int      // the PostgreSQL version that created it; 0: not created yet
	account *account // runs the server
}

// makeDir creates the cluster's home directory and returns its real path. Root lets other users
// pass through it, because the server runs as one of them.
func makeDir(dir string) (string, error) {
	mode := fs.FileMode(0o700)
	if os.Geteuid() == 0 {
		mode = 0o711
	}
	if err := os.MkdirAll(dir, mode); err != nil {
		return "", err
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(abs)
}

// openCluster returns the cluster in dir. If there is none, it decides where the data directory
// will be created.
func openCluster(ctx context.Context, dir string, logf func(string, ...any)) (*cluster, error) {
	path := filepath.Join(dir, "data")
	account, err := serverAccount(path)
	if err != nil {
		return nil, err
	}
	c := &cluster{dir: dir, data: path, account: account}

	switch info, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
		if account.canReach(ctx, dir) {
			return c, nil
		}
		return c, c.useFallbackDir(logf)
	case err != nil:
		return nil, err
	case info.Mode().Type() == fs.ModeSymlink:
		if c.data, err = resolveLink(path); err != nil {
			return nil, err
		}
		if _, err := os.Stat(c.data); errors.Is(err, fs.ErrNotExist) {
			return c, nil // a Start was interrupted between the link and initdb
		}
	}

	version, err := os.ReadFile(filepath.Join(c.data, "PG_VERSION"))
	if err != nil {
		return nil, fmt.Errorf("%s is not a PostgreSQL data directory: %w", c.data, err)
	}
	if c.major, err = strconv.Atoi(strings.TrimSpace(string(version))); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(c.data, "PG_VERSION"), err)
	}
	if owner, _ := ownerOf(c.data); account != nil && owner == 0 {
		// Root copied or restored the data. PostgreSQL accepts only a data directory of the user it
		// runs as.
		if err := account.chownAll(c.data); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// useFallbackDir creates a directory below fallbackDir for the data, and links Dir/data to it. The
// link is created first: without it the data could not be found again.
func (c *cluster) useFallbackDir(logf func(string, ...any)) error {
	if err := mkdirTraversable(fallbackDir); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	hash := sha256.Sum256([]byte(c.dir))
	base := filepath.Join(fallbackDir, hex.EncodeToString(hash[:8]))
	home := base
	for n := 2; ; n++ {
		err := mkdirTraversable(home)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
		logf("%s holds the data of an earlier cluster of %s; it is not used, remove it if you do not need it", home, c.dir)
		home = base + "-" + strconv.Itoa(n)
	}
	logf("PostgreSQL will run as %s, which cannot enter %s: its data will be in %s", c.account.name, c.dir, home)
	c.data = filepath.Join(home, "data")
	if err := os.Symlink(c.data, filepath.Join(c.dir, "data")); err != nil {
		return err
	}
	return syncDir(c.dir)
}

// mkdirTraversable creates a directory that every user may pass through, whatever the umask is.
func mkdirTraversable(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	return os.Chmod(dir, 0o711)
}

// resolveLink resolves the link to a data directory. The data directory may be missing, but its
// parent must exist: otherwise the data was moved or its disk is not mounted, and a new cluster
// would hide that.
func resolveLink(link string) (string, error) {
	target, err := os.Readlink(link)
	if err != nil {
		return "", err
	}
	if !filepath.IsAbs(target) {
		target = filepath.Join(filepath.Dir(link), target)
	}
	home, err := filepath.EvalSymlinks(filepath.Dir(target))
	if err != nil {
		return "", fmt.Errorf("%s links to %s, which does not exist; restore it, or remove the link to start with a new cluster", link, target)
	}
	return filepath.Join(home, filepath.Base(target)), nil
}

// initialize creates the cluster: initdb in a directory beside it, then the password file, then the
// rename that marks the data as complete. noSync skips the fsync of all files, for a server that
// runs without fsync.
func (c *cluster) initialize(ctx context.Context, pg installation, user string, noSync bool, lock *dirLock) error {
	newData, pwfile := c.data+".new", c.data+".password"
	if err := os.RemoveAll(newData); err != nil {
		return err
	}
	password := rand.Text()
	if err := writeFile(pwfile, password+"\n"); err != nil {
		return err
	}
	defer func() { _ = os.Remove(pwfile) }()

	// Some systems, such as macOS, have no C.UTF-8. C will do, because nothing here depends on the
	// locale.
	var failure error
	for _, locale := range []string{"C.UTF-8", "C"} {
		if err := os.RemoveAll(newData); err != nil {
			return err
		}
		if err := os.Mkdir(newData, 0o700); err != nil {
			return err
		}
		if err := c.account.chown(newData, pwfile); err != nil {
			return err
		}
		arguments := []string{
			"--pgdata=" + newData, "--username=" + user, "--pwfile=" + pwfile,
			"--encoding=UTF8", "--locale=" + locale, "--auth=scram-sha-256",
		}
		if noSync {
			arguments = append(arguments, "--no-sync")
		}
		initdb := c.account.command(ctx, filepath.Join(pg.dir, "initdb"), arguments...)
		initdb.ExtraFiles = []*os.File{lock.running} // if this process is killed, the next Start waits for initdb to end
		var output bytes.Buffer
		initdb.Stdout, initdb.Stderr = &output, &output
		if failure = initdb.Run(); failure == nil {
			break
		}
		if ctx.Err() != nil {
			return fmt.Errorf("initdb: %w", context.Cause(ctx))
		}
		failure = fmt.Errorf("initdb: %w%s", failure, lastLines(output.String()))
	}
	if failure != nil {
		return failure
	}

	if err := writeLogin(c.dir, login{user, password}); err != nil {
		return err
	}
	if err := os.Rename(newData, c.data); err != nil {
		return err
	}
	c.major = pg.major
	return syncDir(filepath.Dir(c.data))
}

// removeStalePid removes a postmaster.pid whose process has ended. PostgreSQL does this itself,
// unless another process of the same user has that process ID now: then it refuses to start.
func (c *cluster) removeStalePid(ctx context.Context) error {
	pid, err := postmasterPid(c.data)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && isAlive(pid) {
		switch at := c.account.workingDir(ctx, pid); at {
		case "": // unknown: leave it to PostgreSQL's own check
			return nil
		case c.data: // a postmaster works in its data directory; Start did not start this one
			return &RunningError{Dir: c.dir, Pid: pid}
		}
	}
	return os.Remove(filepath.Join(c.data, "postmaster.pid"))
}

// postmasterPid returns the process ID in postmaster.pid.
func postmasterPid(data string) (int, error) {
	text, err := os.ReadFile(filepath.Join(data, "postmaster.pid"))
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(first))
	if err != nil {
		return 0, fmt.Errorf("%s: %w", filepath.Join(data, "postmaster.pid"), err)
	}
	return pid, nil
}

// workingDir returns the working directory of a process of the account, or "" if it cannot be read.
// The command runs as the account, because root without all capabilities, as in a container, may
// not read it of other users' processes.
func (a *account) workingDir(ctx context.Context, pid int) string {
	// macOS has lsof instead of /proc.
	cmd := a.command(ctx, "/bin/sh", "-c", `readlink "/proc/$0/cwd" || lsof -a -p "$0" -d cwd -Fn | sed -n 's/^n//p'`, strconv.Itoa(pid))
	output, _ := cmd.Output()
	return strings.TrimSuffix(string(output), "\n")
}

// socketPrefix begins the paths of all socket directories. They are not in $TMPDIR, because its
// path may be too long for a unix socket.
const socketPrefix = "/tmp/localpg-"

// makeSocketDir creates the directory of the unix socket. Only the account may enter it.
func (c *cluster) makeSocketDir() (string, error) {
	dir, err := os.MkdirTemp(filepath.Split(socketPrefix))
	if err != nil {
		return "", err
	}
	return dir, c.account.chown(dir)
}

// Remove kills the server of the cluster in dir, whichever process started it, and removes the
// cluster with all its data. It returns nil if dir does not exist.
func Remove(ctx context.Context, dir string) error {
	if err := remove(ctx, dir); err != nil {
		return fmt.Errorf("localpg: remove %s: %w", dir, err)
	}
	return nil
}

func remove(ctx context.Context, dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	lock, err := acquireLock(ctx, dir)
	if errors.Is(err, ErrRunning) {
		lock, err = killAndLock(ctx, dir)
	}
	if err != nil {
		return err
	}
	defer lock.release()

	path := filepath.Join(dir, "data")
	account, err := serverAccount(path)
	if err != nil {
		return err
	}
	lock.removeStaleSocketDir(ctx, account)
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() == fs.ModeSymlink {
		if data, err := resolveLink(path); err == nil {
			home := data
			if filepath.Dir(filepath.Dir(data)) == fallbackDir {
				home = filepath.Dir(data) // created by useFallbackDir
			}
			if err := os.RemoveAll(home); err != nil {
				return err
			}
		}
	}
	return os.RemoveAll(dir)
}

// killAndLock kills the server of another process, or a detached one, and acquires the lock on dir.
func killAndLock(ctx context.Context, dir string) (*dirLock, error) {
	l, err := openLock(dir)
	if err != nil {
		return nil, err
	}
	l.previous = readState(l.file)
	if err := killPostmaster(ctx, filepath.Join(dir, "data"), l.previous.Postmaster); err != nil {
		l.close()
		return nil, err
	}
	for {
		if err := l.try(); err == nil {
			return l, nil
		}
		select {
		case <-ctx.Done():
			l.close()
			return nil, context.Cause(ctx)
		case <-time.After(pollInterval):
		}
	}
}

// killPostmaster sends SIGQUIT to process pid if it is the postmaster of the data directory path: a
// postmaster's working directory is its data directory.
func killPostmaster(ctx context.Context, path string, pid int) error {
	data, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	account, err := serverAccount(data)
	if err != nil {
		return err
	}
	if !isAlive(pid) || account.workingDir(ctx, pid) != data {
		return fmt.Errorf("%s is in use, and process %d could not be verified as its postmaster; end the processes that use it", data, pid)
	}
	return syscall.Kill(pid, syscall.SIGQUIT)
}

// writeFile replaces the file path with text, atomically and durably. Only the current user may
// read it.
func writeFile(path, text string) error {
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	_, err = file.WriteString(text)
	err = errors.Join(err, file.Sync(), file.Close())
	if err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		_ = os.Remove(file.Name())
		return err
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes the names in dir durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
