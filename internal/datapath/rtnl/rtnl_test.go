// SPDX-License-Identifier: Apache-2.0

//go:build linux

package rtnl_test

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/datapath/link/nstest"
	"github.com/weft-net/weft/internal/datapath/rtnl"
)

func TestMain(m *testing.M) { os.Exit(nstest.Main(m.Run)) }

// Fault: an error in the middle of a batch is lost, or names another message, or
// its answer is taken for the next batch's.
func TestCommit(t *testing.T) {
	nstest.Require(t)
	c, err := rtnl.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	up := func(what string, index int) {
		c.Begin(what, unix.RTM_SETLINK, 0, rtnl.Link(index, unix.IFF_UP, unix.IFF_UP))
	}
	up("lo", 1)
	up("missing", 4711)
	up("missing, too", 4712)
	up("lo again", 1)
	var refused *rtnl.Error
	if err := c.Commit(); !errors.As(err, &refused) || refused.What != "missing" || refused.Errno != unix.ENODEV {
		t.Errorf("got %v", err)
	}
	up("missing", 4711)
	c.Tolerate(unix.ENODEV)
	up("lo", 1)
	if err := c.Commit(); err != nil {
		t.Error(err)
	}
	c.Begin("lo", unix.RTM_GETLINK, 0, rtnl.Link(1, 0, 0))
	if b, err := c.Get(); err != nil || len(b) < unix.SizeofIfInfomsg || b[4] != 1 {
		t.Errorf("answer %v, %v", b, err)
	}
	c.Begin("missing", unix.RTM_GETLINK, 0, rtnl.Link(4711, 0, 0))
	if _, err := c.Get(); !errors.As(err, &refused) || refused.Errno != unix.ENODEV {
		t.Errorf("got %v", err)
	}
	if err := c.Commit(); err != nil {
		t.Errorf("nothing to send, but %v", err)
	}
}
