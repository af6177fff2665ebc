// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// settleTime collects notifications that come together.
	settleTime = 50 * time.Millisecond
	// resync is a look at the kernel without any notification.
	resync = 5 * time.Minute
	// listenBuffer holds notifications in bytes; what does not fit is lost and
	// answered with a full look.
	listenBuffer = 1 << 20
)

// listening says what a watch listens to.
type listening struct {
	groups  []uint // of rtnetlink
	matters func(syscall.NetlinkMessage) bool
	settle  time.Duration   // waits for notifications that come together
	again   <-chan struct{} // asks for a look; may be nil
}

// watch calls look once at the start, after every change that matters, and
// once in a while, until ctx ends. Notifications only say that something
// changed; look reads what. So a lost one costs nothing but one more look.
func watch(ctx context.Context, l listening, look func() error) error {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, l.groups...)
	if err != nil {
		return fmt.Errorf("subscribe to kernel notifications: %w", err)
	}
	defer s.Close()
	if err := s.SetReceiveBufferSize(listenBuffer, true); err != nil {
		if err := s.SetReceiveBufferSize(listenBuffer, false); err != nil {
			return fmt.Errorf("kernel notifications: buffer of %d bytes: %w", listenBuffer, err)
		}
	}
	changed := make(chan struct{}, 1)
	failed := make(chan error, 1)
	stop := context.AfterFunc(ctx, s.Close) // ends Receive
	defer stop()
	go func() { failed <- receive(s, l.matters, changed) }()

	timer := time.NewTimer(0)
	defer timer.Stop()
	settling := true
	for {
		select {
		case <-ctx.Done():
			<-failed //nolint:errcheck // closing the socket is what ended it
			return nil
		case err := <-failed:
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("kernel notifications: %w", err)
		case <-changed:
		case <-l.again:
		case <-timer.C:
			settling = false
			if err := look(); err != nil {
				return err
			}
			timer.Reset(resync)
			continue
		}
		if !settling {
			settling = true
			timer.Reset(l.settle)
		}
	}
}

// receive tells changed of notifications that matter until the socket is closed.
func receive(s *nl.NetlinkSocket, matters func(syscall.NetlinkMessage) bool, changed chan<- struct{}) error {
	for {
		msgs, from, err := s.Receive()
		switch {
		case errors.Is(err, unix.ENOBUFS): // some were lost: any of them might have mattered
			notify(changed)
			continue
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue
		case err != nil:
			return err
		case from.Pid != nl.PidKernel:
			continue
		}
		if slices.ContainsFunc(msgs, matters) {
			notify(changed)
		}
	}
}

func notify(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
