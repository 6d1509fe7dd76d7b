package main

import (
	"errors"
	"math"
	"runtime/debug"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/dustin/go-humanize"
	"github.com/rs/zerolog"

	"scalable-coupon-system/internal/drain"
)

// How the memory is divided: half for connections, a quarter for the bodies and responses in
// flight, a quarter for everything else. None of these is a setting: GOMEMLIMIT, or the container's
// limit, sets them all.
const (
	// connMemory is what a connection takes in net/http: 20 KiB, or more with a large header.
	connMemory = 32 << 10

	// unlimitedInFlight is for a process whose memory is not limited.
	unlimitedInFlight = 256 << 20
)

// limitMemory sets the soft memory limit of Go's garbage collector to 90 % of the container's
// (cgroup's) limit, unless GOMEMLIMIT sets it. Go itself does not look at the container's limit.
func limitMemory(log zerolog.Logger) {
	_, err := memlimit.Set()
	if err != nil && !errors.Is(err, memlimit.ErrCgroupsNotSupported) && !errors.Is(err, memlimit.ErrNoCgroup) {
		log.Warn().Err(err).Msg("the container's memory limit is unknown; set GOMEMLIMIT to 90 % of it")
	}
}

// memoryLimit returns the soft memory limit in bytes; math.MaxInt64 if there is none.
func memoryLimit() int64 { return debug.SetMemoryLimit(-1) }

// formatLimit formats a memory limit for the log.
func formatLimit(bytes int64) string {
	if bytes == math.MaxInt64 {
		return "none"
	}
	return humanize.IBytes(uint64(bytes))
}

// maxInFlight returns how many bytes bodies and responses in flight may take.
func maxInFlight(memoryLimit int64) int64 {
	if memoryLimit == math.MaxInt64 {
		return unlimitedInFlight
	}
	return max(1, memoryLimit/4)
}

// maxConnections returns how many connections may be open: as many as the memory and the file
// descriptors suffice for.
func maxConnections(memoryLimit int64, toPostgreSQL int32) int {
	return int(min(int64(drain.MaxConns(toPostgreSQL)), max(1, memoryLimit/2/connMemory)))
}
