// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// errNoFunc is wrapped where a kernel has no such function.
var errNoFunc = errors.New("the kernel has no such function")

// btfHeader is struct btf_header of linux/btf.h.
type btfHeader struct {
	Magic          uint16
	Version, Flags uint8
	HdrLen         uint32
	TypeOff        uint32
	TypeLen        uint32
	StrOff         uint32
	StrLen         uint32
}

// btfType is struct btf_type.
type btfType struct{ NameOff, Info, Size uint32 }

// btfFunc is BTF_KIND_FUNC.
const btfFunc = 12

// kernelFunc finds the BTF id of a kernel's function by reading through the
// types once. cilium/ebpf's btf finds it too, and holds 14 MiB meanwhile: half as
// much as the agent otherwise needs, for one number.
func kernelFunc(path, name string) (uint32, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, fmt.Errorf("types of the kernel: %w", err)
	}
	defer f.Close()
	var h btfHeader
	if err := binary.Read(f, binary.NativeEndian, &h); err != nil {
		return 0, fmt.Errorf("types of the kernel: %w", err)
	}
	if h.Magic != 0xeb9f || h.Version != 1 {
		return 0, fmt.Errorf("types of the kernel: magic %#x and version %d are not known", h.Magic, h.Version)
	}
	at, err := findString(io.NewSectionReader(f, int64(h.HdrLen+h.StrOff), int64(h.StrLen)), name)
	if err != nil {
		return 0, err
	}
	return findFunc(io.NewSectionReader(f, int64(h.HdrLen+h.TypeOff), int64(h.TypeLen)), at)
}

// findString returns the offset of a string among those that NUL ends.
func findString(r io.Reader, name string) (uint32, error) {
	buf := bufio.NewReaderSize(r, 1<<16)
	for at := 0; ; {
		s, err := buf.ReadSlice(0)
		if errors.Is(err, io.EOF) {
			return 0, fmt.Errorf("%s: %w", name, errNoFunc)
		}
		if err != nil {
			return 0, fmt.Errorf("types of the kernel: names: %w", err)
		}
		if string(s[:len(s)-1]) == name {
			return uint32(at), nil
		}
		at += len(s)
	}
}

// findFunc returns the id of the function whose name is at the offset.
func findFunc(r io.Reader, name uint32) (uint32, error) {
	buf := bufio.NewReaderSize(r, 1<<16)
	var raw [12]byte
	for id := uint32(1); ; id++ {
		_, err := io.ReadFull(buf, raw[:])
		if errors.Is(err, io.EOF) {
			return 0, errNoFunc
		}
		if err != nil {
			return 0, fmt.Errorf("types of the kernel: %w", err)
		}
		t := btfType{binary.NativeEndian.Uint32(raw[:]), binary.NativeEndian.Uint32(raw[4:]), 0}
		kind := t.Info >> 24 & 0x1f
		if kind == btfFunc && t.NameOff == name {
			return id, nil
		}
		extra, err := t.extra(kind)
		if err != nil {
			return 0, err
		}
		if _, err := buf.Discard(extra); err != nil {
			return 0, fmt.Errorf("types of the kernel: %w", err)
		}
	}
}

// extra is how many bytes follow a type, by the table of
// Documentation/bpf/btf.rst.
func (t btfType) extra(kind uint32) (int, error) {
	n := int(t.Info & 0xffff)
	switch kind {
	case 2, 7, 8, 9, 10, 11, btfFunc, 16, 18: // pointers, forwards, typedefs, qualifiers, functions, floats, type tags
		return 0, nil
	case 1, 14, 17: // integers, variables, declaration tags
		return 4, nil
	case 3: // arrays
		return 12, nil
	case 4, 5, 15, 19: // structures, unions, sections, enumerations of 64 bits
		return 12 * n, nil
	case 6, 13: // enumerations, prototypes
		return 8 * n, nil
	}
	return 0, fmt.Errorf("types of the kernel: kind %d is not known", kind)
}
