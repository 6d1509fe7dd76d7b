//go:build dba

package handbook_test

import (
	"fmt"
	"strings"
	"testing"

	"scalable-coupon-system/db"
)

// TestScript_matchesMigrate checks that the script printed by coupond sql installs exactly what
// coupond migrate does.
func TestScript_matchesMigrate(t *testing.T) {
	c := newCluster(t)
	admin := c.env("postgres", "postgres")
	mustRun(t, admin, `psql -qc "create role plain login createrole password 'plain'"`)
	mustRun(t, admin, "coupond sql >install.sql")
	const install = "psql --no-psqlrc --quiet --file=install.sql"

	for _, login := range []string{"postgres", "plain"} {
		name := func(what string) string { return login + "_" + what }
		at := func(what string) []string { return c.env(login, name(what)) }
		for _, what := range []string{"migrated", "installed", "older"} {
			mustRun(t, admin, fmt.Sprintf(`psql -qc "create database %s owner %s template template0 encoding 'UTF8'"`, name(what), login))
		}
		if login != "postgres" { // postgres has created coupon_service
			mustRun(t, admin, "psql -qc 'grant coupon_service to "+login+"'")
		}
		mustRun(t, at("migrated"), "coupond migrate")
		want := dump(t, at("migrated"))
		for _, part := range []string{"CREATE FUNCTION coupond.claim_batch", "CREATE TRIGGER claims_inserted", "COMMENT ON VIEW", "GRANT SELECT ON TABLE coupond.sale_progress TO coupon_monitor"} {
			if !strings.Contains(want, part) {
				t.Fatalf("%s: the dump lacks %q, so comparing it proves nothing", login, part)
			}
		}
		mustEqual := func(what, when string) {
			t.Helper()
			if got := dump(t, at(what)); got != want {
				t.Errorf("%s: the dump %s differs from that after coupond migrate:\n%s", login, when, diff(want, got))
			}
		}

		mustRun(t, at("installed"), install)
		mustEqual("installed", "after install.sql")
		mustRun(t, at("installed"), install)
		mustEqual("installed", "after install.sql again")
		if output := mustRun(t, at("installed"), "coupond migrate"); !strings.Contains(output, fmt.Sprintf("schema version %d already", db.Version())) {
			t.Errorf("%s: coupond migrate after install.sql: %s", login, output)
		}
		mustEqual("installed", "after install.sql and coupond migrate")

		// A schema in which the functions and the view are older, and rights were given and taken.
		mustRun(t, at("older"), `coupond migrate && psql -qc "drop view coupond.sale_progress; drop function coupond.claim_batch; grant all on all tables in schema coupond to public; revoke all on all functions in schema coupond from coupon_service"`)
		mustRun(t, at("older"), install)
		mustEqual("older", "after install.sql on an older schema")

		mustRun(t, at("older"), `psql -qc "update coupond.schema_version set version = version + 1; comment on function coupond.claim_coupon(text, text) is 'newer'"`)
		before := dump(t, at("older"))
		output, err := shell(t, at("older"), install)
		if err == nil || !strings.Contains(output, "the schema is newer than this script") {
			t.Errorf("%s: install.sql on a newer schema: %v %s", login, err, output)
		}
		if after := dump(t, at("older")); after != before {
			t.Errorf("%s: install.sql failed but changed something:\n%s", login, diff(before, after))
		}
	}

	mustRun(t, admin, `psql -qc "create database latin1 template template0 encoding 'LATIN1' locale 'C'"`)
	if output, err := shell(t, c.env("postgres", "latin1"), install); err == nil || !strings.Contains(output, "is not encoded in UTF8 but in LATIN1") {
		t.Errorf("install.sql in a LATIN1 database: %v %s", err, output)
	}
}

// dump returns the output of pg_dump, without the lines with a random key that newer versions
// write.
func dump(t *testing.T, env []string) string {
	t.Helper()
	return mustRun(t, env, `pg_dump | grep -vE '^\\(un)?restrict '`)
}

// diff returns the lines that only one of the two texts has.
func diff(want, got string) string {
	var b strings.Builder
	for _, side := range []struct{ mark, here, there string }{{"- ", want, got}, {"+ ", got, want}} {
		for line := range strings.Lines(side.here) {
			if !strings.Contains(side.there, line) {
				b.WriteString(side.mark + line)
			}
		}
	}
	return b.String()
}
