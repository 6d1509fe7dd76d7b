package main

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"scalable-coupon-system/internal/pgtest"
)

// A service never writes its password, even at the lowest log level and when its connections fail.
// It runs as a login that has only the privileges of coupon_service.
func TestServe_hidesPassword(t *testing.T) {
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
	u.User = url.UserPassword(login, testPassword)
	inURL := environ(u.String(), "LOG_LEVEL=debug", "CLAIM_TIMEOUT=2s")
	u.User = url.User(login)
	inFile := environ(u.String(), "LOG_LEVEL=debug", "CLAIM_TIMEOUT=2s", "DATABASE_PASSWORD_FILE="+writeFile(t, testPassword+"\n"))

	for name, environ := range map[string][]string{"in the URL": inURL, "in a file": inFile} {
		p := start(t, environ, "serve").ready(t)
		c := newClient(t, p.url, 1)
		c.create(t, name, 1)
		if a, err := c.claim("ann", name); err != nil || a.status != http.StatusCreated {
			t.Fatalf("claim: %+v, %v", a, err)
		}

		// The password changes while the service runs, and its connections are terminated.
		exec("alter role " + login + " password 'another'")
		exec("select pg_terminate_backend(pid) from pg_stat_activity where usename = '" + login + "'")
		waitUnhealthy(t, c, "the database refuses the login")
		if a, err := c.claim("bob", name); err != nil || a.status != http.StatusServiceUnavailable {
			t.Errorf("claim without a connection: %+v, %v", a, err)
		}
		expect(t, exitFailure, "refuses the login", []string{"LISTEN_ADDR=" + strings.TrimPrefix(p.url, "http://")}, "healthcheck")
		exec("alter role " + login + " password '" + testPassword + "'")
		waitHealthy(t, c)

		p.signal(nil)
		if code := p.wait(t); code != 0 {
			t.Errorf("exit code %d", code)
		}
		output := p.stdout.String() + p.stderr.String()
		if strings.Contains(output, testPassword) {
			t.Errorf("password %s: the output of coupond contains it: %s", name, output)
		}
		if !strings.Contains(output, "28P01") {
			t.Errorf("the log does not say why the server refuses the login: %s", output)
		}
	}
	if err := owner.Close(context.Background()); err != nil {
		t.Error(err)
	}
}
