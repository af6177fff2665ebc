// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/cilium/ebpf"

	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/datapath/object"
	"github.com/weft-net/weft/internal/datapath/reason"
)

// DefaultRoot is where pins live on a node.
const DefaultRoot = "/sys/fs/bpf/weft"

// MinimumKernel is the oldest Linux that passes `make test-kernels`
// (docs/kernels.md). It is what errors advise; what a kernel can do is probed.
const MinimumKernel = "6.1"

// Options say how to open the datapath.
type Options struct {
	Root       string // on bpffs; DefaultRoot if empty
	IPv4, IPv6 bool   // a family that is off is dropped at pods and left alone elsewhere
	Masquerade bool   // else the maps of masqueraded flows are as small as they get
	Outside    bool   // services answer what comes from outside; else their connections have maps as small as they get
	SocketLB   SocketLB
	Sizes      maps.Sizes
	Log        *slog.Logger

	inject injections
}

// injections are what tests put in place of what is built in.
type injections struct {
	object   []byte                     // of another release
	patch    func(*ebpf.CollectionSpec) // changes what was parsed
	fault    func(step string) error    // makes a step fail
	untested bool                       // no self-test
}

// Datapath is the loaded datapath. Its methods may be called from several goroutines.
type Datapath struct {
	root     string
	log      *slog.Logger
	features features
	maps     *maps.Set
	programs programs

	sockets    SocketLB
	socketsErr error // why they are off, though they are to be on

	mu     sync.Mutex
	wanted map[string]wantedDevice // by device name
}

// wantedDevice is a device that must carry a pair of hooks.
type wantedDevice struct {
	index int
	hooks []reason.Hook
	tcx   bool // by pinned links; else by clsact filters
}

// programs are those of one load, by name; a hook's has the name of the hook.
type programs map[string]*ebpf.Program

func (p programs) of(h reason.Hook) *ebpf.Program { return p[h.String()] }

// features are what a kernel may lack: without tcx the node's devices carry
// clsact filters too; without skipNeigh a lookup needlessly finds the neighbour.
type features struct {
	tcx, skipNeigh bool
	noSockets      error // why it has nothing for SocketLB
}

// fibLookupSkipNeigh is BPF_FIB_LOOKUP_SKIP_NEIGH of linux/bpf.h.
const fibLookupSkipNeigh = 1 << 2

func (f features) fibFlags() uint32 {
	if f.skipNeigh {
		return fibLookupSkipNeigh
	}
	return 0
}

// Device is a device of the node that carries from_net and to_net.
type Device struct {
	Name  string
	Index int
}

