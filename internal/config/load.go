// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/weft-net/weft/internal/masquerade"
	"github.com/weft-net/weft/internal/service/maglev"
)

// maxValue bounds a value in bytes. A ConfigMap holds at most 1 MiB in all; no
// setting needs more than a list of device names.
const maxValue = 64 << 10

// Default returns the settings of an agent whose ConfigMap is empty.
func Default() *Config {
	return &Config{
		EnableIPv4:           true,
		EnableIPv6:           false,
		RoutingMode:          RoutingNative,
		Tunnel:               Tunnel{Protocol: "vxlan", Port: 8472, Underlay: UnderlayIPv4},
		IPAM:                 IPAMKubernetes,
		Pool:                 ClusterPool{IPv4MaskSize: 24, IPv6MaskSize: 120, Quarantine: 10 * time.Minute},
		Pools:                MultiPool{PreAllocation: "default=8"},
		EnableEndpointRoutes: true,
		SocketLB:             SocketLB{MapMax: defaultLBMap, HealthCheck: true, BindProtection: true, Maglev: Maglev{Algorithm: AlgorithmRandom, TableSize: maglev.DefaultSize, HashSeed: maglev.DefaultSeed}},
		CgroupRoot:           "/run/cilium/cgroupv2",
		MonitorAggregation:   "medium",
		HealthPort:           9879,
		PrometheusPort:       9962,
		Masquerade:           Masquerade{Ports: fmt.Sprintf("%d-%d", masquerade.DefaultMin, masquerade.DefaultMax)},
	}
}

// Load reads a directory that holds one file a key, as the kubelet mounts a
// ConfigMap, and returns the checked settings. All problems are reported at
// once, each naming its key.
func Load(dir string) (*Config, error) {
	values, err := read(dir)
	if err != nil {
		return nil, err
	}
	return Parse(values)
}

// read returns what a mounted ConfigMap holds, by key.
func read(dir string) (map[string]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("settings %s: %w: mount the ConfigMap cilium-config there or name another directory with --config-dir", dir, err)
	}
	values := make(map[string]string, len(entries))
	for _, e := range entries {
		// The kubelet keeps the files in "..2026_11_21..." behind a link "..data".
		if strings.HasPrefix(e.Name(), "..") {
			continue
		}
		path := filepath.Join(dir, e.Name())
		fi, err := os.Stat(path)
		if err != nil {
			return nil, fmt.Errorf("setting %s: %w", e.Name(), err)
		}
		if fi.IsDir() {
			return nil, fmt.Errorf("setting %s: is a directory: settings are files named after their key", e.Name())
		}
		if fi.Size() > maxValue {
			return nil, fmt.Errorf("setting %s: %d bytes long, at most %d are taken", e.Name(), fi.Size(), maxValue)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("setting %s: %w", e.Name(), err)
		}
		values[e.Name()] = string(b)
	}
	return values, nil
}

// Parse applies values, by key, to the defaults and checks the outcome. Keys
// that are the operator's alone are not looked at.
func Parse(values map[string]string) (*Config, error) {
	cfg := Default()
	check := func() []error {
		cfg.replaceKubeProxy()
		return cfg.check()
	}
	if err := apply(values, fieldsOf(cfg), fieldsOf(&Operator{}), check); err != nil {
		return nil, err
	}
	return cfg, nil
}

