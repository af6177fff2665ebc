// SPDX-License-Identifier: Apache-2.0

package flow_test

import (
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/datapath/reason"
	"github.com/weft-net/weft/internal/flow"
)

func drain(s *flow.Subscription) []flow.Event {
	var out []flow.Event
	for {
		select {
		case e, ok := <-s.Events():
			if !ok {
				return out
			}
			out = append(out, e)
		default:
			return out
		}
	}
}

// TestSlowReaderIsTold guards against loss that a reader cannot see, and
// against a slow reader that costs another one events.
func TestSlowReaderIsTold(t *testing.T) {
	var b flow.Broadcaster
	slow, fast := b.SubscribeBuffer(flow.Filter{}, 3), b.SubscribeBuffer(flow.Filter{}, 100)
	defer slow.Close()
	defer fast.Close()
	for i := range uint32(10) {
		b.Publish(flow.Event{Type: flow.TypeTrace, Length: i})
	}
	if got := drain(fast); len(got) != 10 || fast.Lost() != 0 {
		t.Errorf("fast reader: %d events, %d lost", len(got), fast.Lost())
	}
	if got := drain(slow); len(got) != 3 || got[2].Length != 2 {
		t.Errorf("slow reader: %v", got)
	}
	if slow.Lost() != 7 {
		t.Errorf("slow reader: %d lost, want 7", slow.Lost())
	}
	b.Publish(flow.Event{Type: flow.TypeTrace, Length: 10})
	got := drain(slow)
	if len(got) != 2 || got[0].Type != flow.TypeLost || got[0].Lost != 7 || got[1].Length != 10 {
		t.Errorf("want a report of 7 lost and the event, got %v", got)
	}
	b.Publish(flow.Event{Type: flow.TypeTrace, Length: 11})
	if got := drain(slow); len(got) != 1 {
		t.Errorf("loss was reported twice: %v", got)
	}
}

// TestPublishCountsAll guards against events that are neither delivered nor
// counted as lost, and against sends on a closed channel, under load.
func TestPublishCountsAll(t *testing.T) {
	var b flow.Broadcaster
	s := b.SubscribeBuffer(flow.Filter{}, 8)
	const writers, each = 4, 500
	var seen uint64
	read := make(chan struct{})
	go func() {
		defer close(read)
		for e := range s.Events() {
			if e.Type != flow.TypeLost {
				seen++
			}
		}
	}()
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range each {
				b.Publish(flow.Event{Type: flow.TypeDrop})
				b.SubscribeBuffer(flow.Filter{}, 2).Close()
			}
		})
	}
	wg.Wait()
	s.Close()
	s.Close()
	<-read
	if seen+s.Lost() != writers*each {
		t.Errorf("%d seen and %d lost of %d", seen, s.Lost(), writers*each)
	}
	if b.Active() {
		t.Error("somebody still listens after Close")
	}
}

// TestFilter guards against a monitor that shows other pods' packets.
func TestFilter(t *testing.T) {
	for _, tc := range []struct {
		f    flow.Filter
		e    flow.Event
		want bool
	}{
		{flow.Filter{}, flow.Event{Type: flow.TypeTrace}, true},
		{flow.Filter{Type: flow.TypeDrop}, flow.Event{Type: flow.TypeTrace}, false},
		{flow.Filter{Type: flow.TypeDrop}, flow.Event{Type: flow.TypeDrop}, true},
		{flow.Filter{Type: flow.TypeDrop}, flow.Event{Type: flow.TypeLost}, true},
		{flow.Filter{Pod: "a/web"}, flow.Event{Pod: "a/web"}, true},
		{flow.Filter{Pod: "a/web"}, flow.Event{Pod: "b/web"}, false},
		{flow.Filter{Pod: "web"}, flow.Event{Pod: "b/web"}, true},
		{flow.Filter{Pod: "web"}, flow.Event{Pod: "b/web-1"}, false},
		{flow.Filter{Pod: "web"}, flow.Event{}, false},
	} {
		if got := tc.f.Match(&tc.e); got != tc.want {
			t.Errorf("%+v on %+v: %t", tc.f, tc.e, got)
		}
	}
}

// TestText guards against a drop shown without its reason or what to do.
func TestText(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 678000, time.UTC)
	src, dst := netip.MustParseAddr("10.0.1.5"), netip.MustParseAddr("10.0.2.6")
	for want, e := range map[string]flow.Event{
		"03:04:05.000678 n1 peer from_pod@lxc1 default/a: 10.0.1.5:4000 -> 10.0.2.6:80 TCP SYN,ACK 60 B, identity 5 -> 5": {
			Time: at, Node: "n1", Type: flow.TypeTrace, Verdict: "peer", Hook: "from_pod", IfName: "lxc1", Pod: "default/a",
			Src: src, Dst: dst, SrcPort: 4000, DstPort: 80, Proto: 6, TCPFlags: 0x12, SrcID: 5, DstID: 5, Length: 60,
		},
		"03:04:05.000678 stack to_net@if3: 10.0.1.5 -> 10.0.2.6 ICMP unreachable code 4 84 B, identity 1 -> 2": {
			Time: at, Type: flow.TypeTrace, Verdict: "stack", Hook: "to_net", IfIndex: 3, Src: src, Dst: dst, Proto: 1, ICMPType: 3, ICMPCode: 4, SrcID: 1, DstID: 2, Length: 84,
		},
		"03:04:05.000678 LOST 9 events: this reader was too slow; narrow it with --type or --pod": {Time: at, Type: flow.TypeLost, Lost: 9},
	} {
		if got := flow.Text(&e); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
	for _, i := range reason.All() {
		if i.Code.Class() != reason.ClassDrop {
			continue
		}
		got := flow.Text(&flow.Event{Time: at, Type: flow.TypeDrop, Hook: "from_pod", Reason: i.Name, Src: src, Dst: dst, Proto: 17})
		if !strings.HasPrefix(got, "03:04:05.000678 DROP from_pod: ") || !strings.HasSuffix(got, ": "+i.Name+" ("+i.Remedy+")") {
			t.Errorf("%s: %s", i.Name, got)
		}
	}
}
