// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf"

	"github.com/weft-net/weft/internal/datapath/object"
	"github.com/weft-net/weft/internal/datapath/selftest"
)

// provenDir holds an empty directory for the programs that passed the self-test.
// A bpffs ends with the boot, and so does what was proven about its kernel.
const provenDir = "proven"

// prove runs the programs on built-in packets, unless they passed already since
// this node booted: a restart with the same programs does not wait for it.
func prove(o Options, spec *ebpf.CollectionSpec) error {
	if o.inject.untested {
		return nil
	}
	dir := filepath.Join(o.Root, provenDir)
	mark := filepath.Join(dir, digest(o, spec))
	if _, err := os.Stat(mark); err == nil && o.inject.patch == nil {
		return nil
	}
	start := time.Now()
	err := selftest.Run(spec, selftest.Options{IPv4: o.IPv4, IPv6: o.IPv6, Masquerade: o.Masquerade})
	if _, ok := errors.AsType[*ebpf.VerifierError](err); ok {
		return explainLoad(err)
	}
	if err != nil {
		return fmt.Errorf("self-test: %w; nothing was switched: what ran before goes on. This is a defect of Weft, "+
			"or of this kernel: go back to the release that ran, and report it", err)
	}
	o.Log.Info("programs passed the self-test", "took", time.Since(start).Round(time.Millisecond))
	// Of others, which a later start would have to prove anew, nothing is kept.
	if err := os.RemoveAll(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.MkdirAll(mark, 0o700)
}

// digest names what the self-test proved: the object, and what is fixed at load.
func digest(o Options, spec *ebpf.CollectionSpec) string {
	code := object.Bytes()
	if o.inject.object != nil {
		code = o.inject.object
	}
	h := sha256.New()
	_, _ = h.Write(code) // never fails
	for _, name := range []string{object.DatapathVarEnableIpv4, object.DatapathVarEnableIpv6, object.DatapathVarFibFlags} {
		_, _ = fmt.Fprintf(h, "\n%s %v", name, spec.Variables[name].Value)
	}
	_, _ = fmt.Fprintf(h, "\nmasquerade %t\nsockets %t\noutside %t", o.Masquerade, o.SocketLB.Enabled, o.Outside)
	return hex.EncodeToString(h.Sum(nil)[:12])
}
