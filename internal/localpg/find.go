package localpg

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
)

// oldestMajor is the oldest supported major version of PostgreSQL.
const oldestMajor = 15

// installation is a PostgreSQL installation: a directory with initdb and postgres.
type installation struct {
	dir     string
	version string // "15.18"
	major   int
}

// searchPatterns match the directories where systems install PostgreSQL, besides that of postgres
// on PATH. Tests replace it.
var searchPatterns = []string{
	"/usr/lib/postgresql/*/bin",            // Debian, Ubuntu
	"/usr/pgsql-*/bin",                     // PostgreSQL's own RPMs
	"/opt/homebrew/opt/postgresql*/bin",    // Homebrew on Apple silicon
	"/usr/local/opt/postgresql*/bin",       // Homebrew on Intel
	"/Applications/Postgres.app/*/*/*/bin", // Contents/Versions/17/bin
}

// findInstallation returns the installation to use: that of PATH, or else the newest that
// searchPatterns match, or that was downloaded. Without a suitable one it downloads one, unless the
// cluster exists already and needs a certain version: then the user has to decide how to read the
// old data.
func (c *cluster) findInstallation(ctx context.Context) (installation, error) {
	found := c.search(ctx)
	switch {
	case ctx.Err() != nil: // the search may be incomplete
		return installation{}, ctx.Err()
	case found.dir != "":
		return found, nil
	case c.major != 0:
		return installation{}, c.errRequired()
	}
	err := c.download(ctx)
	if found = c.search(ctx); found.dir == "" {
		return found, fmt.Errorf("%w; found none, and no download that runs on this machine was possible: %w", c.errRequired(), err)
	}
	return found, nil
}

// search returns the installation to use, or the zero value.
func (c *cluster) search(ctx context.Context) (newest installation) {
	if postgres, err := exec.LookPath("postgres"); err == nil {
		// A link may be alone in its directory; psql and the others are where it leads.
		if linked, err := filepath.EvalSymlinks(postgres); err == nil {
			postgres = linked
		}
		if found, ok := c.inspect(ctx, filepath.Dir(postgres)); ok {
			return found
		}
	}
	patterns := searchPatterns
	if checkDownloadDir() == nil {
		patterns = append(slices.Clip(patterns), filepath.Join(downloadDir, "*", "bin"))
	}
	for _, pattern := range patterns {
		dirs, _ := filepath.Glob(pattern) // fails only for a malformed pattern
		for _, dir := range dirs {
			if found, ok := c.inspect(ctx, dir); ok && found.major > newest.major {
				newest = found
			}
		}
	}
	return newest
}

// errRequired says which version must be installed.
func (c *cluster) errRequired() error {
	if c.major == 0 {
		return fmt.Errorf("PostgreSQL %d or newer is required (Debian, Ubuntu: apt-get install postgresql;"+
			" macOS: brew install postgresql@17)", oldestMajor)
	}
	return fmt.Errorf("%s was created by PostgreSQL %d: install that version (Debian, Ubuntu: apt-get install postgresql-%[2]d),"+
		" or move %[1]s away to start with a new cluster", c.data, c.major)
}

var versionPattern = regexp.MustCompile(`\(PostgreSQL\) ((\d+)\S*)`)

// inspect returns the installation in dir, and whether the cluster can use it. It runs postgres
// --version as the account that will run the server. This shows that the programs exist, that the
// account may run them, and that they are built for this machine.
func (c *cluster) inspect(ctx context.Context, dir string) (found installation, ok bool) {
	if _, err := os.Stat(filepath.Join(dir, "initdb")); err != nil {
		return installation{}, false
	}
	output, err := c.account.command(ctx, filepath.Join(dir, "postgres"), "--version").Output()
	match := versionPattern.FindStringSubmatch(string(output))
	if err != nil || match == nil {
		return installation{}, false
	}
	major, err := strconv.Atoi(match[2])
	ok = err == nil && major >= oldestMajor && (c.major == 0 || c.major == major)
	return installation{dir: dir, version: match[1], major: major}, ok
}
