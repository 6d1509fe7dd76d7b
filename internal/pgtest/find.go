package pgtest

import (
	"context"
	"fmt"
	"os"

	"github.com/jackc/pgx/v5"
)

const (
	urlVariable   = "TEST_DATABASE_URL"
	imageVariable = "TEST_POSTGRES_IMAGE"
	defaultImage  = "postgres:17"
)

// settings are those of a server that only tests use: nothing on it is to survive a crash of the machine, and each of many
// parallel tests opens a pool.
var settings = map[string]string{
	"fsync":            "off",
	"full_page_writes": "off",
	"max_connections":  "300",
}

// findServer finds the server to test with, and says which it is.
func findServer(ctx context.Context) (*server, error) {
	s, what, err := look(ctx)
	if err != nil {
		return nil, err
	}
	conn, err := pgx.Connect(ctx, s.admin)
	if err != nil {
		s.close()
		return nil, err
	}
	defer conn.Close(ctx)
	var version string
	if err := conn.QueryRow(ctx, "show server_version").Scan(&version); err != nil {
		s.close()
		return nil, err
	}
	say("PostgreSQL %s, %s", version, what)
	return s, nil
}

func look(ctx context.Context) (s *server, what string, err error) {
	if given := os.Getenv(urlVariable); given != "" {
		s, err := findGiven(ctx, given)
		return s, "the server of " + urlVariable, err
	}

	image, insisted := os.LookupEnv(imageVariable)
	if image == "" {
		image, insisted = defaultImage, false
	}
	s, what, err = startContainer(ctx, image)
	if err == nil {
		return s, what, nil
	}
	if insisted {
		// Tests that were to run on one version must not pass on another.
		return nil, "", fmt.Errorf("%s=%s: %w", imageVariable, image, err)
	}
	say("no container: %v; trying PostgreSQL from this machine", err)
	return startLocal(ctx)
}
