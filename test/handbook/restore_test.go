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

// TestRestore takes a dump during a sale and restores it to a new cluster with the commands in
// docs/dba.md. The dump is a consistent snapshot, and the sale continues with the next claim
// numbers.
func TestRestore(t *testing.T) {
	for _, login := range []string{"postgres", "plain"} {
		t.Run("as "+login, func(t *testing.T) {
			old, fresh := newCluster(t), newCluster(t)
			for _, c := range []*cluster{old, fresh} {
				mustRun(t, c.env("postgres", "postgres"), `psql -qc "create role plain login createrole password 'plain'"`)
				mustRun(t, c.env("postgres", "postgres"), fmt.Sprintf(`psql -qc "create database coupons owner %s template template0 encoding 'UTF8'"`, login))
			}
			from, to := old.env(login, "coupons"), fresh.env(login, "coupons")
			mustRun(t, from, "coupond migrate")

			const stock = 100_000
			store := open(t, old.url(login, "coupons"))
			if status, err := store.CreateCoupon(t.Context(), "lamp", stock); err != nil || status != pgstore.Created {
				t.Fatal(status, err)
			}
			claimAll := func(store *pgstore.Store, pattern string, n int) {
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
			claimAll(store, "before %d", 1000)
			var meanwhile sync.WaitGroup
			meanwhile.Go(func() {
				for i := range 10 {
					claimAll(store, fmt.Sprintf("meanwhile %d/%%d", i), 200)
				}
			})
			mustRun(t, from, handbookCommand(t, "pg_dump --format=custom --file=coupons.dump"))
			meanwhile.Wait()
			checkClaims(t, connect(t, old.url(login, "coupons")), "lamp", 3000)

			// Without the roles, which are not in a dump, the restore fails and leaves nothing.
			to = append(to, "NEW="+fresh.url(login, "coupons"))
			restore := handbookCommand(t, `pg_restore --exit-on-error --single-transaction --no-owner --dbname="$NEW" coupons.dump`)
			if output, err := shell(t, to, restore); err == nil || !strings.Contains(output, `role "coupon_`) {
				t.Errorf("restore without the roles: %v %s", err, output)
			}
			mustRun(t, to, handbookCommand(t, `psql "$NEW" -c 'create role coupon_service nologin' -c 'create role coupon_monitor nologin' \
    -c 'grant coupon_service to current_user'`))
			mustRun(t, to, restore)
			if output := mustRun(t, to, "coupond migrate"); !strings.Contains(output, fmt.Sprintf("schema version %d already", db.Version())) {
				t.Errorf("migrate: %s", output)
			}
			if want, got := schemaOf(t, from), schemaOf(t, to); got != want {
				t.Errorf("the schema differs:\n%s", diff(want, got))
			}

			owner := connect(t, fresh.url(login, "coupons"))
			restored := get[int](t, owner, "select amount - remaining_amount from public.coupons")
			if restored < 1000 || restored > 3000 {
				t.Errorf("%d claims in the dump", restored)
			}
			t.Logf("the dump has %d claims: of the 1,000 before it and the 2,000 during it", restored)
			checkClaims(t, owner, "lamp", restored)

			again := open(t, fresh.url(login, "coupons"))
			if err := again.Ready(t.Context()); err != nil {
				t.Fatal(err)
			}
			if status, err := again.Claim(t.Context(), "before 7", "lamp"); err != nil || status != pgstore.AlreadyClaimed {
				t.Errorf("second claim of a user: %s %v", status, err)
			}
			claimAll(again, "after %d", 500)
			checkClaims(t, owner, "lamp", restored+500)
			if first := get[string](t, owner, "select user_id from public.claims where claim_number = $1", restored+1); !strings.HasPrefix(first, "after ") {
				t.Errorf("claim %d belongs to %s", restored+1, first)
			}
		})
	}
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
