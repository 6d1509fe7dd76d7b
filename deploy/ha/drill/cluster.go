package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"time"

	"scalable-coupon-system/deploy/internal/drill"
)

var nodes = []string{"pg1", "pg2", "pg3"}

// cluster is the deployment of deploy/ha.
type cluster struct {
	drill.Deployment

	out io.Writer // for progress
}

// member is a node in the output of patronictl list.
type member struct {
	Name  string `json:"Member"`
	Role  string `json:"Role"`
	State string `json:"State"`
}

// members returns the nodes according to the first node that answers.
func (c *cluster) members(ctx context.Context) ([]member, error) {
	var errs []error
	for _, node := range nodes {
		text, err := c.Exec(ctx, node, "", "patronictl", "-c", "/etc/coupond-ha/patroni.yml", "list", "-f", "json")
		if err == nil {
			var list []member
			if err = json.Unmarshal([]byte(text), &list); err == nil {
				return list, nil
			}
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// awaitReplication waits for a primary with two streaming synchronous standbys, and returns its
// name.
func (c *cluster) awaitReplication(ctx context.Context) (primary string, err error) {
	err = drill.Wait(ctx, 3*time.Minute, "a primary and two synchronous standbys", func() bool {
		list, err := c.members(ctx)
		if err != nil {
			return false
		}
		primary = leader(list)
		standbys := 0
		for _, m := range list {
			if (m.Role == "Quorum Standby" || m.Role == "Sync Standby") && m.State == "streaming" {
				standbys++
			}
		}
		return primary != "" && standbys == len(nodes)-1
	})
	return primary, err
}

// awaitFailover waits for a primary other than old, and returns its name.
func (c *cluster) awaitFailover(ctx context.Context, old string) (primary string, err error) {
	err = drill.Wait(ctx, 2*time.Minute, "a standby to take over", func() bool {
		list, err := c.members(ctx)
		primary = leader(list)
		return err == nil && primary != "" && primary != old
	})
	return primary, err
}

// leader returns the name of the primary, or "" if no node accepts writes.
func leader(list []member) string {
	i := slices.IndexFunc(list, func(m member) bool { return m.Role == "Leader" && m.State == "running" })
	if i < 0 {
		return ""
	}
	return list[i].Name
}

// replace stops an instance of the service, starts a new container for it and waits until it is
// healthy.
func (c *cluster) replace(ctx context.Context, instance string) error {
	if err := c.Compose(ctx, "up", "--detach", "--no-deps", "--force-recreate", "--timeout", "35", instance); err != nil {
		return err
	}
	return drill.Wait(ctx, time.Minute, instance+" to be healthy", func() bool {
		_, err := c.Exec(ctx, instance, "", "/coupond", "healthcheck")
		return err == nil
	})
}
