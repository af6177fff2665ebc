// SPDX-License-Identifier: Apache-2.0

package connectivity

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

// handshake opens a TCP connection to the API server and does the TLS handshake
// on it. Certificates are not checked: nothing is sent, and whether the
// bytes of the handshake pass is all that is asked.
func handshake(ctx context.Context, c *Cell) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(c.Addr, c.Port).String())
	if err != nil {
		return at("connect", reason(err))
	}
	defer conn.Close()
	return at("TLS handshake", tls.Client(conn, &tls.Config{InsecureSkipVerify: true}).HandshakeContext(ctx)) //nolint:gosec // see above
}

// query asks the DNS server for the API server's Service and takes any answer
// that is to this question and says that the name exists.
func query(ctx context.Context, c *Cell, name string) error {
	if name == "" {
		name = "kubernetes.default.svc." + clusterDomain("/etc/resolv.conf") + "."
	}
	id := uint16(rand.N(1 << 16)) //nolint:gosec // an id to match, not a secret
	msg, q, err := buildQuery(id, name, c.Family)
	if err != nil {
		return err
	}
	network := strings.ToLower(string(c.Proto))
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, netip.AddrPortFrom(c.Addr, c.Port).String())
	if err != nil {
		return at("connect", reason(err))
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline() // attempt sets one
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	answer, err := askDNS(conn, c.Proto, msg)
	if err != nil {
		return at("query", reason(err))
	}
	return checkAnswer(answer, id, q)
}

func buildQuery(id uint16, name string, f Family) ([]byte, dnsmessage.Question, error) {
	n, err := dnsmessage.NewName(name)
	if err != nil {
		return nil, dnsmessage.Question{}, fmt.Errorf("name %s: %w", name, err)
	}
	// The record asked for need not exist in both families; the name does.
	q := dnsmessage.Question{Name: n, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}
	if f == IPv6 {
		q.Type = dnsmessage.TypeAAAA
	}
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: id, RecursionDesired: true}, Questions: []dnsmessage.Question{q}}
	b, err := m.Pack()
	return b, q, err
}

// askDNS sends the message and reads one; over TCP a length of two bytes stands
// in front (RFC 1035, 4.2.2).
func askDNS(conn net.Conn, proto Proto, msg []byte) ([]byte, error) {
	if proto == UDP {
		if _, err := conn.Write(msg); err != nil {
			return nil, err
		}
		buf := make([]byte, 4096)
		n, err := conn.Read(buf)
		return buf[:n], err
	}
	if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...)); err != nil {
		return nil, err
	}
	var size [2]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return nil, err
	}
	buf := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(conn, buf)
	return buf, err
}

func checkAnswer(b []byte, id uint16, q dnsmessage.Question) error {
	var p dnsmessage.Parser
	h, err := p.Start(b)
	if err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	got, err := p.Question()
	switch {
	case err != nil:
		return fmt.Errorf("answer: %w", err)
	case h.ID != id || !h.Response:
		return errors.New("answer is not to this query")
	case !strings.EqualFold(got.Name.String(), q.Name.String()) || got.Type != q.Type:
		return fmt.Errorf("answer is to another question: %s %s", got.Name, got.Type)
	case h.RCode != dnsmessage.RCodeSuccess:
		return fmt.Errorf("%s: the server answered %s", q.Name, h.RCode)
	}
	return nil
}

// clusterDomain finds the cluster's domain among the search domains that
// kubelet wrote, "cluster.local" if it cannot.
func clusterDomain(resolvConf string) string {
	f, err := os.Open(resolvConf)
	if err != nil {
		return "cluster.local"
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		words := strings.Fields(sc.Text())
		if len(words) == 0 || words[0] != "search" {
			continue
		}
		for _, w := range words[1:] {
			if d, ok := strings.CutPrefix(w, "svc."); ok {
				return strings.TrimSuffix(d, ".")
			}
		}
	}
	return "cluster.local"
}
