package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

var nodes = []string{"pg1", "pg2", "pg3"}

// member is a node in the output of patronictl list.
type member struct {
	Name  string `json:"Member"`
	Role  string `json:"Role"`
	State string `json:"State"`
}

// failover kills the primary during a sale, again and again.
func (d *drill) failover(ctx context.Context) error {
	for i := range d.Kills {
		old, err := d.awaitPrimary(ctx, "", len(nodes)-1)
		if err != nil {
			return err
		}
		err = d.sell(ctx, []string{fmt.Sprintf("failover %d", i+1)}, event{
			name: "failover of " + old, affects: everyCoupon,
			happen: func() error {
				if _, err := d.compose(ctx, "kill", old); err != nil {
					return err
				}
				primary, err := d.awaitPrimary(ctx, old, 0)
				if err != nil {
					return err
				}
				d.printf("%s was the primary and is dead; %s is the new primary", old, primary)
				if _, err := d.compose(ctx, "up", "--detach", "--no-deps", "--no-recreate", old); err != nil {
					return err
				}
				return d.awaitHealthy(ctx)
			},
		})
		if err != nil {
			return err
		}
	}
	// Also the last one must become a standby again.
	_, err := d.awaitPrimary(ctx, "", len(nodes)-1)
	return err
}

// rolling replaces both instances of the service during a sale.
func (d *drill) rolling(ctx context.Context) error {
	return d.sell(ctx, []string{"rolling upgrade"}, event{
		name: "both instances replaced", affects: everyCoupon, failsNothing: true,
		happen: func() error {
			for _, instance := range []string{"coupond1", "coupond2"} {
				if _, err := d.compose(ctx, "up", "--detach", "--no-deps", "--force-recreate", "--timeout", "35", instance); err != nil {
					return err
				}
				err := waitFor(ctx, time.Minute, instance+" to be healthy", func() bool {
					_, err := d.compose(ctx, "exec", "-T", instance, "/coupond", "healthcheck")
					return err == nil
				})
				if err != nil {
					return err
				}
			}
			return nil
		},
	})
}

// awaitPrimary waits for a primary other than old with at least n synchronous standbys, and returns
// its name.
func (d *drill) awaitPrimary(ctx context.Context, old string, n int) (primary string, err error) {
	what := fmt.Sprintf("a primary with %d synchronous standbys", n)
	err = waitFor(ctx, 3*time.Minute, what, func() bool {
		list, err := d.members(ctx)
		var synchronous int
		primary, synchronous = leader(list)
		return err == nil && primary != "" && primary != old && synchronous >= n
	})
	return primary, err
}

// members returns the nodes according to the first node that answers.
func (d *drill) members(ctx context.Context) (list []member, err error) {
	for _, node := range nodes {
		var text string
		text, err = d.compose(ctx, "exec", "-T", node, "patronictl", "-c", "/etc/coupond-ha/patroni.yml", "list", "-f", "json")
		if err == nil {
			return list, json.Unmarshal([]byte(text), &list)
		}
	}
	return nil, err
}

// leader returns the name of the primary, or "" if no node accepts writes, and the number of its
// synchronous standbys.
func leader(list []member) (primary string, synchronous int) {
	for _, m := range list {
		switch {
		case m.Role == "Leader" && m.State == "running":
			primary = m.Name
		case slices.Contains([]string{"Quorum Standby", "Sync Standby"}, m.Role) && m.State == "streaming":
			synchronous++
		}
	}
	return primary, synchronous
}

// everyCoupon is what an event affects that concerns the whole deployment.
func everyCoupon(int) bool { return true }