// Open checks what the kernel can do, tests the programs on built-in packets,
// reuses or makes the pinned maps, loads the programs and puts them into all hooks
// that an earlier agent attached. A map whose capacity or layout changed is
// replaced and its entries are carried over, member by member; where a member
// changed in a way that has no translation it is replaced empty, which is logged.
//
// Errors name what is missing and what to do about it. Whatever was attached
// before a failed Open keeps forwarding, as it was.
func Open(o Options) (*Datapath, error) {
	if o.Root == "" {
		o.Root = DefaultRoot
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if !o.IPv4 && !o.IPv6 {
		return nil, errors.New("datapath: IPv4 and IPv6 are both off; enable ipv4.enabled or ipv6.enabled")
	}
	has, err := probe(o.Root)
	if err != nil {
		return nil, fmt.Errorf("datapath: %w", err)
	}
	if !has.tcx {
		o.Log.Warn("the kernel has no tcx: programs of others on clsact hooks can come before Weft's", "since", "Linux 6.6")
	}
	if o.SocketLB.Enabled {
		if has.noSockets = probeSockets(); has.noSockets != nil {
			o.Log.Warn("sockets are not sent to backends of services", "reason", has.noSockets)
		}
	}
	unlock, err := lockRoot(o.Root)
	if err != nil {
		return nil, fmt.Errorf("datapath: %w", err)
	}
	defer unlock()
	d, err := open(o, has)
	if err != nil {
		return nil, fmt.Errorf("datapath: %w", err)
	}
	return d, nil
}

// open does what Open says, with the root locked.
func open(o Options, has features) (*Datapath, error) {
	spec, err := loadSpec(o, has)
	if err != nil {
		return nil, err
	}
	if err := prove(o, spec); err != nil {
		return nil, err
	}
	running, err := findSites(o.Root)
	if err != nil {
		return nil, needsAdmin(err)
	}
	defer running.close()
	inUse, err := running.writtenMaps()
	if err != nil {
		return nil, needsAdmin(err)
	}
	defer inUse.close()
	raw, err := openMaps(o, spec, inUse)
	if err != nil {
		return nil, err
	}
	set, err := maps.NewSet(raw.all)
	if err != nil {
		return nil, errors.Join(err, raw.close())
	}
	d := &Datapath{
		root: o.Root, log: o.Log, features: has, maps: set, wanted: map[string]wantedDevice{},
		sockets: o.SocketLB, socketsErr: has.noSockets,
	}
	if err := errors.Join(d.start(o, spec, raw, running), raw.closeCarries()); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// needsAdmin explains what the kernel lets nobody else do: open programs and maps
// by their numbers.
func needsAdmin(err error) error {
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("take over what runs: %w; the agent needs CAP_SYS_ADMIN (or to be privileged)", err)
	}
	return fmt.Errorf("take over what runs: %w", err)
}

// start loads the programs over the maps and switches to both.
func (d *Datapath) start(o Options, spec *ebpf.CollectionSpec, raw *mapFiles, running *takeover) error {
	if raw.created[object.DatapathMapWeftCfg] {
		cfg, err := d.maps.Config.Get() // what was carried over
		if err == nil {
			err = d.maps.Config.Set(cfg) // with defaults for all that is zero
		}
		if err != nil {
			return err
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: raw.all})
	if err != nil {
		return explainLoad(err)
	}
	d.programs = programs{}
	for name := range spec.Programs {
		d.programs[name] = coll.DetachProgram(name)
	}
	coll.Close()
	if err := raw.stage(d.root); err != nil {
		return errors.Join(err, raw.discard(d.root))
	}
	if err := d.switchOver(o, raw, running); err != nil {
		return errors.Join(err, raw.discard(d.root))
	}
	d.log.Info("took over", "sites", len(running.sites), "gone", len(running.dead))
	return running.bury()
}

// switchOver puts the programs into the sites and the maps into place, or leaves
// both as they were. A kill in between leaves sites of both kinds, and entries in
// the maps of both; the next start finds the latter through what runs.
func (d *Datapath) switchOver(o Options, raw *mapFiles, running *takeover) error {
	fault := o.inject.fault
	if fault == nil {
		fault = func(string) error { return nil }
	}
	if err := fault("carry over"); err != nil {
		return err
	}
	if err := raw.follow(true); err != nil {
		return err
	}
	follow := func() error { return raw.follow(false) }
	if err := running.swap(d.programs, fault, follow); err != nil {
		return errors.Join(err, raw.giveBack())
	}
	err := follow()
	if err == nil {
		err = fault("commit")
	}
	if err == nil {
		err = raw.commit(d.root)
	}
	if err != nil {
		return errors.Join(err, running.back(len(running.sites)), raw.giveBack())
	}
	return nil
}

// Maps returns the maps, valid until Close.
func (d *Datapath) Maps() *maps.Set { return d.maps }

// SetConfig changes what the programs read at run time, at once and for all.
func (d *Datapath) SetConfig(c maps.Config) error { return d.maps.Config.Set(c) }

// Program returns the program of a hook, for tests that run it by hand.
func (d *Datapath) Program(h reason.Hook) *ebpf.Program { return d.programs.of(h) }

// Close closes file descriptors. Pins stay, the kernel goes on forwarding.
func (d *Datapath) Close() error {
	errs := []error{d.maps.Close()}
	for _, p := range d.programs {
		errs = append(errs, p.Close())
	}
	return errors.Join(errs...)
}

// loadSpec parses the embedded object and applies sizes and capabilities.
func loadSpec(o Options, has features) (*ebpf.CollectionSpec, error) {
	code := object.Bytes()
	if o.inject.object != nil {
		code = o.inject.object
	}
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(code))
	if err != nil {
		return nil, err
	}
	if o.inject.object != nil {
		if err := addMissing(spec); err != nil {
			return nil, err
		}
	}
	if o.inject.patch != nil {
		o.inject.patch(spec)
	}
	for name, n := range o.Sizes.Entries() {
		if n <= 0 || n > 1<<28 {
			return nil, fmt.Errorf("map %s: capacity %d is not within 1 to 2^28", name, n)
		}
		spec.Maps[name].MaxEntries = uint32(n)
	}
	shrinkUnused(o, spec)
	if err := socketPrograms(o, spec, has.noSockets); err != nil {
		return nil, err
	}
	for name, v := range map[string]any{
		object.DatapathVarEnableIpv4: o.IPv4,
		object.DatapathVarEnableIpv6: o.IPv6,
		object.DatapathVarFibFlags:   has.fibFlags(),
	} {
		if err := spec.Variables[name].Set(v); err != nil {
			return nil, fmt.Errorf("constant %s: %w", name, err)
		}
	}
	return spec, nil
}

