// SPDX-License-Identifier: Apache-2.0

package helm_test

import (
	"strings"
	"testing"
)

// Fault: a value that Weft does not honour installs all the same, or is refused
// without a reason that helps.
func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		set  string
		want []string // all of them in the error; none: accepted
	}{
		{"kubeProxyReplacment=true", []string{"kubeProxyReplacment: Weft has no such key", "kubeProxyReplacement"}},
		{"endpointRoute.enabled=true", []string{"endpointRoute.enabled", "Nearest key that works: endpointRoutes.enabled"}},
		{"hubbel.enabled=true", []string{"It looks like hubble, which is refused", "weft monitor"}},
		{"ipv4NativeRoutingCidr=10.0.0.0/8", []string{"Nearest key that works: ipv4NativeRoutingCIDR"}},
		{"enableIPv4Masquerade=true", []string{"means iptables", "set bpf.masquerade=true"}},
		{"enableIPv6Masquerade=true", []string{"means iptables"}},
		{"enableIPv4Masquerade=false,enableIPv6Masquerade=false", nil},
		{"prometheus.prometheusRule.enabled=true", []string{"does not know PrometheusRule", "install the Prometheus operator", "files/rules.yaml", "--api-versions"}},
		{"prometheus.prometheusRule.enabled=true,prometheus.prometheusRule.trustCRDsExist=true", nil},
		{"prometheus.prometheusRule.enabled=true,prometheus.prometheusRule.trustCRDsExist=true,prometheus.enabled=false", []string{"alerts need the metrics"}},
		{"prometheus.serviceMonitor.enabled=true", []string{"loopback"}},
		{"enableIPv4BIGTCP=true", nil},
		{"enableIPv4BIGTCP=true,ipv6.enabled=true,enableIPv6BIGTCP=true,routingMode=tunnel", nil},
		{"enableIPv6BIGTCP=true", []string{"without ipv6.enabled=true"}},
		{"enableIPv4BIGTCP=true,ipv4.enabled=false,ipv6.enabled=true", []string{"without ipv4.enabled=true"}},
		{"bpf.masquerade=true", []string{"needs ipv4NativeRoutingCIDR", "ipMasqAgent.enabled=true"}},
		{"bpf.masquerade=true,ipv4NativeRoutingCIDR=10.0.0.0/8", nil},
		{"bpf.masquerade=true,ipv6.enabled=true,ipv4NativeRoutingCIDR=10.0.0.0/8", []string{"needs ipv6NativeRoutingCIDR"}},
		{"bpf.masquerade=true,enableIPv4Masquerade=false", nil},
		{"bpf.masquerade=true,ipMasqAgent.enabled=true", nil},
		{"ipMasqAgent.enabled=true", []string{"without bpf.masquerade=true"}},
		{"bpf.masquerade=true,ipMasqAgent.enabled=true,ipMasqAgent.config.nonMasqCIDRs={10.0.0.0/8}", []string{"ipMasqAgent.config.nonMasqCIDRs"}},
		{"healthport=1", []string{"Nearest key that works: healthPort"}},
		{"cgroup.autoMount.resources.x=1", []string{"Nearest key that works: cgroup.autoMount.enabled"}},
		{"kubeProxyReplacement=true", []string{"set k8sServiceHost and k8sServicePort", "kubectl cluster-info"}},
		{"kubeProxyReplacement=true,k8sServiceHost=10.0.0.1", nil},
		{"kubeProxyReplacement=true,k8sServiceHost=auto", []string{"does not look the address up"}},
		{"kubeProxyReplacement=true,k8sServiceHost=10.0.0.1,hostPort.enabled=true,externalIPs.enabled=true,nodePort.enabled=false,socketLB.enabled=false", nil},
		{"kubeProxyReplacement=true,k8sServiceHost=10.0.0.1,loadBalancer.mode=snat,loadBalancer.algorithm=random,nodePort.range=30000\\,32767,sessionAffinity=true", nil},
		{"kubeProxyReplacement=true,k8sServiceHost=10.0.0.1,socketLB.hostNamespaceOnly=true", nil},
		{"kubeProxyReplacement=strict", []string{"kubeProxyReplacement=strict", "takes kube-proxy's place in all (true)"}},
		{"hostPort.enabled=true", []string{"host ports come with kubeProxyReplacement=true"}},
		{"externalIPs.enabled=true", []string{"external addresses of Services come with kubeProxyReplacement=true"}},
		{"hostPort.enabled=false,externalIPs.enabled=false", nil},
		{"socketLB.enabled=true,nodePort.enabled=true,hostPort.enabled=false", []string{"nodePort.enabled=true serves host ports, too"}},
		{"socketLB.enabled=true,nodePort.enabled=true,hostPort.enabled=true", nil},
		{"socketLB.hostNamespaceOnly=true", []string{"socketLB.hostNamespaceOnly=true", "no effect without socketLB.enabled=true"}},
		{"nodePort.enabled=true", []string{"nodePort.enabled=true", "no effect without socketLB.enabled=true"}},
		{"nodePort.range=30000\\,31000", []string{"nodePort.range", "Nearest key that works: bpf.masqueradePorts"}},
		{"nodePort.addresses={all}", []string{"/nodePort/addresses"}},
		{"nodePort.directRoutingDevice=eth0", []string{"Nearest key that works: nodePort.enabled"}},
		{"loadBalancer.mode=dsr", []string{"there is no DSR yet"}},
		{"loadBalancer.algorithm=maglev", []string{"loadBalancer.algorithm=maglev", "no effect without nodePort.enabled=true"}},
		{"loadBalancer.algorithm=leastconn", []string{"loadBalancer.algorithm=leastconn", "at random, or by Maglev tables"}},
		{"bpf.lbAlgorithmAnnotation=true", []string{"bpf.lbAlgorithmAnnotation=true", "no effect without nodePort.enabled=true"}},
		{"maglev.tableSize=16384", []string{"tableSize"}},
		{"maglev.hashSeed=abc", []string{"hashSeed"}},
		{"socketLB.tracing=true", []string{"socketLB.tracing=true", "Nearest key that works: socketLB.enabled"}},
		{"bpf.lbMapMax=10", []string{"lbMapMax"}},
		{"routingMode=overlay", []string{"native", "tunnel"}},
		{"routingMode=tunnel,tunnelProtocol=geneve", []string{"not Geneve", "tunnelProtocol=vxlan"}},
		{"routingMode=tunnel,underlayProtocol=auto", []string{"by one family"}},
		{"ipam.mode=crd", []string{"Node.spec.podCIDRs", "clusterPoolIPv4PodCIDRList", "CiliumPodIPPools"}},
		{"ipam.mode=multi-pool,ipam.multiPoolPreAllocation=blue:7", []string{"multiPoolPreAllocation"}},
		{"ipam.mode=multi-pool", nil},
		{"endpointRoutes.enabled=false", []string{"route of its own"}},
		{"bpf.monitorAggregation=maximum", []string{"none", "medium"}},
		{"hubble.relay.enabled=true", []string{"hubble.relay.enabled=true", "weft monitor"}},
		{"hubble.enabled=false,l2announcements.enabled=false,bpf.masquerade=false,tunnelProtocol=", nil},
		{"bpf.autoMount.enabled=false", []string{"always mounts"}},
		{"hubble.metrics.enabled={dns,tcp}", []string{"hubble.metrics.enabled"}},
		{"ipv4.enabled=false", []string{"both are false"}},
		{"k8sServicePort=6443", []string{"k8sServiceHost"}},
		{"prometheus.port=9879", []string{"healthPort"}},
		{"pprof.enabled=true,pprof.port=9962", []string{"pprof.port"}},
		{"operator.prometheus.port=9234", []string{"operator.healthPort already"}},
		{"operator.healthPort=9879", []string{"operator.healthPort: 9879 is a port of the agent"}},
		{"operator.setNodeTaints=true", []string{"nobody taints it again"}},
		{"operator.removeNodeTaints=false", []string{"its own node"}},
		{"operator.replicas=none", []string{"/operator/replicas"}},
		{"operator.enabled=false", []string{"operator.replicas=0"}},
		{"operatorReplicas=1", []string{"operator.replicas"}},
		{"operator.identityGCInterval=1m", []string{"identities are not allocated yet"}},
		{"ipam.mode=cluster-pool,ipv6.enabled=true", []string{"ipam.operator.clusterPoolIPv4PodCIDRList: is empty", "ipam.operator.clusterPoolIPv6PodCIDRList: is empty"}},
		{"MTU=100", []string{"/MTU"}},
		{"devices=7", []string{"/devices"}},
		{"image.digest=latest", []string{"/image/digest"}},
		{"cgroup=null", []string{"cgroup"}},
		{"global.anything=1", nil},
	} {
		t.Run(c.set, func(t *testing.T) {
			_, errOut, err := template(t, "--set", c.set)
			if (err != nil) != (len(c.want) > 0) {
				t.Fatalf("error %v, stderr:\n%s", err, errOut)
			}
			for _, w := range c.want {
				if !strings.Contains(errOut, w) {
					t.Errorf("the error does not say %q:\n%s", w, errOut)
				}
			}
		})
	}
}
