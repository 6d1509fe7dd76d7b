//go:build dba

package handbook_test

import (
	"fmt"
	"strings"
	"testing"

	"scalable-coupon-system/db"
)

// coupond sql gives psql what coupond migrate does: no more, no less, no other.
func TestScriptInstallsWhatMigrateDoes(t *testing.T) {
	c := newCluster(t)
	admin := c.env("postgres", "postgres")
	must(t, admin, `psql -qc "create role plain login createrole password 'plain'"`)
	must(t, admin, "coupond sql >install.sql")
	const install = "psql --no-psqlrc --quiet --file=install.sql"

	for _, login := range []string{"postgres", "plain"} {
		name := func(what string) string { return login + "_" + what }
		at := func(what string) []string { return c.env(login, name(what)) }
		for _, what := range []string{"migrated", "installed", "older"} {
			must(t, admin, fmt.Sprintf(`psql -qc "create database %s owner %s template template0 encoding 'UTF8'"`, name(what), login))
		}
		if login != "postgres" { // who made coupon_service
			must(t, admin, "psql -qc 'grant coupon_service to "+login+"'")
		}
		must(t, at("migrated"), "coupond migrate")
		want := dump(t, at("migrated"))
		for _, part := range []string{"CREATE FUNCTION public.claim_batch", "COMMENT ON VIEW", "GRANT SELECT ON TABLE public.sale_progress TO coupon_monitor"} {
			if !strings.Contains(want, part) {
				t.Fatalf("%s: the dump lacks %q, so it compares nothing", login, part)
			}
		}
		same := func(what, moment string) {
			t.Helper()
			if got := dump(t, at(what)); got != want {
				t.Errorf("%s: %s, pg_dump differs from that after coupond migrate:\n%s", login, moment, diff(want, got))
			}
		}

		must(t, at("installed"), install)
		same("installed", "after install.sql")
		must(t, at("installed"), install)
		same("installed", "after install.sql again")
		if said := must(t, at("installed"), "coupond migrate"); !strings.Contains(said, fmt.Sprintf("schema version %d already", db.Version())) {
			t.Errorf("%s: coupond migrate after install.sql: %s", login, said)
		}
		same("installed", "after coupond migrate on top")

		// As the program before the view and the shards left it.
		must(t, at("older"), `coupond migrate && psql -qc "drop view public.sale_progress; drop table public.shard; update public.schema_version set version = 2"`)
		must(t, at("older"), install)
		same("older", "after install.sql on an older schema")

		must(t, at("older"), `psql -qc "update public.schema_version set version = version + 1; comment on function public.claim_coupon(text, text) is 'newer'"`)
		before := dump(t, at("older"))
		said, err := shell(t, at("older"), install)
		if err == nil || !strings.Contains(said, "the schema is newer than this script") {
			t.Errorf("%s: install.sql on a newer schema: %v %s", login, err, said)
		}
		if after := dump(t, at("older")); after != before {
			t.Errorf("%s: a refused install.sql has changed something:\n%s", login, diff(before, after))
		}
	}

	must(t, admin, `psql -qc "create database latin1 template template0 encoding 'LATIN1' locale 'C'"`)
	if said, err := shell(t, c.env("postgres", "latin1"), install); err == nil || !strings.Contains(said, "is not encoded in UTF8 but in LATIN1") {
		t.Errorf("install.sql in a LATIN1 database: %v %s", err, said)
	}
}

// dump is all of a database as pg_dump writes it, less the word that newer versions make anew each time.
func dump(t *testing.T, env []string) string {
	t.Helper()
	return must(t, env, `pg_dump | grep -vE '^\\(un)?restrict '`)
}

// diff shows the lines that only one of the two has.
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
