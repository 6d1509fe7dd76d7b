package db_test

import (
	"io/fs"
	"strings"
	"testing"

	"scalable-coupon-system/db"
)

// The script for psql contains every file: the migrations in order, then the functions. (A test in
// test/handbook runs it with psql.)
func TestScript_containsEveryFile(t *testing.T) {
	t.Parallel()
	script, err := db.Script()
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	for _, pattern := range []string{"migrations/*.sql", "functions/*.sql"} {
		found, err := fs.Glob(db.Files, pattern)
		if err != nil || len(found) == 0 {
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
		case path == "functions/install.sql": // a template that lists the others
		case at < 0:
			t.Errorf("the script does not contain all of %s", path)
		case strings.HasPrefix(path, "migrations/"):
			if at < last {
				t.Errorf("%s comes before a migration with a lower number", path)
			}
			last = at
		case at < last:
			t.Errorf("%s comes before a migration", path)
		}
	}
	if strings.Contains(script, "{{") {
		t.Error("the script contains template syntax")
	}
}
