package localpg

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
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

// findInstallation returns the installation to use: that of binDir, of PATH, or else the newest
// that searchPatterns match, or that was downloaded. Without a suitable one it downloads one,
// unless the cluster exists already and needs a certain version: then the user has to decide how to
// read the old data.
func (c *cluster) findInstallation(ctx context.Context, binDir string) (installation, error) {
	if binDir != "" {
		found, err := c.inspect(ctx, binDir)
		if err == nil && !c.fits(found) {
			err = c.mismatch(found)
		}
		return found, errors.Join(err, context.Cause(ctx))
	}
	found, other := c.search(ctx)
	switch {
	case ctx.Err() != nil: // the search may be incomplete
		return installation{}, context.Cause(ctx)
	case found.dir != "":
		return found, nil
	case c.major != 0:
		return installation{}, c.mismatch(other)
	}
	err := c.download(ctx)
	if found, _ = c.search(ctx); found.dir == "" {
		err = errors.Join(err, context.Cause(ctx))
		return found, fmt.Errorf("PostgreSQL %d or newer is not installed (Debian, Ubuntu: apt-get install postgresql;"+
			" macOS: brew install postgresql@17), and no download that runs on this machine was possible: %w", oldestMajor, err)
	}
	return found, nil
}

// search returns the installation to use, and the newest that is not suitable.
func (c *cluster) search(ctx context.Context) (found, other installation) {
	var dirs []string
	for _, pattern := range searchPatterns {
		matches, _ := filepath.Glob(pattern) // fails only for a malformed pattern
		dirs = append(dirs, matches...)
	}
	if checkDownloadDir() == nil {
		matches, _ := filepath.Glob(filepath.Join(downloadDir, "*", "bin"))
		dirs = append(dirs, matches...)
	}
	if postgres, err := exec.LookPath("postgres"); err == nil {
		// A link may be alone in its directory; psql and the others are where it leads.
		if linked, err := filepath.EvalSymlinks(postgres); err == nil {
			postgres = linked
		}
		if pg, err := c.inspect(ctx, filepath.Dir(postgres)); err == nil && c.fits(pg) {
			return pg, other
		}
	}
	for _, dir := range dirs {
		pg, err := c.inspect(ctx, dir)
		switch {
		case err != nil: // not a working installation: try the next directory
		case c.fits(pg) && pg.major > found.major:
			found = pg
		case !c.fits(pg) && pg.major > other.major:
			other = pg
		}
	}
	return found, other
}

func (c *cluster) fits(pg installation) bool {
	return pg.major >= oldestMajor && (c.major == 0 || c.major == pg.major)
}

// mismatch returns the error for an installation that is not suitable. The zero installation means
// that none was found.
func (c *cluster) mismatch(found installation) error {
	if c.major == 0 {
		return fmt.Errorf("PostgreSQL %s in %s is too old: version %d or newer is required", found.version, found.dir, oldestMajor)
	}
	installed := "no PostgreSQL is installed on this machine"
	if found.dir != "" {
		installed = fmt.Sprintf("the installed version is %s (in %s)", found.version, found.dir)
	}
	return fmt.Errorf("%s was created by PostgreSQL %d, and %s: install version %[2]d (Debian, Ubuntu: apt-get install postgresql-%[2]d),"+
		" or move %[1]s away to start with a new cluster", c.data, c.major, installed)
}

var versionPattern = regexp.MustCompile(`\(PostgreSQL\) ((\d+)\S*)`)

// inspect runs postgres --version as the account that will run the server. This shows that the
// programs exist, that the account may run them, and that they are built for this machine.
func (c *cluster) inspect(ctx context.Context, dir string) (installation, error) {
	if _, err := os.Stat(filepath.Join(dir, "initdb")); err != nil {
		return installation{}, err
	}
	postgres := filepath.Join(dir, "postgres")
	output, err := c.account.command(ctx, postgres, "--version").Output()
	if err != nil {
		return installation{}, fmt.Errorf("%s --version: %w", postgres, err)
	}
	match := versionPattern.FindStringSubmatch(string(output))
	if match == nil {
		return installation{}, fmt.Errorf("%s --version printed %q, which is not a PostgreSQL version", postgres, output)
	}
	major, err := strconv.Atoi(match[2])
	return installation{dir: dir, version: match[1], major: major}, err
}
