// Package procmem measures the memory of another process, as the limit of its container counts it.
// It reads /proc, so only Linux has these figures.
package procmem

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/prometheus/procfs"
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
	process, err := procfs.NewProc(pid)
	if err != nil {
		return 0, err
	}
	status, err := process.NewStatus()
	return int64(status.VmHWM), err
}

// SendBuffers returns the bytes that wait in the kernel's send buffers of the IPv4 connections with
// this local address, "host:port", of any process. The host is ignored.
func SendBuffers(address string) (bytes int64, err error) {
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
	local := fmt.Sprintf(":%04X", number)
	for line := range strings.Lines(string(sockets)) {
		// The slot, both addresses, the state, and the queues as tx:rx in hexadecimal.
		fields := strings.Fields(line)
		if len(fields) < 5 || !strings.HasSuffix(fields[1], local) {
			continue
		}
		queue, _, _ := strings.Cut(fields[4], ":")
		n, err := strconv.ParseInt(queue, 16, 64)
		if err != nil {
			return 0, err
		}
		bytes += n
	}
	return bytes, nil
}
