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

// downloadVersion is the PostgreSQL version to download. Its major version is that of
// docker-compose.yml.
const downloadVersion = embeddedpostgres.V17

// downloadURL is the Maven repository of embedded-postgres; "" is the library's default. Tests
// replace it.
var downloadURL = ""

// install installs PostgreSQL on a machine that has none. For root on Debian and Ubuntu this is the
// distribution's server package, otherwise a download. Processes that do this at the same time,
// such as those of go test ./..., wait for the first one and use its result.
func (f finder) install(ctx context.Context) (installation, error) {
	if downloadDir == "" {
		return installation{}, fmt.Errorf("PostgreSQL %d or newer is not installed, and without HOME there is no private directory"+
			" for a download; set HOME, or %s", oldestMajor, installByHand)
	}
	if err := os.MkdirAll(downloadDir, 0o755); err != nil {
		return installation{}, err
	}
	if err := checkDownloadDir(); err != nil {
		return installation{}, err
	}
	file, err := os.OpenFile(filepath.Join(downloadDir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return installation{}, err
	}
	defer func() { _ = file.Close() }()
	for errors.Is(flock(file, syscall.LOCK_EX), syscall.EWOULDBLOCK) {
		select {
		case <-ctx.Done():
			return installation{}, context.Cause(ctx)
		case <-time.After(pollInterval):
		}
	}
	if found, _ := f.search(ctx); found.dir != "" {
		return found, nil
	}

	var failures []error
	for _, method := range []func(context.Context) error{f.installPackage, f.download} {
		err := method(ctx)
		if ctx.Err() != nil {
			return installation{}, context.Cause(ctx)
		}
		if err == nil {
			if found, _ := f.search(ctx); found.dir != "" {
				return found, nil
			}
			err = errors.New("the installed PostgreSQL does not run on this machine")
		}
		if !errors.Is(err, errors.ErrUnsupported) {
			f.logf("%v", err)
			failures = append(failures, err)
		}
	}
	return installation{}, fmt.Errorf("PostgreSQL %d or newer is not installed, and installing it failed; %s: %w",
		oldestMajor, installByHand, errors.Join(failures...))
}

const installByHand = "install the PostgreSQL server (Debian, Ubuntu: apt-get install postgresql; macOS: brew install postgresql@17)"

// createClusterConf is a configuration file that Debian's postgresql-common reads when a server
// package is installed. Tests replace it.
var createClusterConf = "/etc/postgresql-common/createcluster.d/coupond.conf"

var serverPackage = regexp.MustCompile(`(?m)^Depends:.*\b(postgresql-(\d+))\b`)

// installPackage installs the server package of Debian or Ubuntu, without the default cluster on
// port 5432. It does not install the metapackage postgresql, which can change the major version in
// a system upgrade.
func (f finder) installPackage(ctx context.Context) error {
	if _, err := exec.LookPath("apt-get"); err != nil || os.Geteuid() != 0 {
		return errors.ErrUnsupported
	}
	f.logf("no PostgreSQL server found: installing the distribution's package with apt-get, without a default cluster")

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
		if err := aptGet(ctx, "update"); err != nil {
			return err
		}
		name, major = offered()
	}
	switch {
	case name == "":
		return errors.New("apt-get has no package postgresql")
	case major < oldestMajor:
		return fmt.Errorf("apt-get offers %s, and version %d or newer is required", name, oldestMajor)
	}

	install := func() error {
		if err := aptGet(ctx, "install", "postgresql-common"); err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(createClusterConf), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(createClusterConf, []byte("create_main_cluster = false\n"), 0o644); err != nil {
			return err
		}
		// Later installations by the user keep Debian's default.
		defer func() { _ = os.Remove(createClusterConf) }()
		return aptGet(ctx, "install", name)
	}
	err := install()
	if err != nil && aptGet(ctx, "update") == nil { // the package lists may be out of date
		err = install()
	}
	if err == nil {
		f.logf("installed %s", name)
	}
	return err
}

// aptGet runs apt-get. If another apt-get is running, it waits up to 5 minutes.
func aptGet(ctx context.Context, command string, packages ...string) error {
	arguments := append([]string{"-q", "-y", "-o", "DPkg::Lock::Timeout=300", "--no-install-recommends", command}, packages...)
	var currentUser *account
	cmd := currentUser.command(ctx, "apt-get", arguments...)
	cmd.Env = append(cmd.Env, "DEBIAN_FRONTEND=noninteractive")
	// Signal apt-get only: killing its dpkg would leave a package half installed.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	output, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("apt-get %s: %w%s", strings.Join(append([]string{command}, packages...), " "), err, lastLines(string(output)))
	}
	return nil
}

// downloadDir contains a directory for each downloaded version; "" means that there is no place
// for one. Tests replace it.
var downloadDir = userCacheDir()

// userCacheDir returns our directory in the user's cache, or "" without HOME: the temporary
// directory would not do, because any user can put programs there. Root uses /var/cache, because
// the server's account cannot enter root's home directory.
func userCacheDir() string {
	if os.Geteuid() == 0 {
		return "/var/cache/coupond/postgresql"
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	return filepath.Join(cache, "coupond", "postgresql")
}

// checkDownloadDir returns an error if another user could have put programs into downloadDir.
func checkDownloadDir() error {
	info, err := os.Stat(downloadDir)
	if err != nil {
		return err
	}
	owner, _ := ownerOf(downloadDir)
	if (owner != 0 && int(owner) != os.Geteuid()) || info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s has mode %#o and belongs to %s, so another user may have put programs into it; remove it",
			downloadDir, info.Mode().Perm(), userName(owner))
	}
	return nil
}

// download lets embedded-postgres download its binaries (10 to 30 MB) and check their SHA-256.
//
// The library exports no function for the download alone, only Start, which downloads and then runs
// a server. So download starts and stops a server with a temporary cluster. Only the binaries
// matter, not whether that server started: as root it cannot, because embedded-postgres drops no
// privileges.
func (f finder) download(ctx context.Context) error {
	f.logf("no PostgreSQL server found: downloading PostgreSQL %s to %s (embedded-postgres)", downloadVersion, downloadDir)

	scratch, err := os.MkdirTemp(downloadDir, ".download-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(scratch) }()
	ports, err := candidatePorts(0, 0)
	if err != nil {
		return err
	}
	downloaded := filepath.Join(scratch, "postgresql")
	var output bytes.Buffer
	config := embeddedpostgres.DefaultConfig().
		Version(downloadVersion).
		CachePath(scratch).
		BinariesPath(downloaded).
		RuntimePath(filepath.Join(scratch, "run")).
		Port(uint32(ports[0])).
		Password(rand.Text()).
		StartParameters(map[string]string{"listen_addresses": "127.0.0.1", "unix_socket_directories": ""}).
		StartTimeout(time.Minute).
		Logger(&output)
	if downloadURL != "" {
		config = config.BinaryRepositoryURL(downloadURL)
	}

	// Start takes no context. When ctx ends, download returns, and Start fails in the removed
	// directory.
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
	if _, missing := os.Stat(filepath.Join(downloaded, "bin", "initdb")); missing != nil {
		return fmt.Errorf("download PostgreSQL %s: %w", downloadVersion, errors.Join(err, missing))
	}
	err = os.Rename(downloaded, filepath.Join(downloadDir, string(downloadVersion)))
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}
