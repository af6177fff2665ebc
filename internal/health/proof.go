// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/weft-net/weft/internal/endpoint"
	"github.com/weft-net/weft/internal/table"
)

// Addresses of the proof endpoint: reserved, outside of any pool, gone again
// when the proof ends. 169.254.0.0/16 is link-local (RFC 3927) and fd00::/8
// unique local (RFC 4193); 7766:6574 spells "weft".
var (
	ProofIPv4 = netip.AddrFrom4([4]byte{169, 254, 77, 1})
	ProofIPv6 = netip.AddrFrom16([16]byte{0xfd, 0x77, 0x65, 0x66, 0x74, 0x70, 15: 1})
)

// ProofContainer names the proof endpoint's attachment.
const (
	ProofContainer = "weft-proof"
	proofIfName    = "eth0"
	pingTimeout    = 2 * time.Second
)

// Endpoints makes and removes endpoints; internal/endpoint.Manager does.
type Endpoints interface {
	Add(ctx context.Context, req endpoint.AddRequest) (table.Endpoint, error)
	Delete(ctx context.Context, containerID, ifName string) error
}

// Namespaces makes network namespaces for a short use.
type Namespaces interface {
	// Create returns the path of a new namespace, which is gone with the last
	// device in it after release.
	Create() (path string, release func() error, err error)
}

// Echo pings an address from this node; Pinger does.
type Echo interface {
	Ping(ctx context.Context, addr netip.Addr) (time.Duration, error)
}

// Proof is a real ADD, ping and DEL on this node.
type Proof struct {
	Endpoints  Endpoints
	Namespaces Namespaces
	Echo       Echo
	Addrs      []netip.Addr // ProofIPv4 and ProofIPv6, as the families are on
}

// Run carries the proof out. Whatever it made is gone afterwards, also when it
// fails.
func (p Proof) Run(ctx context.Context) (err error) {
	path, release, err := p.Namespaces.Create()
	if err != nil {
		return fmt.Errorf("proof: %w", err)
	}
	defer func() {
		// The DEL is part of the proof, and cleaning up must not stop at the end
		// of ctx.
		dctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if derr := p.Endpoints.Delete(dctx, ProofContainer, proofIfName); derr != nil {
			err = errors.Join(err, fmt.Errorf("proof: DEL: %w", derr))
		}
		if nerr := release(); nerr != nil {
			err = errors.Join(err, fmt.Errorf("proof: %w", nerr))
		}
	}()
	if _, err := p.Endpoints.Add(ctx, endpoint.AddRequest{
		Kind: table.EndpointProof, ContainerID: ProofContainer, IfName: proofIfName, Netns: path,
		Namespace: "weft", Pod: "proof", IPs: p.Addrs,
	}); err != nil {
		return fmt.Errorf("proof: ADD: %w", err)
	}
	for _, a := range p.Addrs {
		if err := pingTwice(ctx, p.Echo, a); err != nil {
			return fmt.Errorf("proof: %w: the node cannot reach a pod on itself: look at `weft bpf metrics list` for drops and at `ip route get %s`", err, a)
		}
	}
	return nil
}

// pingTwice allows for one lost packet.
func pingTwice(ctx context.Context, e Echo, a netip.Addr) error {
	var err error
	for range 2 {
		pctx, cancel := context.WithTimeout(ctx, pingTimeout)
		_, err = e.Ping(pctx, a)
		cancel()
		if err == nil {
			return nil
		}
	}
	return err
}
