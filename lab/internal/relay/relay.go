// SPDX-License-Identifier: Apache-2.0

// Package relay delays a link in user space, for kernels without the netem
// queueing discipline. It stands between a veth and a TAP device that takes
// the veth's place in the bridge, and holds every frame back for a while.
// Frames keep their virtio header, and with it unfinished checksums and
// segmentation.
package relay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Verb is the hidden command that runs a relay.
const Verb = "link-relay"

// maxHeld bounds the bytes that wait in one direction; what comes above that
// is lost, as in a router's buffer.
const maxHeld = 64 << 20

// frameSize holds the largest segmented frame with its headers.
const frameSize = 10 + 14 + 8 + 65535

// Open makes the TAP device, in the calling thread's network namespace.
func Open(tap string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("relay: /dev/net/tun: %w", err)
	}
	req, err := unix.NewIfreq(tap)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("relay: device %s: %w", tap, err)
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("relay: device %s: %w", tap, err)
	}
	const offloads = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, offloads); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("relay: device %s: offloads: %w", tap, err)
	}
	return os.NewFile(uintptr(fd), tap), nil
}

// openVeth opens a packet socket on a device: all frames that come in, with
// virtio headers.
func openVeth(index int) (*os.File, error) {
	proto := uint16(unix.ETH_P_ALL)
	proto = proto<<8 | proto>>8
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("relay: packet socket: %w", err)
	}
	set := func(level, option, value int) {
		if err == nil {
			err = unix.SetsockoptInt(fd, level, option, value)
		}
	}
	set(unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1)
	set(unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
	set(unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20)
	if err == nil {
		err = unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP,
			&unix.PacketMreq{Ifindex: int32(index), Type: unix.PACKET_MR_PROMISC})
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: proto, Ifindex: index})
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("relay: packet socket on device %d: %w", index, err)
	}
	return os.NewFile(uintptr(fd), "veth"), nil
}

type frame struct {
	due  time.Time
	data []byte
}

// Run carries frames both ways until the TAP device is deleted. It must be
// called on a thread in the network namespace of the device.
func Run(ctx context.Context, tap *os.File, vethIndex int, delay time.Duration) error {
	veth, err := openVeth(vethIndex)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, way := range [][2]*os.File{{veth, tap}, {tap, veth}} {
		var held atomic.Int64
		queue := make(chan frame, 1<<16)
		g.Go(func() error { return take(ctx, way[0], queue, &held, delay) })
		g.Go(func() error { return give(ctx, way[1], queue, &held) })
	}
	g.Go(func() error {
		<-ctx.Done()
		return errors.Join(veth.Close(), tap.Close())
	})
	return g.Wait()
}

func take(ctx context.Context, from *os.File, queue chan<- frame, held *atomic.Int64, delay time.Duration) error {
	buf := make([]byte, frameSize)
	for {
		n, err := from.Read(buf)
		if errors.Is(err, unix.ENETDOWN) || errors.Is(err, unix.EINTR) {
			continue // the device was set down; it may come up again
		}
		if err != nil {
			return fmt.Errorf("relay: %s: %w", from.Name(), err)
		}
		if held.Load()+int64(n) > maxHeld {
			continue
		}
		f := frame{time.Now().Add(delay), append([]byte(nil), buf[:n]...)}
		select {
		case queue <- f:
			held.Add(int64(n))
		case <-ctx.Done():
			return nil
		default: // full: lost
		}
	}
}

func give(ctx context.Context, to *os.File, queue <-chan frame, held *atomic.Int64) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var f frame
		select {
		case f = <-queue:
		case <-ctx.Done():
			return nil
		}
		if wait := time.Until(f.due); wait > 0 {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-ctx.Done():
				return nil
			}
		}
		held.Add(-int64(len(f.data)))
		// A device that is down or a frame above its MTU loses the frame only.
		if _, err := to.Write(f.data); errors.Is(err, os.ErrClosed) || errors.Is(err, unix.EBADFD) {
			return fmt.Errorf("relay: %s: %w", to.Name(), err)
		}
	}
}

// Index of a device by name, in the calling thread's network namespace.
func Index(dev string) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("relay: %w", err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq(dev)
	if err != nil {
		return 0, fmt.Errorf("relay: device %s: %w", dev, err)
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, req); err != nil {
		return 0, fmt.Errorf("relay: device %s: %w", dev, err)
	}
	return int(req.Uint32()), nil
}
