package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	shardCoupons = 1000
	partitions   = 64
	shardCount   = 4
	dead         = 2    // the shard that is killed
	from, to     = 1, 3 // the shards that a partition is moved between
)

// sellOnShards moves a partition during a sale of coupons with this prefix. If kill is set, it
// kills a shard before that, during the same sale.
func (d *drill) sellOnShards(ctx context.Context, prefix string, kill bool) error {
	coupons := make([]string, shardCoupons)
	for i := range coupons {
		coupons[i] = prefix + strconv.Itoa(i+1)
	}
	partitionOf, err := d.partitionsOf(ctx, prefix)
	if err != nil {
		return err
	}
	var events []event
	if kill {
		events = append(events, event{
			name: shard(dead) + " killed, and started later", affects: func(coupon int) bool { return partitionOf[coupon]%shardCount == dead },
			happen: func() error { return d.restart(ctx, shard(dead)) },
		})
	}
	moved := partitionOf[slices.IndexFunc(partitionOf, func(p int) bool { return p%shardCount == from })]
	return d.sell(ctx, coupons, append(events, event{
		name:    fmt.Sprintf("partition %d moved from %s to %s", moved, shard(from), shard(to)),
		affects: func(coupon int) bool { return partitionOf[coupon] == moved },
		happen:  func() error { return d.movePartition(ctx, moved) },
	})...)
}

// restart kills a database server, and starts it after a sixth of the sale.
func (d *drill) restart(ctx context.Context, service string) error {
	if _, err := d.compose(ctx, "kill", service); err != nil {
		return err
	}
	if err := sleep(ctx, d.Duration/6); err != nil {
		return err
	}
	if _, err := d.compose(ctx, "up", "--detach", "--no-deps", "--no-recreate", service); err != nil {
		return err
	}
	return waitFor(ctx, time.Minute, service+" to accept connections", func() bool {
		_, err := d.compose(ctx, "exec", "-T", "--user=postgres", service, "pg_isready", "--quiet", "--host=127.0.0.1")
		return err == nil
	})
}

// movePartition moves a partition with deploy/shards/move, in the database network.
func (d *drill) movePartition(ctx context.Context, partition int) error {
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
	superuser := func(host string) string {
		return "host=" + host + " user=postgres dbname=coupond passfile=/run/password/pgpass"
	}
	_, err = d.compose(ctx, "exec", "-T", "--user=postgres", "proxy", "/etc/coupond-shards/move",
		strconv.Itoa(partition), superuser(shard(from)), superuser(shard(to)), strings.TrimSpace(address), superuser("proxy"))
	return err
}

// partitionsOf returns the partition of each coupon. It asks the proxy's server, because hashtext
// is a function of PostgreSQL.
func (d *drill) partitionsOf(ctx context.Context, prefix string) (list []int, err error) {
	text, err := d.query(ctx, fmt.Sprintf("select json_agg(hashtext('%s' || n) & %d order by n) from generate_series(1, %d) as n",
		prefix, partitions-1, shardCoupons))
	if err != nil {
		return nil, err
	}
	return list, json.Unmarshal([]byte(text), &list)
}

// query runs SQL on the proxy's server as its superuser and returns psql's output.
func (d *drill) query(ctx context.Context, sql string) (string, error) {
	return d.compose(ctx, "exec", "-T", "--user=postgres", "proxy", "psql", "-XAt", "--dbname=coupond", "--command="+sql)
}

// shard is the name of a shard's service, and of its host.
func shard(i int) string { return "shard" + strconv.Itoa(i) }
