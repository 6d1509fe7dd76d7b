package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

var (
	errNotClean = errors.New("the books are not clean")
	errTimeout  = errors.New("waited in vain")
)

const (
	project = "coupon-ha"
	file    = "deploy/ha/docker-compose.yml"
)

var nodes = []string{"pg1", "pg2", "pg3"}

// cluster is the deployment, by way of the Docker engine.
type cluster struct {
	out     io.Writer
	publish string
}

// member is a node as Patroni sees it.
type member struct {
	Name  string `json:"Member"` //nolint:tagliatelle // patronictl's name
	Role  string `json:"Role"`   //nolint:tagliatelle // patronictl's name
	State string `json:"State"`  //nolint:tagliatelle // patronictl's name
}

func command(ctx context.Context, environ []string, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...) //nolint:gosec // docker and its compose, with arguments of ours
	cmd.Env = append(os.Environ(), environ...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		tail := stderr.String()
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, tail[max(0, len(tail)-2000):])
	}
	return stdout.String(), nil
}

// compose runs docker compose, or its predecessor docker-compose.
func (c *cluster) compose(ctx context.Context, args ...string) error {
	name, all := "docker-compose", []string{"-p", project, "-f", file}
	if _, err := command(ctx, nil, "docker", "compose", "version"); err == nil {
		name, all = "docker", append([]string{"compose"}, all...)
	}
	_, err := command(ctx, []string{"COUPON_HA_PUBLISH=" + c.publish}, name, append(all, args...)...)
	return err
}

// container is the id of a service's container.
func container(ctx context.Context, service string) (string, error) {
	id, err := command(ctx, nil, "docker", "ps", "--all", "--quiet", "--latest",
		"--filter", "label=com.docker.compose.project="+project, "--filter", "label=com.docker.compose.service="+service)
	if err == nil && strings.TrimSpace(id) == "" {
		err = fmt.Errorf("%s has no container", service)
	}
	return strings.TrimSpace(id), err
}

func (c *cluster) up(ctx context.Context) error {
	for _, args := range [][]string{{"build"}, {"up", "--detach"}} {
		if err := c.compose(ctx, args...); err != nil {
			return err
		}
	}
	return c.healthy(ctx)
}

func (c *cluster) down(ctx context.Context) error {
	return c.compose(ctx, "down", "--volumes", "--remove-orphans", "--timeout", "10")
}

// healthy waits until the balancer sends to an instance that is ready.
func (c *cluster) healthy(ctx context.Context) error {
	return wait(ctx, 2*time.Minute, "the service to be healthy", func() bool {
		ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.publish+"/health", nil)
		if err != nil {
			return false
		}
		response, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(request)
		if err != nil {
			return false
		}
		_ = response.Body.Close()
		return response.StatusCode == http.StatusOK
	})
}

// members asks Patroni on any node that answers.
func members(ctx context.Context) ([]member, error) {
	var errs []error
	for _, node := range nodes {
		id, err := container(ctx, node)
		if err == nil {
			var text string
			if text, err = command(ctx, nil, "docker", "exec", id, "patronictl", "-c", "/etc/coupon-ha/patroni.yml", "list", "-f", "json"); err == nil {
				var list []member
				err = json.Unmarshal([]byte(text), &list)
				if err == nil {
					return list, nil
				}
			}
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// settled waits for one primary with two streaming synchronous standbys, and names the primary.
func (c *cluster) settled(ctx context.Context) (primary string, err error) {
	err = wait(ctx, 3*time.Minute, "a primary and two synchronous standbys", func() bool {
		list, err := members(ctx)
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

// takenOver waits for a primary other than old, and names it.
func (c *cluster) takenOver(ctx context.Context, old string) (primary string, err error) {
	err = wait(ctx, 2*time.Minute, "a standby to take over", func() bool {
		list, err := members(ctx)
		primary = leader(list)
		return err == nil && primary != "" && primary != old
	})
	return primary, err
}

func leader(list []member) string {
	i := slices.IndexFunc(list, func(m member) bool { return m.Role == "Leader" && m.State == "running" })
	if i < 0 {
		return ""
	}
	return list[i].Name
}

func (c *cluster) kill(ctx context.Context, service string) error {
	return c.docker(ctx, "kill", service)
}

func (c *cluster) start(ctx context.Context, service string) error {
	return c.docker(ctx, "start", service)
}

func (c *cluster) docker(ctx context.Context, what, service string) error {
	id, err := container(ctx, service)
	if err != nil {
		return err
	}
	_, err = command(ctx, nil, "docker", what, id)
	return err
}

// replace stops an instance of the service as a deploy does, and puts a new container in its place.
func (c *cluster) replace(ctx context.Context, instance string) error {
	if err := c.compose(ctx, "up", "--detach", "--no-deps", "--force-recreate", "--timeout", "35", instance); err != nil {
		return err
	}
	return wait(ctx, time.Minute, instance+" to be healthy", func() bool {
		id, err := container(ctx, instance)
		if err != nil {
			return false
		}
		_, err = command(ctx, nil, "docker", "exec", id, "/coupond", "healthcheck")
		return err == nil
	})
}

func wait(ctx context.Context, most time.Duration, what string, isSo func() bool) error {
	for deadline := time.Now().Add(most); !isSo(); {
		if time.Now().After(deadline) {
			return fmt.Errorf("%w for %s", errTimeout, what)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
	return nil
}
