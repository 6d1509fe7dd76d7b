package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"scalable-coupon-system/deploy/internal/drill"
)

// deployment is the proxy and its shards.
type deployment struct{ drill.Deployment }

// shard is the name of a shard's service, and of its host.
func shard(i int) string { return "shard" + strconv.Itoa(i) }

// superuser returns the connection string of a server's superuser, for use in the database network.
func superuser(host string) string {
	return "host=" + host + " user=postgres dbname=coupond passfile=/run/password/pgpass"
}

// partitions returns the partition of each coupon of the sale. It asks the proxy's server, because
// hashtext is a function of PostgreSQL.
func (d *deployment) partitions(ctx context.Context, coupons int) ([]int, error) {
	text, err := d.query(ctx, fmt.Sprintf(`
		select hashtext('%s' || n) & %d
		from generate_series(1, %d) as n
		order by n`, coupon, partitions-1, coupons))
	if err != nil {
		return nil, err
	}
	list := make([]int, 0, coupons)
	for line := range strings.Lines(text) {
		p, err := strconv.Atoi(strings.TrimSpace(line))
		if err != nil {
			return nil, err
		}
		list = append(list, p)
	}
	return list, nil
}

// awaitReady waits at most a minute until a database server accepts connections.
func (d *deployment) awaitReady(ctx context.Context, service string) error {
	return drill.Wait(ctx, time.Minute, service+" to accept connections", func() bool {
		_, err := d.Exec(ctx, service, "postgres", "pg_isready", "--quiet", "--host=127.0.0.1")
		return err == nil
	})
}

// move moves a partition with deploy/shards/move, in the database network.
func (d *deployment) move(ctx context.Context, partition int) error {
	// The new shard's address, as the proxy's options have it for another partition of that shard.
	address, err := d.query(ctx, fmt.Sprintf(`
		select o.option_value
		from pg_foreign_server as s
		cross join pg_options_to_table(s.srvoptions) as o
		where s.srvname = 'coupond'
		  and o.option_name = 'p%d'`, to))
	if err != nil {
		return err
	}
	_, err = d.Exec(ctx, "proxy", "postgres", "/etc/coupond-shards/move",
		strconv.Itoa(partition), superuser(shard(from)), superuser(shard(to)), strings.TrimSpace(address), superuser("proxy"))
	return err
}

// query runs SQL on the proxy's server as its superuser and returns psql's output.
func (d *deployment) query(ctx context.Context, sql string) (string, error) {
	return d.Exec(ctx, "proxy", "postgres", "psql", "-XAt", "--dbname=coupond", "--command="+sql)
}
