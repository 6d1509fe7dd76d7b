package main

import (
	"errors"
	"fmt"
	"io/fs"

	"scalable-coupon-system/internal/procmem"
)

// checkMemory checks the peak memory of the instances since the last check. A container's limit
// counts the data in the send buffers of its connections, too. after names the faults.
func (t *faultTest) checkMemory(after string) error {
	for _, one := range t.env.instances {
		peak, queued, err := one.memory()
		if errors.Is(err, fs.ErrNotExist) {
			return nil // no /proc on this system
		}
		if err != nil {
			return fmt.Errorf("memory of an instance: %w", err)
		}
		t.count.memory(peak + queued)
		if peak+queued > procmem.Limit {
			t.violations.memory.add("%s: %d MiB, and %d MiB in send buffers; the limit is %d MiB", after, peak>>20, queued>>20, procmem.Limit>>20)
		}
	}
	return nil
}

// memory returns the peak of the resident set of the process since the last call, and the bytes
// that wait in the send buffers of its HTTP connections.
func (i *instance) memory() (peak, queued int64, err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.cmd == nil {
		return 0, 0, errors.New("the instance is not running")
	}
	if peak, err = procmem.Peak(i.cmd.Process.Pid); err != nil {
		return 0, 0, err
	}
	if err = procmem.ResetPeak(i.cmd.Process.Pid); err != nil {
		return 0, 0, err
	}
	queued, err = procmem.SendBuffers(i.address)
	return peak, queued, err
}
