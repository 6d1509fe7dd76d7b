package main

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"scalable-coupon-system/internal/pgtest"
)

// A service's whole life with a password in it, and all that can go wrong with its connections: nothing that it writes, at the
// lowest level of the log, has the password in it. It works as a login that has no rights but those of coupon_service.
func TestServeNeverSaysThePassword(t *testing.T) {
	t.Parallel()
	database := pgtest.New(t)
	login := role(t, database, "in role coupon_service")
	owner := database.Connect(t)
	exec := func(sql string) {
		t.Helper()
		if _, err := owner.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	u := parseURL(t, database.URL)
	u.User = url.UserPassword(login, marker)
	inURL := environ(u.String(), "LOG_LEVEL=debug", "CLAIM_TIMEOUT=2s")
	u.User = url.User(login)
	inFile := environ(u.String(), "LOG_LEVEL=debug", "CLAIM_TIMEOUT=2s", "DATABASE_PASSWORD_FILE="+writeFile(t, marker+"\n"))

	for name, environ := range map[string][]string{"in the URL": inURL, "in a file": inFile} {
		p := start(t, environ, "serve").ready(t)
		c := newClient(t, p.url, 1)
		c.create(t, name, 1)
		if a, err := c.claim("ann", name); err != nil || a.status != http.StatusCreated {
			t.Fatalf("claim: %+v, %v", a, err)
		}

		// The password changes under the service, and its connections are ended.
		exec("alter role " + login + " password 'another'")
		exec("select pg_terminate_backend(pid) from pg_stat_activity where usename = '" + login + "'")
		unhealthy(t, c, "the database refuses the login")
		if a, err := c.claim("bob", name); err != nil || a.status != http.StatusServiceUnavailable {
			t.Errorf("a claim without a connection: %+v, %v", a, err)
		}
		expect(t, exitFailure, "refuses the login", []string{"LISTEN_ADDR=" + strings.TrimPrefix(p.url, "http://")}, "healthcheck")
		exec("alter role " + login + " password '" + marker + "'")
		healthy(t, c)

		p.signal(nil)
		if code := p.wait(t); code != 0 {
			t.Errorf("exit code %d", code)
		}
		said := p.stdout.String() + p.stderr.String()
		if strings.Contains(said, marker) {
			t.Errorf("%s, and in what coupond says: %s", name, said)
		}
		if !strings.Contains(said, "28P01") {
			t.Errorf("the log does not say what the server had against the login: %s", said)
		}
	}
	if err := owner.Close(context.Background()); err != nil {
		t.Error(err)
	}
}
