package db_test

import (
	"io/fs"
	"strings"
	"testing"

	"scalable-coupon-system/db"
)

// The script for psql is made of the same files, whole, the migrations in their order and then the functions. (That it does the
// same is tried with psql, in docs/dba.)
func TestScriptHasEveryFile(t *testing.T) {
	t.Parallel()
	script, err := db.Script()
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	for _, pattern := range []string{"migrations/*.sql", "functions/*.sql"} {
		found, err := fs.Glob(db.Files, pattern)
		if err != nil || len(found) < 3 {
			t.Fatalf("%s: %v %v", pattern, found, err)
		}
		paths = append(paths, found...)
	}
	last := 0
	for _, path := range paths {
		text, err := fs.ReadFile(db.Files, path)
		if err != nil {
			t.Fatal(err)
		}
		at := strings.Index(script, strings.TrimSpace(string(text)))
		switch {
		case path == "functions/install.sql": // the list of them
		case at < 0:
			t.Errorf("the script has not all of %s", path)
		case strings.HasPrefix(path, "migrations/"):
			if at < last {
				t.Errorf("%s comes too early", path)
			}
			last = at
		case at < last:
			t.Errorf("%s comes before a migration", path)
		}
	}
	if strings.Contains(script, "{{") {
		t.Error("the script has something of its template")
	}
}
