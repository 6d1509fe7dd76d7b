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

// sharedSettings are the settings of a server that only tests use. Its data need not survive a
// crash of the machine, and many parallel tests open a pool each.
var sharedSettings = map[string]string{
	"fsync":            "off",
	"full_page_writes": "off",
	"max_connections":  "300",
}

// findServer returns the server for the tests, and prints which one it is.
func findServer(ctx context.Context) (*instance, error) {
	s, what, err := selectServer(ctx)
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
	logf("PostgreSQL %s, %s", version, what)
	return s, nil
}

func selectServer(ctx context.Context) (s *instance, what string, err error) {
	if connection := os.Getenv(urlVariable); connection != "" {
		s, err := connectExternal(ctx, connection)
		return s, "the server of " + urlVariable, err
	}

	image, required := os.LookupEnv(imageVariable)
	if image == "" {
		image, required = defaultImage, false
	}
	s, what, err = startContainer(ctx, image)
	if err == nil {
		return s, what, nil
	}
	if required {
		// Tests for one PostgreSQL version must not run on another.
		return nil, "", fmt.Errorf("%s=%s: %w", imageVariable, image, err)
	}
	logf("no container: %v; using PostgreSQL from this machine", err)
	return startLocal(ctx)
}
