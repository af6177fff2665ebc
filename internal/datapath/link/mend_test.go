// SPDX-License-Identifier: Apache-2.0

package link_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/datapath/link"
	"github.com/weft-net/weft/internal/datapath/link/nstest"
)

// A namespace that is not the pair's must stay as it is, even though a device of
// the pod's name is in there and down.
func TestUpRefusesOtherNamespace(t *testing.T) {
	l := links(t)
	node(t)
	v, index := pod(t, l)
	other := nstest.Netns(t)
	nstest.Inside(t, other, func() error {
		return errors.Join(ip("link", "add", "eth0", "type", "veth", "peer", "name", "x"), ip("link", "set", "eth0", "address", v.MAC.String()))
	})
	v.Netns = other
	for name, f := range map[string]func(link.Veth, int, link.Addressing) error{
		"up":   func(v link.Veth, i int, a link.Addressing) error { return l.Up(v, i, a, nil) },
		"mend": l.Mend,
	} {
		err := f(v, index, both())
		var ns *link.NetnsError
		if !errors.As(err, &ns) || ns.Path != other || !strings.Contains(err.Error(), "another namespace") {
			t.Errorf("%s: %v", name, err)
		}
	}
	nstest.Inside(t, other, func() error {
		if err := ip("route", "get", "192.0.2.9"); err == nil {
			t.Error("the other namespace has a route")
		}
		return nil
	})
}
