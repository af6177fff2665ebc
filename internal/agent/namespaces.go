// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// namespaces makes network namespaces that hang on a file descriptor of this
// process: they need no mount, and nothing of them survives the process.
type namespaces struct{}

// Create returns a path that leads to a new namespace until release is called.
func (namespaces) Create() (string, func() error, error) {
	type result struct {
		f   *os.File
		err error
	}
	done := make(chan result, 1)
	go func() {
		// The thread is never unlocked: it ends with the goroutine, in the
		// namespace that it made.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- result{err: fmt.Errorf("new network namespace: %w: the agent needs CAP_SYS_ADMIN", err)}
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			err = fmt.Errorf("new network namespace: %w", err)
		}
		done <- result{f, err}
	}()
	r := <-done
	if r.err != nil {
		return "", nil, r.err
	}
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), r.f.Fd()), r.f.Close, nil
}
