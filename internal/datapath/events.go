// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf/ringbuf"

	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/datapath/object"
	"github.com/weft-net/weft/internal/datapath/reason"
	"github.com/weft-net/weft/internal/flow"
)

const (
	eventVersion = 1 // EVENT_VERSION of bpf/lib/types.h
	eventDrop    = 1
)

// ReadEvents hands each record of the ring buffer to f, in order, until ctx
// ends; it then returns nil. The ring has one reader: f must be fast, what does
// not fit into the ring meanwhile is counted as event-lost. Records that this
// version cannot read are skipped.
func (d *Datapath) ReadEvents(ctx context.Context, f func(flow.Event)) error {
	r, err := ringbuf.NewReader(d.maps.Raw(object.DatapathMapWeftEvents))
	if err != nil {
		return fmt.Errorf("events: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = r.Close() }) // wakes the reader
	defer func() {
		if stop() {
			_ = r.Close()
		}
	}()
	boot, err := maps.Boot()
	if err != nil {
		return fmt.Errorf("events: %w", err)
	}
	var rec ringbuf.Record
	for {
		err := r.ReadInto(&rec)
		switch {
		case errors.Is(err, ringbuf.ErrClosed):
			return nil
		case err != nil:
			return fmt.Errorf("events: %w", err)
		}
		if e, ok := decodeEvent(rec.RawSample, boot); ok {
			f(e)
		}
	}
}

// decodeEvent reads one record. Later versions only append, so the first fields
// keep their meaning.
func decodeEvent(raw []byte, boot time.Time) (flow.Event, bool) {
	var v object.DatapathWeftEvent
	if len(raw) < binary.Size(v) || raw[0] < eventVersion {
		return flow.Event{}, false
	}
	if err := binary.Read(bytes.NewReader(raw), binary.NativeEndian, &v); err != nil {
		return flow.Event{}, false
	}
	e := flow.Event{
		Time: boot.Add(time.Duration(v.Time)), Type: flow.TypeTrace, Hook: reason.Hook(v.Hook).String(),
		IfIndex: int(v.Ifindex), OutIf: int(v.OutIfindex), Endpoint: v.Endpoint,
		Proto: v.Proto, TCPFlags: v.TcpFlags, SrcID: v.SrcIdentity, DstID: v.DstIdentity, Length: v.Length,
	}
	if v.Type == eventDrop {
		e.Type, e.Verdict, e.Reason = flow.TypeDrop, "drop", reason.Code(v.Code).String()
	} else {
		e.Verdict = reason.Code(v.Code).String()
	}
	if v.Family != 0 {
		e.Src, e.Dst = eventAddr(v.Saddr), eventAddr(v.Daddr)
	}
	if v.Proto == 1 || v.Proto == 58 {
		e.ICMPType, e.ICMPCode = uint8(v.Sport>>8), uint8(v.Sport)
	} else {
		e.SrcPort, e.DstPort = v.Sport, v.Dport
	}
	return e, true
}

func eventAddr(w object.DatapathV6addr) netip.Addr {
	var b [16]byte
	for i, v := range w.W {
		binary.NativeEndian.PutUint32(b[4*i:], v)
	}
	return netip.AddrFrom16(b).Unmap()
}
