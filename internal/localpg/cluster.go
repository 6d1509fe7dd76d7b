package localpg

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

const pidFile = "postmaster.pid"

// fallbackDir holds the data of root's clusters if the server's account cannot enter their Dir.
// Tests replace it.
var fallbackDir = "/var/lib/coupond"

// cluster is the cluster of a Dir, locked by this process.
type cluster struct {
	dir     string   // its home directory, as an absolute path
	data    string   // its data directory, with links resolved
	major   int      // the PostgreSQL version that created it; 0: not created yet
	account *account // runs the server
	log     io.Writer

	owner, running *os.File // see lock
}

// openCluster locks the cluster in o.Dir. If there is none, it decides where the data directory
// will be created.
func openCluster(ctx context.Context, o Options) (_ *cluster, err error) {
	mode := fs.FileMode(0o700)
	if os.Geteuid() == 0 {
		mode = 0o711 // the server runs as another user
	}
	if err := os.MkdirAll(o.Dir, mode); err != nil {
		return nil, err
	}
	c := &cluster{log: cmp.Or(o.Log, io.Discard)}
	if c.dir, err = filepath.Abs(o.Dir); err != nil {
		return nil, err
	}
	if c.dir, err = filepath.EvalSymlinks(c.dir); err != nil {
		return nil, err
	}
	if err := c.lock(ctx); err != nil {
		return nil, err
	}
	if err := c.findData(ctx); err != nil {
		c.unlock()
		return nil, err
	}
	return c, nil
}

func (c *cluster) logf(format string, args ...any) {
	_, _ = fmt.Fprintf(c.log, format+"\n", args...)
}

// findData sets data, major and account.
func (c *cluster) findData(ctx context.Context) (err error) {
	path := filepath.Join(c.dir, "data")
	if c.account, err = serverAccount(path); err != nil {
		return err
	}
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		c.data = path
		if c.account.canEnter(ctx, c.dir) {
			return nil
		}
		return c.useFallbackDir()
	}
	if c.data, err = filepath.EvalSymlinks(path); err != nil {
		return fmt.Errorf("%s links to a directory that does not exist: restore it, or remove the link to start with a new cluster: %w", path, err)
	}
	version, err := os.ReadFile(filepath.Join(c.data, "PG_VERSION"))
	if err == nil {
		c.major, err = strconv.Atoi(strings.TrimSpace(string(version)))
	}
	if err != nil {
		return fmt.Errorf("%s is not a PostgreSQL data directory: %w", c.data, err)
	}
	return nil
}

// useFallbackDir creates a directory below fallbackDir for the data.
func (c *cluster) useFallbackDir() error {
	if err := os.MkdirAll(fallbackDir, 0o711); err != nil {
		return err
	}
	home, err := os.MkdirTemp(fallbackDir, "cluster-")
	if err != nil {
		return err
	}
	c.data = filepath.Join(home, "data")
	c.logf("PostgreSQL will run as %s, which cannot enter %s: its data will be in %s", userName(c.account.uid), c.dir, home)
	// Whatever the umask is.
	return errors.Join(os.Chmod(fallbackDir, 0o711), os.Chmod(home, 0o711))
}

const (
	superuser    = "postgres" // of new clusters
	passwordFile = "pgpass"
	anyDatabase  = "*:*:*:" // begins a line of libpq's password file: any host, port and database
)

// readLogin returns the name and the password of the superuser.
func readLogin(dir string) (*url.Userinfo, error) {
	path := filepath.Join(dir, passwordFile)
	text, err := os.ReadFile(path)
	line, isLogin := strings.CutPrefix(strings.TrimSpace(string(text)), anyDatabase)
	user, password, hasPassword := strings.Cut(line, ":")
	if err == nil && (!isLogin || !hasPassword) {
		err = fmt.Errorf("it has no line %s<user>:<password>", anyDatabase)
	}
	if err != nil {
		return nil, fmt.Errorf("the cluster cannot be used without the password in %s; restore the file, or remove %s"+
			" to start with a new cluster: %w", path, dir, err)
	}
	return url.UserPassword(user, password), nil
}

// initialize creates the cluster: initdb in a directory beside it, then the password file, then the
// rename, and the link if there is one. The last of them makes the cluster exist.
func (c *cluster) initialize(ctx context.Context, pg installation, o Options) error {
	password := rand.Text()
	newData, pwfile := c.data+".new", c.data+".password"
	defer func() { _ = os.Remove(pwfile) }()
	err := errors.Join(
		os.RemoveAll(newData), os.Mkdir(newData, 0o700), c.account.chown(newData),
		writeFile(pwfile, password+"\n"), c.account.chown(pwfile))
	if err != nil {
		return err
	}
	arguments := []string{
		"--pgdata=" + newData, "--username=" + superuser, "--pwfile=" + pwfile,
		"--encoding=UTF8", "--locale=C", "--auth=scram-sha-256",
	}
	if o.Settings["fsync"] == "off" {
		arguments = append(arguments, "--no-sync")
	}
	initdb := c.account.command(ctx, filepath.Join(pg.dir, "initdb"), arguments...)
	initdb.ExtraFiles = []*os.File{c.running} // if this process is killed, the next Start waits for initdb to end
	if output, err := initdb.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w%s", err, lastLines(string(output)))
	}

	if err := writeFile(filepath.Join(c.dir, passwordFile), anyDatabase+superuser+":"+password+"\n"); err != nil {
		return err
	}
	if err := os.Rename(newData, c.data); err != nil {
		return err
	}
	if link := filepath.Join(c.dir, "data"); link != c.data {
		return os.Symlink(c.data, link)
	}
	return nil
}

// removeStalePid removes the postmaster.pid of a process that has ended. PostgreSQL does this
// itself, unless another process of the same user has that process ID now, as after a restart of
// the machine: then it refuses to start. A process that works in the data directory is a postmaster
// that was started by hand; it is left to PostgreSQL's own check. It returns the content of the
// file.
func (c *cluster) removeStalePid(ctx context.Context) (stale string, err error) {
	path := filepath.Join(c.data, pidFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	pid, _, _ := strings.Cut(string(text), "\n")
	// As the account, because root without all capabilities, as in a container, may not read the
	// working directory of other users' processes. macOS has lsof instead of /proc.
	at, _ := c.account.command(ctx, "/bin/sh", "-c",
		`readlink "/proc/$0/cwd" || lsof -a -p "$0" -d cwd -Fn | sed -n 's/^n//p'`, pid).Output()
	if dir := strings.TrimSuffix(string(at), "\n"); dir != "" && dir != c.data {
		err = os.Remove(path)
	}
	return string(text), err
}

// Remove removes dir with the cluster in it, and its data if they are in fallbackDir. If its server
// is just ending with its process, Remove waits. It returns nil if dir does not exist.
func Remove(ctx context.Context, dir string) error {
	running, err := lockFile(ctx, filepath.Join(dir, runningFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	data, missing := filepath.EvalSymlinks(filepath.Join(dir, "data"))
	if home := filepath.Dir(data); missing == nil && filepath.Dir(home) == fallbackDir {
		err = os.RemoveAll(home)
	}
	return errors.Join(err, os.RemoveAll(dir), running.Close())
}

// writeFile creates a file that only the current user may read. It follows no link, and replaces a
// file of another user.
func writeFile(path, text string) error {
	_ = os.Remove(path) // fails if there is none
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = file.WriteString(text)
	return errors.Join(err, file.Sync(), file.Close())
}
