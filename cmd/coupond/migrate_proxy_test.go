package main

import (
	"fmt"
	"testing"

	"scalable-coupon-system/db"
	"scalable-coupon-system/internal/pgtest"
)

// migrate --proxy sets up an empty database as a proxy. migrate rejects a proxy, and migrate
// --proxy rejects a database with coupons.
func TestMigrate_proxy(t *testing.T) {
	t.Parallel()
	server := pgtest.StartServer(t, map[string]string{"fsync": "off"})
	proxy := []string{"DATABASE_URL=" + server.ForProxy(t).URL}
	for range 2 {
		expect(t, 0, fmt.Sprintf("proxy of schema version %d; functions installed", db.Version()), proxy, "migrate", "--proxy")
	}
	expect(t, 1, "the database is a proxy", proxy, "migrate")
	expect(t, 1, "the database has coupons of its own", []string{"DATABASE_URL=" + server.New(t).URL}, "migrate", "--proxy")
}