// addMissing gives the programs of another release the maps that they lack: the
// agent around them is of this one.
func addMissing(spec *ebpf.CollectionSpec) error {
	own, err := object.LoadDatapath()
	if err != nil {
		return err
	}
	for _, name := range maps.Names() {
		if spec.Maps[name] == nil {
			spec.Maps[name] = own.Maps[name]
		}
	}
	return nil
}

// serviceMaps are the maps that only services use.
func serviceMaps() []string {
	return []string{
		object.DatapathMapWeftSvc4, object.DatapathMapWeftSvc6, object.DatapathMapWeftSvcset, object.DatapathMapWeftBe,
		object.DatapathMapWeftAffinity, object.DatapathMapWeftSk, object.DatapathMapWeftSrc4, object.DatapathMapWeftSrc6,
	}
}

// shrinkUnused makes the maps that are allocated in full as small as they get
// where their family, or masquerade, or services are off.
func shrinkUnused(o Options, spec *ebpf.CollectionSpec) {
	for name, m := range spec.Maps {
		off := (strings.HasSuffix(name, "4") && !o.IPv4) || (strings.HasSuffix(name, "6") && !o.IPv6)
		off = off || (strings.HasPrefix(name, "weft_nat") && !o.Masquerade && !o.Outside)
		off = off || (!o.Outside && (strings.HasPrefix(name, "weft_lbct") || strings.HasPrefix(name, "weft_natc")))
		if off && m.Type == ebpf.LRUHash {
			m.MaxEntries = 1
		}
		if slices.Contains(serviceMaps(), name) && !o.SocketLB.Enabled && !o.Outside {
			m.MaxEntries = 1
		}
		if name == object.DatapathMapWeftMaglev && !o.Outside {
			m.MaxEntries = 1
		}
	}
}

// explainLoad adds the verifier's last words, which name the instruction.
func explainLoad(err error) error {
	if ve, ok := errors.AsType[*ebpf.VerifierError](err); ok {
		log := strings.Join(ve.Log[max(0, len(ve.Log)-5):], "; ")
		return fmt.Errorf("the kernel refused a program, which is a defect of Weft or a kernel older than %s: %w: %s", MinimumKernel, err, log)
	}
	return fmt.Errorf("load programs: %w", err)
}
