package db

import (
	"context"
	_ "embed"
	"fmt"
	"io/fs"

	"github.com/jackc/tern/v2/migrate"
)

//go:embed script.psql
var script string

// Script returns one script for psql that does what Apply does, without other files or Go. Like
// Apply, it does only what is missing, can be run again, and refuses a newer schema. Unlike Apply,
// it does not wait for a lock again. It uses psql's \if, so only psql can run it.
func Script() (string, error) { return scriptOf(files) }

func scriptOf(files fs.FS) (string, error) {
	// Without a connection, the migrator can only load files.
	migrator, err := migrate.NewMigrator(context.Background(), nil, versionTable)
	if err != nil {
		return "", err
	}
	if err := loadMigrations(migrator, files); err != nil {
		return "", err
	}
	code, err := loadFunctions(files, "functions")
	if err != nil {
		return "", err
	}
	install, err := code.Eval(nil)
	if err != nil {
		return "", fmt.Errorf("load functions: %w", err)
	}
	pins, err := pinsScript(defaultLockTimeout)
	if err != nil {
		return "", err
	}
	prepare, err := prepareScript(files, prepareData{Version: version(files), Program: "script"})
	if err != nil {
		return "", err
	}
	return execute(script, map[string]any{
		"Pins":         pins,
		"LockTimeout":  defaultLockTimeout.Milliseconds(),
		"Prepare":      prepare,
		"Migrations":   migrator.Migrations,
		"Functions":    install,
		"Version":      version(files),
		"VersionTable": versionTable,
		"Lock":         applyLock,
		"OldestServer": oldestServer,
	})
}
