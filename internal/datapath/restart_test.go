// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"encoding/binary"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/datapath"
)

// TestReopenUnderTraffic guards against an agent's restart or upgrade that loses
// a packet or resets a connection: numbered datagrams and a TCP stream cross
// both nodes while the datapath of one is closed and opened again.
func TestReopenUnderTraffic(t *testing.T) {
	c := newCluster(t)
	n1 := c.nodes[0]
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for _, fam := range families {
		dst := c.nodes[1].pods[0]
		to := ap(dst.addr.of(fam), 8080)
		echoTCP(t, dst.space, to)
		echoUDP(t, dst.space, to)
		stream, err := dial(t, n1.pods[0].space, "tcp", to)
		if err != nil {
			t.Fatal(err)
		}
		datagrams, err := dial(t, n1.pods[0].space, "udp", to)
		if err != nil {
			t.Fatal(err)
		}
		wg.Add(2)
		go func() { // ends with stop
			defer wg.Done()
			if err := streamUntil(stream, stop); err != nil {
				t.Errorf("ipv%d stream: %v", fam, err)
			}
		}()
		go func() { // ends with stop
			defer wg.Done()
			if err := countUntil(datagrams, stop); err != nil {
				t.Errorf("ipv%d datagrams: %v", fam, err)
			}
		}()
	}
	for range 5 {
		n1.in(t, func() {
			d, err := datapath.Open(datapath.Options{Root: n1.root, IPv4: true, IPv6: true, Sizes: testSizes})
			if err != nil {
				t.Error(err)
				return
			}
			<-time.After(100 * time.Millisecond) // traffic under the new programs
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	close(stop)
	wg.Wait()
	c.noDrops()
}

func streamUntil(c net.Conn, stop <-chan struct{}) error {
	for goesOn(stop) {
		if err := exchangeIn(4*patience, c, 100000); err != nil {
			return err
		}
	}
	return nil
}

// goesOn is false when stop is closed. On a processor that is emulated (-short) a
// conversation pauses between its turns, or what it must not notice would take
// minutes.
func goesOn(stop <-chan struct{}) bool {
	var pause time.Duration
	if testing.Short() {
		pause = 50 * time.Millisecond
	}
	select {
	case <-stop:
		return false
	case <-time.After(pause):
		return true
	}
}

// countUntil sends numbered datagrams, one in flight, and wants each back.
func countUntil(c net.Conn, stop <-chan struct{}) error {
	var b [8]byte
	for i := uint64(1); goesOn(stop); i++ {
		binary.BigEndian.PutUint64(b[:], i)
		if err := c.SetDeadline(time.Now().Add(4 * patience)); err != nil {
			return err
		}
		if _, err := c.Write(b[:]); err != nil {
			return err
		}
		if _, err := c.Read(b[:]); err != nil {
			return fmt.Errorf("datagram %d: %w", i, err)
		}
		if got := binary.BigEndian.Uint64(b[:]); got != i {
			return fmt.Errorf("datagram %d came back as %d", i, got)
		}
	}
	return nil
}
