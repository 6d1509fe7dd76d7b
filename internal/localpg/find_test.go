package localpg

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

// lookIn makes patterns, and an empty downloadDir, the only places with an installation.
func lookIn(t *testing.T, patterns ...string) {
	t.Helper()
	savedPatterns, savedDownloadDir := searchPatterns, downloadDir
	t.Cleanup(func() { searchPatterns, downloadDir = savedPatterns, savedDownloadDir })
	searchPatterns, downloadDir = patterns, filepath.Join(newDir(t), "downloads")
	t.Setenv("PATH", t.TempDir())
}

// versions returns a directory with one fake installation for each version, which can only print
// its version.
func versions(t *testing.T, names ...string) string {
	t.Helper()
	base := newDir(t)
	for _, name := range names {
		bin := filepath.Join(base, name, "bin")
		must(t, os.MkdirAll(bin, 0o755))
		script(t, bin, "initdb", "exit 1")
		script(t, bin, "postgres", "echo 'postgres (PostgreSQL) "+name+" (Debian)'")
	}
	return base
}

// finder returns a cluster of a major version that has not been started, and its log.
func finder(t *testing.T, major int) (c *cluster, log *bytes.Buffer) {
	t.Helper()
	account, err := serverAccount("")
	must(t, err)
	log = &bytes.Buffer{}
	return &cluster{account: account, major: major, data: "/the/data", log: log}, log
}

func TestFindInstallation(t *testing.T) {
	first, second := versions(t, "9.6.24", "15.4", "16.1"), versions(t, "14.2", "18beta1", "17.0")
	lookIn(t, filepath.Join(first, "*", "bin"), filepath.Join(second, "*", "bin"))
	onPath := t.TempDir() // a link to a program, without the other programs
	must(t, os.Symlink(filepath.Join(first, "16.1", "bin", "postgres"), filepath.Join(onPath, "postgres")))
	t.Setenv("PATH", onPath)
	for major, version := range map[int]string{0: "16.1", 15: "15.4", 18: "18beta1"} {
		c, _ := finder(t, major)
		if found, err := c.findInstallation(t.Context()); err != nil || found.version != version {
			t.Errorf("for a cluster of version %d: got %+v, %v; want version %s", major, found, err, version)
		}
	}
	t.Setenv("PATH", t.TempDir())
	c, log := finder(t, 0)
	if found, err := c.findInstallation(t.Context()); err != nil || found.version != "18beta1" {
		t.Errorf("without one on PATH: got %+v, %v; want the newest", found, err)
	}
	c.major = 13
	_, err := c.findInstallation(t.Context())
	wantError(t, err, "/the/data was created by PostgreSQL 13: install that version", "apt-get install postgresql-13")
	if log.Len() != 0 {
		t.Error("PostgreSQL was downloaded for an existing cluster")
	}
}

// archive is like the archives that embedded-postgres downloads, with scripts that run the programs
// in $LOCALPG_TEST_BIN. It was made by
//
//	printf '#!/bin/sh\nexec "$LOCALPG_TEST_BIN/initdb" "$@"\n' >bin/initdb
//	# likewise for pg_ctl and postgres
//	chmod 755 bin/*
//	tar --owner=0 --group=0 --numeric-owner --mtime=2026-01-01 --sort=name -cf - bin | xz -9
//
//go:embed testdata/postgres.txz
var archive []byte

// mavenRepository starts a Maven repository with the archive. It counts the downloads.
func mavenRepository(t *testing.T) *atomic.Int32 {
	t.Helper()
	var jar bytes.Buffer
	files := zip.NewWriter(&jar)
	file, err := files.Create("postgres-linux-x86_64.txz")
	must(t, err)
	_, err = file.Write(archive)
	must(t, err)
	must(t, files.Close())
	sum := sha256.Sum256(jar.Bytes())

	var downloads atomic.Int32
	serveDownloads(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case !strings.Contains(r.URL.Path, "/"+string(downloadVersion)+"/"):
			http.NotFound(w, r)
		case strings.HasSuffix(r.URL.Path, ".sha256"):
			_, _ = w.Write([]byte(hex.EncodeToString(sum[:])))
		default:
			downloads.Add(1)
			_, _ = w.Write(jar.Bytes())
		}
	})
	return &downloads
}

