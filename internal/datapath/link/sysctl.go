// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// write sets one sysctl below net/. The error names it as sysctl(8) does.
func (l *Links) write(name, value string) error {
	path := filepath.Join(l.proc, name)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(value)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return fmt.Errorf("sysctl %s: %w", sysctlName(name), err)
	}
	return nil
}

func sysctlName(name string) string {
	parts := strings.Split(name, "/")
	for i, p := range parts { // sysctl(8) swaps the two in device names
		parts[i] = strings.ReplaceAll(p, ".", "/")
	}
	return "net." + strings.Join(parts, ".")
}

// EnsureForwarding switches forwarding on for the families. A sysctl that has
// the value already is left alone; one that cannot be set is an error that says
// how to set it.
func (l *Links) EnsureForwarding(v4, v6 bool) error {
	var errs []error
	if v4 {
		errs = append(errs, l.ensure("ipv4/ip_forward", "1"))
	}
	if v6 {
		errs = append(errs, l.ensure("ipv6/conf/all/forwarding", "1"))
	}
	return errors.Join(errs...)
}

func (l *Links) ensure(name, value string) error {
	b, err := os.ReadFile(filepath.Join(l.proc, name))
	if err == nil && strings.TrimSpace(string(b)) == value {
		return nil
	}
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("sysctl %s: not in this kernel: switch the address family off in the values (ipv4.enabled, ipv6.enabled)", sysctlName(name))
	}
	if err := l.write(name, value); err != nil {
		return fmt.Errorf("%w: run on the node: sysctl -w %s=%s, and keep it in /etc/sysctl.d/90-weft.conf", err, sysctlName(name), value)
	}
	return nil
}

const reservedPorts = "ipv4/ip_local_reserved_ports"

// ReservedPorts returns net.ipv4.ip_local_reserved_ports: ports, of both
// families, that the kernel does not choose for the node's own sockets.
func (l *Links) ReservedPorts() (string, error) {
	b, err := os.ReadFile(filepath.Join(l.proc, reservedPorts))
	if err != nil {
		return "", fmt.Errorf("sysctl %s: %w", sysctlName(reservedPorts), err)
	}
	return strings.TrimSpace(string(b)), nil
}

// SetReservedPorts replaces what ReservedPorts returns. Sockets that have such a
// port already keep it.
func (l *Links) SetReservedPorts(ports string) error {
	if err := l.write(reservedPorts, ports+"\n"); err != nil {
		return fmt.Errorf("%w: run on the node: sysctl -w %s=%s", err, sysctlName(reservedPorts), ports)
	}
	return nil
}
