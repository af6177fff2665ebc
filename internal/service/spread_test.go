// SPDX-License-Identifier: Apache-2.0

package service_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/service"
	"github.com/weft-net/weft/internal/table"
)

// spread lists the rows that have a Maglev table.
func spread(w *world) []string {
	var out []string
	for k, r := range w.rows {
		if r.Flags&table.FrontendMaglev != 0 {
			out = append(out, k.String())
		}
	}
	slices.Sort(out)
	return out
}

// Guards against an algorithm that is not the one that settings and annotation say, and
// against tables that nobody looks into: of cluster IPs, and for traffic from inside.
func TestAlgorithm(t *testing.T) {
	outside := []string{"0.0.0.0:30080/TCP", "192.0.2.1:80/TCP"}
	for _, c := range []struct {
		name, annotation string
		cfg              service.Maglev
		want             []string
		said             string
	}{
		{"the default", "", service.Maglev{Default: true, MaxTables: 9, Slots: 251}, outside, ""},
		{"random by default", "", service.Maglev{Annotations: true, MaxTables: 9, Slots: 251}, nil, ""},
		{"by annotation", "maglev", service.Maglev{Annotations: true, MaxTables: 9, Slots: 251}, outside, ""},
		{"not by annotation", "random", service.Maglev{Default: true, Annotations: true, MaxTables: 9, Slots: 251}, nil, ""},
		{"annotations off", "random", service.Maglev{Default: true, MaxTables: 9, Slots: 251}, outside, "lb-algorithm: random is not looked at"},
		{"all off", "maglev", service.Maglev{}, nil, "lb-algorithm: maglev is not looked at: set bpf.lbAlgorithmAnnotation=true"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := config()
			cfg.Maglev = c.cfg
			w := newWorld(cfg)
			s := web("a", "10.96.0.1")
			s.Type, s.Algorithm, s.ExternalLocal = table.ServiceLoadBalancer, c.annotation, true
			s.Ingress = []table.ServiceIngress{{Addr: addrs("192.0.2.1")[0]}}
			s.Ports[0].NodePort = 30080
			w.set(s)
			w.setSlice(webSlice("a", "10.0.0.1", "10.0.0.2"))
			w.commit(t)
			if got := spread(w); !slices.Equal(got, c.want) {
				t.Errorf("by tables: %v, want %v", got, c.want)
			}
			var said []string
			for _, f := range w.model.Findings() {
				said = append(said, f.Message)
			}
			if text := strings.Join(said, "\n"); !strings.Contains(text, c.said) || (c.said == "") != (text == "") {
				t.Errorf("findings %q, want %q", text, c.said)
			}
		})
	}
}

// Guards against more tables than there is room for, against a Service that does without
// and is not named, or gets none when there is room again, and against one that takes
// room for a table that nobody needs.
func TestTablesWithoutRoom(t *testing.T) {
	cfg := config()
	cfg.Maglev = service.Maglev{Default: true, MaxTables: 2, Slots: 251}
	w := newWorld(cfg)
	slice := func(i, backends int) *table.EndpointSlice {
		var pods []string
		for b := range backends {
			pods = append(pods, fmt.Sprintf("10.0.%d.%d", i, b+1))
		}
		return webSlice(fmt.Sprint("s", i), pods...)
	}
	want := func(when string, rows ...string) {
		t.Helper()
		w.commit(t)
		if got := spread(w); !slices.Equal(got, rows) {
			t.Errorf("%s: by tables %v, want %v", when, got, rows)
		}
	}
	for i := range 3 {
		s := web(fmt.Sprint("s", i), fmt.Sprint("10.96.0.", i+1))
		s.ExternalIPs = addrs(fmt.Sprint("192.0.2.", i+1), fmt.Sprint("192.0.2.10", i)) // both share a table
		w.set(s)
		w.setSlice(slice(i, 2))
		w.commit(t)
	}
	first := []string{"192.0.2.100:80/TCP", "192.0.2.101:80/TCP", "192.0.2.1:80/TCP", "192.0.2.2:80/TCP"}
	want("two of three", first...)
	if all := w.model.Findings(); len(all) != 1 || all[0].Service != "default/s2" || all[0].Kind != service.Overflow || !strings.Contains(all[0].Message, "raise bpf.lbMapMax") {
		t.Errorf("findings %v", all)
	}
	third := []string{"192.0.2.102:80/TCP", "192.0.2.3:80/TCP"}
	one := slice(0, 2) // one backend needs no table; the other one keeps its id
	one.Endpoints[1].Ready, one.Endpoints[1].Serving = false, false
	w.setSlice(one)
	all := slices.Concat(first, third)
	slices.Sort(all)
	want("one needs none", all...)
	if f := w.model.Findings(); len(f) != 0 {
		t.Errorf("findings %v", f)
	}
	w.setSlice(slice(1, 252)) // more backends than slots
	want("one has too many backends", slices.DeleteFunc(slices.Clone(all), func(k string) bool { return k == "192.0.2.101:80/TCP" || k == "192.0.2.2:80/TCP" })...)
	if f := w.model.Findings(); len(f) != 1 || !strings.Contains(f[0].Message, "raise maglev.tableSize") {
		t.Errorf("findings %v", f)
	}
	w.setSlice(slice(0, 3))
	want("the room of that one is another's", slices.DeleteFunc(slices.Clone(all), func(k string) bool { return k == "192.0.2.101:80/TCP" || k == "192.0.2.2:80/TCP" })...)
}