func serveDownloads(t *testing.T, handler http.HandlerFunc) {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	saved := downloadURL
	t.Cleanup(func() { downloadURL = saved })
	downloadURL = server.URL
}

// Several processes without PostgreSQL download it once.
func TestDownload(t *testing.T) {
	machine, err := realInstallation()
	must(t, err)
	o := fast(newCluster(t))
	lookIn(t)
	t.Setenv("LOCALPG_TEST_BIN", machine.dir)
	downloads := mavenRepository(t)

	c, log := finder(t, 0)
	errs := make(chan error)
	for range 3 {
		go func() {
			found, err := c.findInstallation(t.Context())
			if err == nil && found.dir != filepath.Join(downloadDir, string(downloadVersion), "bin") {
				err = errors.New("found " + found.dir)
			}
			errs <- err
		}()
	}
	for range 3 {
		must(t, <-errs)
	}
	if downloads.Load() != 1 || strings.Count(log.String(), "\n") != 1 {
		t.Errorf("downloaded %d times, want once; log: %s", downloads.Load(), log)
	}
	leftovers, err := filepath.Glob(filepath.Join(downloadDir, ".download-*"))
	if err != nil || leftovers != nil {
		t.Errorf("temporary directories are left: %v %v", leftovers, err)
	}
	startWith(t, o)
}

func TestDownload_fails(t *testing.T) {
	lookIn(t)
	serveDownloads(t, http.NotFound)
	c, _ := finder(t, 0)
	_, err := c.findInstallation(t.Context())
	wantError(t, err, "PostgreSQL 15 or newer is required", "apt-get install postgresql", "brew install", "no version found")
}

// A download needs a private directory, and so HOME. Programs in a directory of another
// user, or that another user can write to, are not run.
func TestDownload_privateDir(t *testing.T) {
	lookIn(t)
	t.Setenv("HOME", "")
	t.Setenv("XDG_CACHE_HOME", "")
	want := ""
	if os.Geteuid() == 0 {
		want = "/var/cache/coupond/postgresql"
	}
	if got := userCacheDir(); got != want {
		t.Errorf("userCacheDir without HOME: %q, want %q", got, want)
	}

	ran := filepath.Join(newDir(t), "ran")
	c, _ := finder(t, 0)
	c.account = nil
	for _, test := range []struct {
		mode  fs.FileMode
		owner int
	}{{0o777, os.Geteuid()}, {0o775, os.Geteuid()}, {0o755, 4242}} {
		if test.owner != os.Geteuid() && os.Geteuid() != 0 {
			continue // only root can give a directory away
		}
		downloadDir = filepath.Join(newDir(t), "downloads")
		bin := filepath.Join(downloadDir, "17.0.0", "bin")
		must(t, os.MkdirAll(bin, 0o755))
		script(t, bin, "initdb", "")
		script(t, bin, "postgres", "echo >"+ran+"; echo 'postgres (PostgreSQL) 17.0'")
		must(t, os.Chmod(downloadDir, test.mode))
		must(t, os.Chown(downloadDir, test.owner, -1))
		_, err := c.findInstallation(t.Context())
		wantError(t, err, "another user may have put programs into it; remove it", downloadDir)
		if exists(ran) {
			t.Errorf("mode %o, owner %d: the programs were run", test.mode, test.owner)
		}
	}

	downloadDir = ""
	_, err := c.findInstallation(t.Context())
	wantError(t, err, "PostgreSQL 15 or newer is required", "without HOME")
}
