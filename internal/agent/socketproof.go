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
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/table"
)

// proofTimeout bounds one proof. A connection that is not translated goes to an
// address for documentation, from where nothing comes back.
const proofTimeout = 5 * time.Second

// proofPort is the port of the service of the proof.
const proofPort = 9

// socketProof is a connection to a service that exists for this alone, made by a
// process in a cgroup of its own: that the programs are attached does not say that
// processes of pods are below the cgroup to which they are.
type socketProof struct {
	services *maps.ServiceMap
	cgroup   string // of the node
	backend  uint32 // an id that no other backend gets
	v6       bool
	// run connects to the address from the cgroup, and sends the word.
	run func(ctx context.Context, cgroup *os.File, to netip.AddrPort, word string) error
}

func (p socketProof) once(ctx context.Context) error {
	if err := p.try(ctx); err != nil {
		return fmt.Errorf("a connection from a cgroup like a pod's was not sent to its backend: %w; is %s the node's cgroup2 hierarchy?", err, p.cgroup)
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
	dir := filepath.Join(p.cgroup, "weft-proof")
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(dir)) }()
	return p.connect(ctx, dir, l, f.Key.Addr)
}

// connect wants what comes in at the listener to be the word that was sent to the
// service.
func (p socketProof) connect(ctx context.Context, dir string, l net.Listener, service netip.AddrPort) error {
	cgroup, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer cgroup.Close()
	word := rand.Text()
	heard := make(chan bool, 1)
	go func() { heard <- hears(l, word) }() // until the listener is closed
	if err := p.run(ctx, cgroup, service, word); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return errors.New("it went somewhere else")
	case ok := <-heard:
		if !ok {
			return errors.New("something else came")
		}
		return nil
	}
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

// ProveSocket is what the process in the other cgroup does: it connects to a
// service, says the word and wants to be told that it talks to the service.
func ProveSocket(ctx context.Context, to, word string) error {
	c, err := (&net.Dialer{Timeout: proofTimeout}).DialContext(ctx, "tcp", to)
	if err != nil {
		return err
	}
	defer c.Close()
	if peer := c.RemoteAddr().String(); peer != to {
		return fmt.Errorf("getpeername says %s, not %s", peer, to)
	}
	_, err = c.Write([]byte(word))
	return err
}

// proveByProcess has this program run again in the cgroup, as `weft-agent prove-socket`.
func proveByProcess(ctx context.Context, cgroup *os.File, to netip.AddrPort, word string) error {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "prove-socket", to.String(), word)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cgroup.Fd()), Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if len(out) > 0 && err != nil {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(out))
	}
	return err
}
