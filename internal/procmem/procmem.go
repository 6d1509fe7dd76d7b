// Package procmem measures the memory of another process, as the limit of its container counts it.
// It reads /proc, so only Linux has these figures.
package procmem

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
)

// Limit is the memory, in bytes, of the container in which the service must be able to run. GoLimit
// is the environment variable that `coupond serve` would take from such a container. It is not a
// bound: a program that holds more uses more.
const (
	Limit   = 512 << 20
	GoLimit = "GOMEMLIMIT=460MiB"
)

// ResetPeak makes Peak start again from the present memory of the process.
func ResetPeak(pid int) error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)
}

// Peak returns the largest resident set, in bytes, that the process has had since it was started or
// since ResetPeak.
func Peak(pid int) (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	return parsePeak(string(status))
}

func parsePeak(status string) (int64, error) {
	for line := range strings.Lines(status) {
		if value, found := strings.CutPrefix(line, "VmHWM:"); found {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("no VmHWM in the status of a process: %.200q", status)
}

// SendBuffers returns the bytes that wait in the kernel's send buffers of the IPv4 connections with
// this local address, "host:port", of any process. The host is ignored.
func SendBuffers(address string) (int64, error) {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return 0, err
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return 0, err
	}
	sockets, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		return 0, err
	}
	return parseSendBuffers(string(sockets), number), nil
}

func parseSendBuffers(sockets string, port uint64) (bytes int64) {
	local := fmt.Sprintf(":%04X", port)
	for line := range strings.Lines(sockets) {
		// The slot, both addresses, the state, and the queues as tx:rx in hexadecimal.
		fields := strings.Fields(line)
		if len(fields) < 5 || !strings.HasSuffix(fields[1], local) {
			continue
		}
		queue, _, _ := strings.Cut(fields[4], ":")
		if n, err := strconv.ParseInt(queue, 16, 64); err == nil {
			bytes += n
		}
	}
	return bytes
}
