// SPDX-License-Identifier: Apache-2.0

package link_test

import (
	"context"
	"strings"
	"testing"
	"time"
)

// settled waits until nothing was told for longer than a change is told again after.
func settled(c <-chan struct{}) {
	for {
		select {
		case <-c:
		case <-time.After(300 * time.Millisecond):
			return
		}
	}
}

// TestWatchWays guards against connections that go on where no route leads any
// more, as nobody was told, and against being told of each pod.
func TestWatchWays(t *testing.T) {
	l := links(t)
	node(t)
	told := make(chan struct{}, 1000)
	stop := run(t, func(ctx context.Context) error {
		return l.WatchWays(ctx, func() error { told <- struct{}{}; return nil })
	})
	defer stop()
	await(t, told, "the word at the start")
	for _, change := range []string{
		"route add 10.9.7.0/24 via 192.0.2.2",
		"route replace 10.9.7.0/24 via 192.0.2.3",
		"route del 10.9.7.0/24",
		"route add 10.9.8.1/32 via 192.0.2.2 protocol 87", // another node's range of one address
		"-6 route add fd00:77::/64 dev node0",
		"rule add from 10.9.7.7 table 100",
		"rule del from 10.9.7.7 table 100",
		"nexthop add id 77 via 192.0.2.2 dev node0",
		"nexthop del id 77",
		"addr add 10.9.9.9/32 dev node0",
		"link set node0 mtu 1400",
		"link set node0 down",
		"link set node0 up",
	} {
		settled(told)
		if err := ip(strings.Fields(change)...); err != nil {
			t.Fatalf("ip %s: %v", change, err)
		}
		await(t, told, "ip "+change)
		await(t, told, "ip "+change+", once more") // what the kernel drops without a word
	}
	if err := ip("link", "add", "lxc77", "type", "veth", "peer", "name", "lxc78"); err != nil {
		t.Fatal(err)
	}
	if err := ip("link", "set", "lxc77", "up"); err != nil {
		t.Fatal(err)
	}
	settled(told)
	for _, pod := range []string{"route add 10.244.7.7/32 dev lxc77 protocol 87", "route del 10.244.7.7/32 dev lxc77 protocol 87"} {
		if err := ip(strings.Fields(pod)...); err != nil {
			t.Fatalf("ip %s: %v", pod, err)
		}
	}
	select {
	case <-told:
		t.Error("told of a pod that came and went")
	case <-time.After(300 * time.Millisecond):
	}
}
