package db

import (
	"context"
	_ "embed"
	"fmt"
	"io/fs"
	"strings"
	"text/template"

	"github.com/jackc/tern/v2/migrate"
)

//go:embed script.psql
var script string

// Script returns one script for psql that does what Apply does, without other files or Go. Like
// Apply, it does only what is missing, can be run again, and refuses a newer schema. It uses psql's
// \if, so only psql can run it.
func Script() (string, error) {
	migrations, err := fs.Sub(files, "migrations")
	if err != nil {
		return "", err
	}
	// Without a connection, the migrator can only load files.
	migrator, err := migrate.NewMigrator(context.Background(), nil, versionTable)
	if err != nil {
		return "", err
	}
	if err := migrator.LoadMigrations(migrations); err != nil {
		return "", fmt.Errorf("load migrations: %w", err)
	}
	code, err := loadFunctions(files, "functions")
	if err != nil {
		return "", err
	}
	install, err := code.Eval(nil)
	if err != nil {
		return "", fmt.Errorf("load functions: %w", err)
	}

	var text strings.Builder
	err = template.Must(template.New("script").Parse(script)).Execute(&text, map[string]any{
		"Migrations":   migrator.Migrations,
		"Functions":    install,
		"Version":      version(files),
		"VersionTable": versionTable,
		"Lock":         applyLock,
		"OldestServer": oldestServer,
	})
	return text.String(), err
}