// apply sets fields from values and has the outcome checked. The keys of others
// are known but not ours: what stands there is their reader's business.
func apply(values map[string]string, fields, others map[string]reflect.Value, check func() []error) error {
	var errs []error
	keys := make([]string, 0, len(values))
	for k := range values {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, key := range keys {
		f, ok := fields[key]
		if _, theirs := others[key]; !ok && theirs {
			continue
		}
		if !ok {
			errs = append(errs, unknown(key, merged(fields, others)))
			continue
		}
		if err := set(f, strings.TrimSpace(values[key])); err != nil {
			errs = append(errs, fmt.Errorf("setting %s: %w", key, err))
		}
	}
	if len(errs) == 0 {
		errs = check()
	}
	return errors.Join(errs...)
}

// Keys returns the keys that Parse takes, sorted.
func Keys() []string {
	return sortedKeys(fieldsOf(&Config{}))
}

// Values returns the settings as Parse takes them, by key.
func (c *Config) Values() map[string]string {
	out := map[string]string{}
	for key, f := range fieldsOf(c) {
		switch v := f.Interface().(type) {
		case []string:
			out[key] = strings.Join(v, " ")
		case []netip.Prefix:
			out[key] = strings.Trim(fmt.Sprint(v), "[]")
		case netip.Prefix:
			if v.IsValid() {
				out[key] = v.String()
			} else {
				out[key] = ""
			}
		default:
			out[key] = fmt.Sprint(v)
		}
	}
	return out
}

// fieldsOf returns the settings by key, those of groups among them. It takes a
// pointer to Config or Operator.
func fieldsOf(c any) map[string]reflect.Value {
	out := map[string]reflect.Value{}
	collect(reflect.ValueOf(c).Elem(), out)
	return out
}

func merged(a, b map[string]reflect.Value) map[string]reflect.Value {
	out := maps.Clone(a)
	maps.Copy(out, b)
	return out
}

func collect(v reflect.Value, out map[string]reflect.Value) {
	for i := range v.NumField() {
		key, tagged := v.Type().Field(i).Tag.Lookup("key")
		if tagged {
			out[key] = v.Field(i)
		} else {
			collect(v.Field(i), out) // a group
		}
	}
}

func set(f reflect.Value, s string) error {
	switch f.Interface().(type) {
	case bool:
		switch s {
		case "true":
			f.SetBool(true)
		case "false":
			f.SetBool(false)
		default:
			return fmt.Errorf("%q is neither true nor false", s)
		}
	case int:
		n, err := strconv.Atoi(s)
		if err != nil {
			return fmt.Errorf("%q is not a whole number", s)
		}
		f.SetInt(int64(n))
	case []string:
		f.Set(reflect.ValueOf(words(s)))
	case netip.Prefix:
		if s == "" {
			f.Set(reflect.ValueOf(netip.Prefix{}))
			return nil
		}
		p, err := parsePrefix(s)
		if err != nil {
			return err
		}
		f.Set(reflect.ValueOf(p))
	case []netip.Prefix:
		var list []netip.Prefix
		for _, w := range words(s) {
			p, err := parsePrefix(w)
			if err != nil {
				return err
			}
			list = append(list, p)
		}
		f.Set(reflect.ValueOf(list))
	case time.Duration:
		d, err := time.ParseDuration(s)
		if err != nil {
			return fmt.Errorf("%q is not a duration such as 10m or 90s", s)
		}
		f.SetInt(int64(d))
	default:
		f.SetString(s)
	}
	return nil
}

// words splits a list at commas and white space.
func words(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' || r == '\n' || r == '\t' })
}

func parsePrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf("%q is not a range such as 10.0.0.0/8 or fd00::/8", s)
	}
	if p != p.Masked() {
		return p, fmt.Errorf("%q has bits set beyond its length: write %s", s, p.Masked())
	}
	return p, nil
}

func unknown(key string, fields map[string]reflect.Value) error {
	best, dist := "", len(key)
	for _, k := range sortedKeys(fields) {
		if d := distance(key, k); d < dist {
			best, dist = k, d
		}
	}
	// Beyond half of the key's length a proposal confuses more than it helps.
	if best == "" || dist > max(len(key), len(best))/2 {
		return fmt.Errorf("setting %s: unknown: remove it from the ConfigMap cilium-config; known settings are %s", key, strings.Join(sortedKeys(fields), ", "))
	}
	return fmt.Errorf("setting %s: unknown: did you mean %s?", key, best)
}

func sortedKeys(fields map[string]reflect.Value) []string {
	keys := make([]string, 0, len(fields))
	for k := range fields {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// distance is the Levenshtein distance of two keys in bytes.
func distance(a, b string) int {
	prev := make([]int, len(b)+1)
	cur := make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
		}
		prev, cur = cur, prev
	}
	return prev[len(b)]
}
