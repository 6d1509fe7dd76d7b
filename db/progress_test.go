package db_test

import (
	"fmt"
	"testing"

	"scalable-coupon-system/db"
	"scalable-coupon-system/internal/pgtest"
)

// Monitoring reads the view every few seconds while millions of claims are stored, so a row must
// cost only a few index probes: the first claim, the last, and the search for those of the last ten
// seconds.
func TestSaleProgress_probesIndexes(t *testing.T) {
	t.Parallel()
	admin := owner(t, pgtest.New(t))
	admin.exec("alter table coupond.coupons set (autovacuum_enabled = off); alter table coupond.claims set (autovacuum_enabled = off)")
	grow(admin)
	admin.exec(fmt.Sprintf(`
		set session_replication_role = replica;
		insert into coupond.coupons (name, amount, remaining_amount) values ('busy', 2147483647, 2147483647 - %[1]d);
		insert into coupond.claims (coupon_name, claim_number, user_id, claimed_at)
		select 'busy', i, 'busy-' || i, clock_timestamp() - case when i <= %[1]d - 3000 then interval '1 hour' else interval '0' end
		from generate_series(1, %[1]d) as i;
		update coupond.claims set claimed_at = claimed_at - interval '1 hour' where coupon_name <> 'busy';
		reset session_replication_role`, hotClaims))
	// The same view with 30 minutes instead of ten seconds, so that the test does not depend on the
	// machine's speed.
	admin.exec(`do $$ begin execute 'create view coupond.sale_progress_30_minutes as '
		|| replace(pg_catalog.pg_get_viewdef('coupond.sale_progress'::regclass), '00:00:10', '00:30:00'); end $$`)

	for _, moment := range []string{"unanalyzed", "analyzed"} {
		if moment == "analyzed" {
			admin.exec("analyze coupond.coupons, coupond.claims")
		}
		report(admin)
		for _, c := range []struct {
			sql     string
			want    []string
			entries int
		}{
			// The coupon, its first claim, its last, and one probe: the last claim is older.
			{"select claims_per_second::text from coupond.sale_progress where name = 'hot'", []string{"0.0"}, 4},
			{"select claims_per_second::text from coupond.sale_progress where name = 'many-4444'", []string{"0.0"}, 4},
			{"select claims_per_second::text from coupond.sale_progress where name = 'unknown'", nil, 0},
			// Steps back of 1, 2, 4, … 2,048 and 4,096 claims, then 12 binary steps.
			{"select claims_per_second::text from coupond.sale_progress_30_minutes where name = 'busy'", []string{"300.0"}, 4 + 13 + 12},
			// Without the column claims_per_second, the view does not search.
			{"select remaining_amount::text from coupond.sale_progress where name = 'busy'", []string{fmt.Sprint(1<<31 - 1 - hotClaims)}, 1},
		} {
			got, entries, _ := admin.cost(admin, c.sql)
			equal(t, moment+": "+c.sql, got, c.want)
			if entries > c.entries {
				t.Errorf("%s: %s reads %d index entries, more than %d", moment, c.sql, entries, c.entries)
			}
		}
	}
}

// An open transaction that has read the view blocks a deploy, but it blocks no claims, before the
// deploy or while the deploy waits.
func TestSaleProgress_openReaderBlocksNoClaims(t *testing.T) {
	t.Parallel()
	database := pgtest.New(t)
	monitor, admin, client := owner(t, database), owner(t, database), service(t, database)
	client.create("lamp", 2)
	monitor.exec("begin; set local role coupon_monitor; select from coupond.sale_progress")

	a := apply(bounded(t), t, database, db.Files)
	waitBlocked(t, admin, 1, database.Name)
	equal(t, "claims while Apply waits", client.claimCoupons([]string{"ann", "bob"}, "lamp"), []string{claimed, claimed})
	monitor.exec("commit")
	a.succeeds(t)
}
