package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// healthcheckTimeout bounds the whole question: the service answers /health within 2 s, and whoever runs this check (the image
// gives it 3 s) should hear our reason before it loses its patience.
const healthcheckTimeout = 2500 * time.Millisecond

// healthcheckConfig is all that `coupond healthcheck` reads from the environment.
type healthcheckConfig struct {
	Listen listenConfig
}

func newHealthcheckCommand(vars environment, stdout io.Writer) *cobra.Command {
	return &cobra.Command{
		Use:   "healthcheck",
		Short: "Ask the running service whether it is ready: exit status 0 or 1",
		Long: `Ask the service that listens on LISTEN_ADDR whether it is ready, by GET /health,
and say so in one line. Exit status 0: it is; 1: it is not, or it did not answer
within 2.5 s. A LISTEN_ADDR without a host, or with a wildcard, is asked for on
this machine.

Made for containers that have no curl.`,
		Args:        noArguments,
		Annotations: map[string]string{environmentNote: describe(&healthcheckConfig{})},
		RunE: func(cmd *cobra.Command, _ []string) error {
			return healthcheck(cmd.Context(), vars, stdout)
		},
	}
}

func healthcheck(ctx context.Context, vars environment, stdout io.Writer) error {
	var config healthcheckConfig
	if err := load(vars, &config); err != nil {
		return err
	}
	address, err := reachable(config.Listen.Addr)
	if err != nil {
		return err
	}
	url := "http://" + address + "/health"

	ctx, cancel := context.WithTimeoutCause(ctx, healthcheckTimeout, fmt.Errorf("no answer within %s", healthcheckTimeout))
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	// A client of its own: the default one would ask a proxy that the environment names.
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("unhealthy: %s: %w", url, plain(ctx, err))
	}
	defer func() { _ = response.Body.Close() }()

	body, err := io.ReadAll(io.LimitReader(response.Body, 64<<10))
	if err != nil {
		return fmt.Errorf("unhealthy: %s: %w", url, plain(ctx, err))
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("unhealthy: %s: %s: %s", url, response.Status, reason(body))
	}
	_, err = fmt.Fprintln(stdout, "healthy:", url)
	return err
}

// reachable turns an address to listen on into one to connect to: the wildcard hosts mean this machine.
func reachable(listenAddr string) (string, error) {
	host, port, err := net.SplitHostPort(listenAddr)
	if err != nil {
		return "", err
	}
	if port == "0" {
		return "", usageError{errors.New(`LISTEN_ADDR has port 0, any free one: only the service knows which it got`)}
	}
	ip := net.ParseIP(host)
	switch {
	case host == "" || ip != nil && ip.IsUnspecified() && ip.To4() != nil:
		host = "127.0.0.1"
	case ip != nil && ip.IsUnspecified():
		host = "::1"
	}
	return net.JoinHostPort(host, port), nil
}

// plain strips an error of net/http of what the sentence says already.
func plain(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Err
	}
	return err
}

// reason is why, out of the body of an unhealthy answer, or the beginning of a body that is not ours.
func reason(body []byte) string {
	var answer struct {
		Error string `json:"error"`
	}
	if err := json.Unmarshal(body, &answer); err == nil && answer.Error != "" {
		return answer.Error
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(body)), "\n")
	return shorten(line)
}
