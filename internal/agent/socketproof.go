// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/table"
)

// proofTimeout bounds one proof. A connection that is not translated goes to an
// address for documentation, from where nothing comes back.
const proofTimeout = 5 * time.Second

// proofPort is the port of the service of the proof.
const proofPort = 9

// socketProof is a connection to a service that exists for this alone. That the
// programs are attached does not say that pods are below the cgroup to which they
// are; the agent is a pod itself, and connects from its container's cgroup.
type socketProof struct {
	services *maps.ServiceMap
	cgroup   string // of the node
	backend  uint32 // an id that no other backend gets
	v6       bool
}

func (p socketProof) once(ctx context.Context) error {
	if err := p.try(ctx); err != nil {
		return fmt.Errorf("a connection from the agent's own cgroup was not sent to its backend: %w; is %s the node's cgroup2 hierarchy?", err, p.cgroup)
	}
	return nil
}

func (p socketProof) try(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, proofTimeout)
	defer cancel()
	service, at := netip.MustParseAddr("192.0.2.1"), "127.0.0.1:0" // RFC 5737
	if p.v6 {
		service, at = netip.MustParseAddr("2001:db8::1"), "[::1]:0" // RFC 3849
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", at)
	if err != nil {
		return err
	}
	defer l.Close()
	addr, err := netip.ParseAddrPort(l.Addr().String())
	if err != nil {
		return err
	}
	f := table.Frontend{
		Key:  table.FrontendKey{Addr: netip.AddrPortFrom(service, proofPort), Proto: table.ProtoTCP},
		Type: table.FrontendClusterIP, Namespace: "weft", Service: "proof", Flags: table.FrontendBoth,
		Backends: []table.BackendRef{{ID: p.backend, Addr: addr, Proto: table.ProtoTCP, Local: true}},
	}
	if err := p.services.Upsert(f); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.services.Delete(f.Key)) }()
	return proveConnect(ctx, l, f.Key.Addr.String())
}

// proveConnect wants what comes in at the listener to be the word that was sent to
// the service, and to be told that it talks to the service.
func proveConnect(ctx context.Context, l net.Listener, service string) error {
	word := rand.Text()
	heard := make(chan bool, 1)
	go func() { heard <- hears(l, word) }() // until the listener is closed
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", service)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write([]byte(word)); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return errors.New("it went somewhere else")
	case ok := <-heard:
		if !ok {
			return errors.New("something else came")
		}
	}
	if peer := c.RemoteAddr().String(); peer != service {
		return fmt.Errorf("getpeername says %s, not %s", peer, service)
	}
	return nil
}

func hears(l net.Listener, word string) bool {
	c, err := l.Accept()
	if err != nil {
		return false
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(proofTimeout)); err != nil {
		return false
	}
	b := make([]byte, len(word))
	_, err = c.Read(b)
	return err == nil && bytes.Equal(b, []byte(word))
}
