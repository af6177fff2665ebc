// SPDX-License-Identifier: Apache-2.0

package service_test

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/service"
	"github.com/weft-net/weft/internal/table"
)

const (
	manyServices = 10_000
	manyBackends = 10 // each
)

// many makes Services of both families with a NodePort, and a slice of each family;
// or plain ones: IPv4 only, a cluster IP only.
func many(plain bool) (services []*table.Service, all []*table.EndpointSlice) {
	for i := range manyServices {
		name := fmt.Sprintf("svc-%05d", i)
		v4, v6 := netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}), netip.AddrFrom16([16]byte{0xfd, 14: byte(i >> 8), 15: byte(i)})
		services = append(services, &table.Service{
			Namespace: "default", Name: name, Created: time.Unix(int64(i), 0), Type: table.ServiceNodePort, ClusterIPs: []netip.Addr{v4, v6},
			Ports: []table.ServicePortSpec{{Name: "web", Proto: table.ProtoTCP, Port: 80, NodePort: int32(20000 + i)}},
		})
		if plain {
			s := services[i]
			s.Type, s.ClusterIPs, s.Ports[0].NodePort = table.ServiceClusterIP, s.ClusterIPs[:1], 0
		}
		for v6 := range 2 {
			if plain && v6 == 1 {
				break
			}
			sl := &table.EndpointSlice{
				Namespace: "default", Name: fmt.Sprintf("%s-%d", name, v6), Service: name, V6: v6 == 1,
				Ports: []table.SlicePort{{Name: "web", Proto: table.ProtoTCP, Port: 8080}},
			}
			for j := range manyBackends {
				n := i*manyBackends + j
				addr := netip.AddrFrom4([4]byte{10, byte(1 + n>>16), byte(n >> 8), byte(n)})
				if v6 == 1 {
					addr = netip.AddrFrom16([16]byte{0xfe - 1, 1: 1, 13: byte(n >> 16), 14: byte(n >> 8), 15: byte(n)})
				}
				sl.Endpoints = append(sl.Endpoints, table.SliceEndpoint{Addr: addr, Ready: true, Serving: true, Node: fmt.Sprintf("n%d", n%100)})
			}
			all = append(all, sl)
		}
	}
	return services, all
}

func fill(services []*table.Service, all []*table.EndpointSlice) *service.Model {
	m := service.New(service.Config{Node: self, IPv4: true, IPv6: true, MaxFrontends: 65536, MaxBackends: 262144})
	for _, s := range services {
		m.SetService(s, time.Time{})
	}
	for _, s := range all {
		m.SetSlice(s, time.Time{})
	}
	return m
}

// 10,000 Services x 10 backends from nothing, and what they weigh.
func BenchmarkFromEmpty(b *testing.B) {
	for name, plain := range map[string]bool{"IPv4": true, "both families and NodePorts": false} {
		b.Run(name, func(b *testing.B) {
			services, all := many(plain)
			rows := 0
			for b.Loop() {
				rows = len(fill(services, all).Commit())
			}
			b.StopTimer()
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			m := fill(services, all)
			m.Commit()
			runtime.GC()
			runtime.ReadMemStats(&after)
			b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/(1<<20), "MiB")
			b.ReportMetric(float64(rows), "rows")
			runtime.KeepAlive(m)
		})
	}
}

// One endpoint of one among 10,000 Services becomes unready, or ready again.
func BenchmarkOneChange(b *testing.B) {
	services, all := many(false)
	m := fill(services, all)
	m.Commit()
	i := 0
	for b.Loop() {
		sl := *all[i%len(all)]
		sl.Endpoints = append([]table.SliceEndpoint(nil), sl.Endpoints...)
		sl.Endpoints[i%manyBackends].Ready = i/len(all)%2 == 1
		m.SetSlice(&sl, time.Time{})
		if n := len(m.Commit()); n != 2 && i < len(all) {
			b.Fatalf("%d rows changed", n)
		}
		i++
	}
}
