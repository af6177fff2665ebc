// SPDX-License-Identifier: Apache-2.0

package connectivity

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-net/weft/internal/table"
)

// Verdicts on a path's MTU.
const (
	// PathFits: packets as large as the route allows come back.
	PathFits = "ok"
	// PathTold: something on the way is narrower than the route says, and says so
	// (ICMP "fragmentation needed", "packet too big"): senders adapt.
	PathTold = "narrower than its route, senders are told"
	// PathSilent: larger packets vanish, and nobody tells: connections open and
	// then stall (a path MTU black hole, RFC 2923).
	PathSilent = "larger packets vanish"
	// PathDead: not even the smallest packet comes back.
	PathDead = "no answer"
)

// Smallest packets that every path must carry, in bytes (RFC 791, RFC 8200).
const (
	leastIPv4 = 576
	leastIPv6 = 1280
)

// Bounds of a probe. A packet that is lost by chance must not look like one that
// is too large, so each size is tried several times.
const (
	mtuTries    = 3
	mtuPatience = 300 * time.Millisecond
)

// PathMTU says how large a packet may be on the way to one address.
type PathMTU struct {
	To      string     `json:"to"`   // node
	Kind    string     `json:"kind"` // "node": its own address; "pods": its health endpoint, by the pods' way
	Addr    netip.Addr `json:"addr"`
	Route   int        `json:"route"`   // bytes: MTU of this node's route
	Largest int        `json:"largest"` // bytes: the largest packet that came back, 0 for none
	Verdict string     `json:"verdict"`
	Error   string     `json:"error,omitempty"`
}

// TableHeader names the columns of TableRow.
func (*PathMTU) TableHeader() []string {
	return []string{"TO", "KIND", "ADDRESS", "ROUTE-MTU", "LARGEST", "VERDICT"}
}

// TableRow renders the path under TableHeader.
func (p *PathMTU) TableRow() []string {
	verdict := p.Verdict
	if p.Error != "" {
		verdict += ": " + p.Error
	}
	return []string{p.To, p.Kind, p.Addr.String(), strconv.Itoa(p.Route), strconv.Itoa(p.Largest), verdict}
}

// PathMTUs measures the paths from this node to all others in both families: to
// the nodes' own addresses and, by the way that pods take, to their health
// endpoints. A row is about the way there. An echo comes back as large as it went
// out, so a way back that eats large packets shows here too, unless the far end
// knows better and answers in pieces. Rows come in the order of the nodes. Linux
// only.
func PathMTUs(ctx context.Context, nodes []table.Node) []PathMTU {
	paths := []PathMTU{}
	for i := range nodes {
		n := &nodes[i]
		if n.Local {
			continue
		}
		for _, a := range n.Addrs {
			paths = append(paths, PathMTU{To: n.Name, Kind: "node", Addr: a})
		}
		for _, a := range n.HealthIPs {
			paths = append(paths, PathMTU{To: n.Name, Kind: "pods", Addr: a})
		}
	}
	var g errgroup.Group
	g.SetLimit(concurrency)
	for i := range paths {
		g.Go(func() error {
			paths[i].measure(ctx)
			return nil
		})
	}
	_ = g.Wait() // errors stand in the rows
	return paths
}

// measure finds the largest packet that comes back, by halving the interval
// between the smallest that must and what the route allows.
func (p *PathMTU) measure(ctx context.Context) {
	p.Verdict = PathDead
	var err error
	if p.Route, err = routeMTU(p.Addr); err != nil {
		p.Error = err.Error()
		return
	}
	least := leastIPv4
	if p.Addr.Is6() {
		least = leastIPv6
	}
	ceiling := min(p.Route, maxLength)
	least = min(least, ceiling)
	tooLarge := p.try(ctx, ceiling)
	if tooLarge == nil {
		p.Largest, p.Verdict = ceiling, PathFits
		return
	}
	if err := p.try(ctx, least); err != nil {
		p.Error = err.Error()
		return
	}
	p.Verdict = PathSilent
	if errors.Is(tooLarge, errTold) {
		p.Verdict = PathTold
	}
	low, high := least, ceiling // low passes, high does not
	for high-low > 1 {
		if mid := (low + high) / 2; p.try(ctx, mid) == nil {
			low = mid
		} else {
			high = mid
		}
	}
	p.Largest = low
}

// errTold is an ICMP error about the size of a packet.
var errTold = errors.New("too large, said ICMP")

// try returns nil if a packet of so many bytes, IP header included, arrives in
// one piece and is answered, and errTold if somebody said that it is too large.
func (p *PathMTU) try(ctx context.Context, size int) error {
	headers, family := ipv4Header+icmpHeader, IPv4
	if p.Addr.Is6() {
		headers, family = ipv6Header+icmpHeader, IPv6
	}
	c := &Cell{Proto: ICMP, Family: family, Addr: p.Addr, Size: MTU, ID: size}
	token := NewToken()
	for range mtuTries {
		tctx, cancel := context.WithTimeout(ctx, mtuPatience)
		err := echoWhole(tctx, c, payload(token, c.ID, size-headers))
		cancel()
		switch {
		case err == nil:
			return nil
		case errors.Is(err, syscall.EMSGSIZE):
			return fmt.Errorf("%d bytes: %w", size, errTold)
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
		if ne := net.Error(nil); !errors.As(err, &ne) || !ne.Timeout() {
			return err
		}
	}
	return fmt.Errorf("%d bytes: no answer within %s, %d times", size, mtuPatience, mtuTries)
}

// echoWhole is echoICMP with a socket that is told of ICMP errors.
func echoWhole(ctx context.Context, c *Cell, sent []byte) error {
	f, raw, err := openICMP(c.Addr, true)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := reportICMP(f, c.Family == IPv6); err != nil {
		return fmt.Errorf("icmp socket: %w", err)
	}
	return echoOver(ctx, f, raw, c, sent)
}
