// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"time"
)

// Operator is what the operator runs with. It reads the ConfigMap that the
// agents read too; keys of theirs that it has no use for are not looked at.
type Operator struct {
	EnableIPv4   bool        `key:"enable-ipv4"`
	EnableIPv6   bool        `key:"enable-ipv6"`
	IPAM         string      `key:"ipam"`
	Pool         ClusterPool // of mode cluster-pool
	Debug        bool        `key:"debug"`
	K8sAPIServer string      `key:"k8s-api-server"` // https://HOST:PORT; empty: as the pod's environment says
	Service      OperatorService
}

// OperatorService is how the operator runs, whatever it allocates.
type OperatorService struct {
	HealthPort     int           `key:"operator-health-port"`     // on loopback, 9234
	PrometheusPort int           `key:"operator-prometheus-port"` // on loopback, 9963; 0 is off
	NodesGC        time.Duration `key:"nodes-gc-interval"`        // how long a CiliumNode may lack its Node; 0: for ever
}

// longestNodesGC bounds how long a CiliumNode without a Node may stay.
const longestNodesGC = 24 * time.Hour

// DefaultOperator returns the settings of an operator whose ConfigMap is empty.
func DefaultOperator() *Operator {
	d := Default()
	return &Operator{
		EnableIPv4: d.EnableIPv4, EnableIPv6: d.EnableIPv6, IPAM: d.IPAM, Pool: d.Pool,
		Service: OperatorService{HealthPort: 9234, PrometheusPort: 9963, NodesGC: 5 * time.Minute},
	}
}

// LoadOperator is Load for the operator.
func LoadOperator(dir string) (*Operator, error) {
	values, err := read(dir)
	if err != nil {
		return nil, err
	}
	return ParseOperator(values)
}

// ParseOperator is Parse for the operator.
func ParseOperator(values map[string]string) (*Operator, error) {
	o := DefaultOperator()
	if err := apply(values, fieldsOf(o), fieldsOf(&Config{}), o.check); err != nil {
		return nil, err
	}
	return o, nil
}

// OperatorKeys returns the keys that ParseOperator looks at, sorted.
func OperatorKeys() []string { return sortedKeys(fieldsOf(&Operator{})) }

func (o *Operator) check() []error {
	c := &Config{EnableIPv4: o.EnableIPv4, EnableIPv6: o.EnableIPv6, IPAM: o.IPAM, Pool: o.Pool, K8sAPIServer: o.K8sAPIServer}
	errs := append(append(c.checkFamilies(), c.checkIPAM()...), c.checkPool()...)
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("setting "+key+": "+format, args...))
	}
	s := o.Service
	if s.HealthPort < 1 || s.HealthPort > 65535 {
		bad("operator-health-port", "%d is not a port; 9234 is usual", s.HealthPort)
	}
	if s.PrometheusPort < 0 || s.PrometheusPort > 65535 {
		bad("operator-prometheus-port", "%d is not a port; 0 is off", s.PrometheusPort)
	} else if s.PrometheusPort == s.HealthPort {
		bad("operator-prometheus-port", "%d is taken by operator-health-port already", s.PrometheusPort)
	}
	if s.NodesGC < 0 || s.NodesGC > longestNodesGC {
		bad("nodes-gc-interval", "%s is outside 0 to %s", s.NodesGC, longestNodesGC)
	}
	if o.K8sAPIServer != "" {
		if err := checkServer(o.K8sAPIServer); err != nil {
			bad("k8s-api-server", "%q: %v: write https://HOST:PORT", o.K8sAPIServer, err)
		}
	}
	return errs
}
