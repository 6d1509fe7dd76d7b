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

// healthcheckTimeout limits the whole check. The service answers /health within 2 s, and the image
// gives this command 3 s: the reason must be printed before that.
const healthcheckTimeout = 2500 * time.Millisecond

// healthcheckConfig is the configuration of `coupond healthcheck`.
type healthcheckConfig struct {
	Listen listenConfig
}

func newHealthcheckCommand(vars environment, stdout io.Writer) *cobra.Command {
	return &cobra.Command{
		Use:   "healthcheck",
		Short: "Check whether the running service is ready: exit status 0 or 1",
		Long: `Send GET /health to the service that listens on LISTEN_ADDR, and print the
result in one line. The exit status is 0 if the service is ready, and 1 if it is
not or does not answer within 2.5 s. If LISTEN_ADDR has no host or a wildcard,
the request goes to this machine.

For containers that have no curl.`,
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
	address, err := dialAddress(config.Listen.Addr)
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
	// Not the default client, which may use an HTTP proxy from the process's environment.
	client := http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // coupond never redirects
	}
	response, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("unhealthy: %s: %w", url, shortError(ctx, err))
	}
	defer func() { _ = response.Body.Close() }()

	body, err := io.ReadAll(io.LimitReader(response.Body, 64<<10))
	if err != nil {
		return fmt.Errorf("unhealthy: %s: %w", url, shortError(ctx, err))
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("unhealthy: %s: %s: %s", url, response.Status, unhealthyReason(body))
	}
	_, err = fmt.Fprintln(stdout, "healthy:", url)
	return err
}

// dialAddress turns an address to listen on into one to connect to. Wildcard hosts become the
// loopback address.
func dialAddress(listenAddr string) (string, error) {
	host, port, err := net.SplitHostPort(listenAddr)
	if err != nil {
		return "", err
	}
	if port == "0" {
		return "", usageError{errors.New("LISTEN_ADDR has port 0, which means any free port: only the service knows which one; set its port")}
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

// shortError returns err without the method, URL and address that net/http adds: the caller names
// them.
func shortError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Err
	}
	return err
}

// unhealthyReason returns the error in the body of a response to /health, or the first line of a
// body that another program sent.
func unhealthyReason(body []byte) string {
	var answer struct {
		Error string `json:"error"`
	}
	if err := json.Unmarshal(body, &answer); err == nil && answer.Error != "" {
		return answer.Error
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(body)), "\n")
	return shorten(line)
}
