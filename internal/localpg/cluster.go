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
)

// elsewhere is where root's clusters go when the server's account cannot reach their Dir. A variable for the tests.
var elsewhere = "/var/lib/coupond"

// cluster is the data of a Dir, with the lock on it held.
type cluster struct {
	dir     string   // its home, absolute
	data    string   // its data directory, links resolved
	major   int      // the PostgreSQL version that made it; 0: it is not there yet
	account *account // as whom its server runs
}

// makeDir creates the cluster's home and returns its real path. Root lets others pass through it: the server is one of them.
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

// place finds the cluster of dir, or decides where it is to be made.
func place(ctx context.Context, dir string, say func(string, ...any)) (*cluster, error) {
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
		return c, c.placeElsewhere(say)
	case err != nil:
		return nil, err
	case info.Mode().Type() == fs.ModeSymlink:
		if c.data, err = follow(path); err != nil {
			return nil, err
		}
		if _, err := os.Stat(c.data); errors.Is(err, fs.ErrNotExist) {
			return c, nil // linked, and then interrupted before it was made
		}
	}

	version, err := os.ReadFile(filepath.Join(c.data, "PG_VERSION"))
	if err != nil {
		return nil, fmt.Errorf("%s is no PostgreSQL data directory: %w", c.data, err)
	}
	if c.major, err = strconv.Atoi(strings.TrimSpace(string(version))); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(c.data, "PG_VERSION"), err)
	}
	if owner, _ := ownerOf(c.data); account != nil && owner == 0 {
		// Copied or restored by root; postgres serves only what belongs to the user it runs as.
		if err := account.ownAll(c.data); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// placeElsewhere chooses a folder that the account can reach, and links to it. The link comes first: a folder without a link to
// it could not be found again.
func (c *cluster) placeElsewhere(say func(string, ...any)) error {
	if err := makePassable(elsewhere); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	hash := sha256.Sum256([]byte(c.dir))
	base := filepath.Join(elsewhere, hex.EncodeToString(hash[:8]))
	home := base
	for n := 2; ; n++ {
		err := makePassable(home)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
		say("%s holds the data of an earlier %s; it is left alone, remove it when nobody needs it", home, c.dir)
		home = base + "-" + strconv.Itoa(n)
	}
	say("PostgreSQL will run as %s, who cannot reach %s: its data goes to %s", c.account.name, c.dir, home)
	c.data = filepath.Join(home, "data")
	if err := os.Symlink(c.data, filepath.Join(c.dir, "data")); err != nil {
		return err
	}
	return syncDir(c.dir)
}

// makePassable makes a folder through which everybody may pass, whatever our umask says.
func makePassable(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	return os.Chmod(dir, 0o711)
}

// follow resolves the link to a data directory. That itself may be missing; the folder it is in may not: then the data was
// moved or its disk is away, and an empty cluster in its place would hide that.
func follow(link string) (string, error) {
	target, err := os.Readlink(link)
	if err != nil {
		return "", err
	}
	if !filepath.IsAbs(target) {
		target = filepath.Join(filepath.Dir(link), target)
	}
	home, err := filepath.EvalSymlinks(filepath.Dir(target))
	if err != nil {
		return "", fmt.Errorf("%s links to %s, which is not there; bring it back, or remove the link to start afresh", link, target)
	}
	return filepath.Join(home, filepath.Base(target)), nil
}

// initialize makes the cluster: initdb into a folder beside, the password into its file, and only then the name by which the
// next Start takes the data for whole. hurry leaves out the fsync of some thousand files (for a server that runs without it).
func (c *cluster) initialize(ctx context.Context, bin bins, hurry bool, held *lock) error {
	unfinished, passwordOnce := c.data+".new", c.data+".password"
	if err := os.RemoveAll(unfinished); err != nil {
		return err
	}
	password := rand.Text()
	if err := writeFile(passwordOnce, password+"\n"); err != nil {
		return err
	}
	defer os.Remove(passwordOnce)

	// C.UTF-8 is not on every system (macOS, old ones); C is, and nothing here sorts or classifies by the locale.
	var failure error
	for _, locale := range []string{"C.UTF-8", "C"} {
		if err := os.RemoveAll(unfinished); err != nil {
			return err
		}
		if err := os.Mkdir(unfinished, 0o700); err != nil {
			return err
		}
		if err := c.account.own(unfinished, passwordOnce); err != nil {
			return err
		}
		arguments := []string{
			"--pgdata=" + unfinished, "--username=" + superuser, "--pwfile=" + passwordOnce,
			"--encoding=UTF8", "--locale=" + locale, "--auth=scram-sha-256",
		}
		if hurry {
			arguments = append(arguments, "--no-sync")
		}
		initdb := c.account.command(ctx, filepath.Join(bin.dir, "initdb"), arguments...)
		initdb.ExtraFiles = []*os.File{held.file} // should we be killed now, the next Start waits for its end
		var output bytes.Buffer
		initdb.Stdout, initdb.Stderr = &output, &output
		if failure = initdb.Run(); failure == nil {
			break
		}
		if ctx.Err() != nil {
			return fmt.Errorf("initdb: %w", context.Cause(ctx))
		}
		failure = fmt.Errorf("initdb: %w%s", failure, tail(output.String()))
	}
	if failure != nil {
		return failure
	}

	if err := writePassword(c.dir, password); err != nil {
		return err
	}
	if err := os.Rename(unfinished, c.data); err != nil {
		return err
	}
	c.major = bin.major
	return syncDir(filepath.Dir(c.data))
}

// dropStalePid removes a postmaster.pid whose process is gone. PostgreSQL does so itself, unless the number has meanwhile gone
// to another process of the same user: then it would refuse to start for as long as that one lives.
func (c *cluster) dropStalePid(ctx context.Context) error {
	pid, err := postmasterPid(c.data)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && isAlive(pid) {
		switch at := c.account.workingDir(ctx, pid); at {
		case "": // cannot be seen: PostgreSQL's own check decides
			return nil
		case c.data: // a postmaster works in its data directory; this one was not started by us
			return &RunningError{Dir: c.dir, Pid: pid}
		}
	}
	return os.Remove(filepath.Join(c.data, "postmaster.pid"))
}

// postmasterPid reads the first line of postmaster.pid.
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

// workingDir is the folder in which a process of the account works, "" when that cannot be seen.
//
// It is the account that looks: root without all of its rights (in a container, usually) may not see it of others.
func (a *account) workingDir(ctx context.Context, pid int) string {
	// macOS has lsof instead of /proc.
	look := a.command(ctx, "/bin/sh", "-c", `readlink "/proc/$0/cwd" || lsof -a -p "$0" -d cwd -Fn | sed -n 's/^n//p'`, strconv.Itoa(pid))
	output, _ := look.Output()
	return strings.TrimSuffix(string(output), "\n")
}

// socketPrefix is how the paths of sockets' folders begin. They are not under $TMPDIR, whose path may be too long.
const socketPrefix = "/tmp/localpg-"

// makeSocketDir makes the folder of the unix socket, for the account alone.
func (c *cluster) makeSocketDir() (string, error) {
	dir, err := os.MkdirTemp(filepath.Split(socketPrefix))
	if err != nil {
		return "", err
	}
	return dir, c.account.own(dir)
}

// Remove ends the server of the cluster in dir, whichever process started it, as Kill does, and removes the cluster with all of
// its data. A dir that is not there is fine.
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
	held, err := acquire(ctx, dir)
	if errors.Is(err, ErrRunning) {
		held, err = evict(ctx, dir)
	}
	if err != nil {
		return err
	}
	defer held.close()
	held.dropStaleSockets()

	path := filepath.Join(dir, "data")
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() == fs.ModeSymlink {
		if data, err := follow(path); err == nil {
			home := data
			if filepath.Dir(filepath.Dir(data)) == elsewhere {
				home = filepath.Dir(data) // made by placeElsewhere
			}
			if err := os.RemoveAll(home); err != nil {
				return err
			}
		}
	}
	return os.RemoveAll(dir)
}

// evict ends a server that somebody else answers for, and takes the lock from it.
func evict(ctx context.Context, dir string) (*lock, error) {
	file, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	now := readState(file)
	if err := endPostmaster(ctx, filepath.Join(dir, "data"), now.Postmaster); err != nil {
		_ = file.Close()
		return nil, err
	}
	for {
		if err := flock(file, syscall.LOCK_EX); err == nil {
			return &lock{file: file, last: now, shares: 1}, nil
		}
		select {
		case <-ctx.Done():
			_ = file.Close()
			return nil, context.Cause(ctx)
		case <-pause():
		}
	}
}

// endPostmaster ends the server of data as Kill does, when pid is surely its postmaster: a postmaster works in its data
// directory.
func endPostmaster(ctx context.Context, path string, pid int) error {
	data, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	account, err := serverAccount(data)
	if err != nil {
		return err
	}
	if !isAlive(pid) || account.workingDir(ctx, pid) != data {
		return fmt.Errorf("something works on %s, and it is not seen to be process %d", data, pid)
	}
	return syscall.Kill(pid, syscall.SIGQUIT)
}

// writeFile replaces path by a file with text that only we may read, durably: never half of it, never none of it.
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
