//go:build dba

package handbook_test

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"scalable-coupon-system/db"
	"scalable-coupon-system/pgstore"
)

// TestRestore takes dumps during a sale and restores them to a new cluster with the commands in
// docs/dba.md: without privileges, with privileges, and only the rows. A dump is a consistent
// snapshot, and the sale continues with the next claim numbers.
func TestRestore(t *testing.T) {
	for _, login := range []string{"postgres", "plain"} {
		t.Run("as "+login, func(t *testing.T) {
			old, fresh := newCluster(t), newCluster(t)
			for _, c := range []*cluster{old, fresh} {
				mustRun(t, c.env("postgres", "postgres"), `psql -qc "create role plain login createrole password 'plain'"`)
			}
			createFor(t, old, login, "coupond")
			from := old.env(login, "coupond")
			mustRun(t, from, "coupond migrate")
			dumpDuringSale(t, old, login)

			// The dumps are in the folder of this test.
			restore := func(database string, commands ...string) {
				t.Helper()
				createFor(t, fresh, login, database)
				to := append(fresh.env(login, database), "NEW="+fresh.url(login, database))
				for _, command := range commands {
					mustRun(t, to, handbookCommand(t, command))
				}
				if output := mustRun(t, to, "coupond migrate"); !strings.Contains(output, fmt.Sprintf("schema version %d already", db.Version())) {
					t.Errorf("%s: migrate: %s", database, output)
				}
				if want, got := schemaOf(t, from), schemaOf(t, to); got != want {
					t.Errorf("%s: the schema differs:\n%s", database, diff(want, got))
				}
				continueSale(t, fresh, login, database)
			}

			// With privileges but without the roles that they name, the restore fails and leaves nothing.
			const whole = `pg_restore --exit-on-error --single-transaction --no-owner --dbname="$NEW" coupond.dump`
			createFor(t, fresh, login, "failed")
			to := append(fresh.env(login, "failed"), "NEW="+fresh.url(login, "failed"))
			if output, err := shell(t, to, handbookCommand(t, whole)); err == nil || !strings.Contains(output, `role "coupon_`) {
				t.Errorf("restore without the roles: %v %s", err, output)
			}
			if got := get[bool](t, connect(t, fresh.url(login, "failed")), "select to_regnamespace('coupond') is null"); !got {
				t.Error("the failed restore left a schema")
			}

			restore("without_privileges", `pg_restore --exit-on-error --single-transaction --no-owner --no-acl --dbname="$NEW" coupond.dump`)
			restore("with_privileges", whole)
			restore("rows", `DATABASE_URL="$NEW" coupond migrate`,
				`pg_restore --exit-on-error --single-transaction --disable-triggers --dbname="$NEW" rows.dump`)
			restore("coupons_first", `DATABASE_URL="$NEW" coupond migrate`,
				`for table in coupons claims; do pg_restore --exit-on-error --table="$table" --dbname="$NEW" rows.dump; done`)
		})
	}
}

// createFor creates a database that belongs to login.
func createFor(t *testing.T, c *cluster, login, database string) {
	t.Helper()
	mustRun(t, c.env("postgres", "postgres"),
		fmt.Sprintf(`psql -qc "create database %s owner %s template template0 encoding 'UTF8'"`, database, login))
}

// dumpDuringSale sells 3,000 units of the coupon "lamp", and takes the two dumps of docs/dba.md
// meanwhile.
func dumpDuringSale(t *testing.T, c *cluster, login string) {
	t.Helper()
	store := open(t, c.url(login, "coupond"))
	if status, err := store.CreateCoupon(t.Context(), "lamp", 100_000); err != nil || status != pgstore.Created {
		t.Fatal(status, err)
	}
	claimAll(t, store, "before %d", 1000)
	var meanwhile sync.WaitGroup
	meanwhile.Go(func() {
		for i := range 10 {
			claimAll(t, store, fmt.Sprintf("meanwhile %d/%%d", i), 200)
		}
	})
	env := c.env(login, "coupond")
	mustRun(t, env, handbookCommand(t, "pg_dump --format=custom --schema=coupond --file=coupond.dump"))
	mustRun(t, env, handbookCommand(t, "pg_dump --format=custom --data-only --table=coupond.coupons --table=coupond.claims --file=rows.dump"))
	meanwhile.Wait()
	checkClaims(t, connect(t, c.url(login, "coupond")), "lamp", 3000)
}

// continueSale checks what was restored of the coupon "lamp", and sells more of it.
func continueSale(t *testing.T, c *cluster, login, database string) {
	t.Helper()
	owner := connect(t, c.url(login, database))
	restored := get[int](t, owner, "select amount - remaining_amount from coupond.coupons")
	if restored < 1000 || restored > 3000 {
		t.Errorf("%s: %d claims in the dump", database, restored)
	}
	t.Logf("%s: the dump has %d claims: of the 1,000 before it and the 2,000 during it", database, restored)
	checkClaims(t, owner, "lamp", restored)

	store := open(t, c.url(login, database))
	if _, err := store.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	if status, err := store.Claim(t.Context(), "before 7", "lamp"); err != nil || status != pgstore.AlreadyClaimed {
		t.Errorf("%s: second claim of a user: %s %v", database, status, err)
	}
	claimAll(t, store, "after %d", 500)
	checkClaims(t, owner, "lamp", restored+500)
	if first := get[string](t, owner, "select user_id from coupond.claims where claim_number = $1", restored+1); !strings.HasPrefix(first, "after ") {
		t.Errorf("%s: claim %d belongs to %s", database, restored+1, first)
	}
}

// claimAll claims the coupon "lamp" for n users at once.
func claimAll(t *testing.T, store *pgstore.Store, pattern string, n int) {
	t.Helper()
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			if status, err := store.Claim(t.Context(), fmt.Sprintf(pattern, i), "lamp"); err != nil || status != pgstore.Claimed {
				t.Errorf("claim: %s %v", status, err)
			}
		})
	}
	all.Wait()
}

// handbookCommand returns command, after checking that docs/dba.md has it.
func handbookCommand(t *testing.T, command string) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/dba.md")
	if err != nil || !strings.Contains(string(text), "\n$ "+command+"\n") {
		t.Fatalf("docs/dba.md has no command %s (%v)", command, err)
	}
	return command
}

// schemaOf returns a dump without the rows.
func schemaOf(t *testing.T, env []string) string {
	t.Helper()
	return mustRun(t, env, `pg_dump --schema-only | grep -vE '^\\(un)?restrict '`)
}
