// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"testing"
)

// Fault: an archive that the kernel takes for damaged, so that it finds no init.
func TestArchive(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "tool")
	if err := os.WriteFile(file, []byte("abcde"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := &initrd{files: map[string]string{"/usr/sbin/tool": file}, data: map[string][]byte{"/plan.json": []byte("{}")}}
	name := filepath.Join(dir, "initrd")
	if err := r.write(name); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	order := []string{}
	for at := 0; at+110 <= len(raw); {
		number := func(field int) int {
			n := 0
			for _, c := range raw[at+6+8*field : at+14+8*field] {
				d := int(c - '0')
				if c >= 'a' {
					d = int(c-'a') + 10
				}
				n = n*16 + d
			}
			return n
		}
		if string(raw[at:at+6]) != "070701" {
			t.Fatalf("no header at %d", at)
		}
		size, length := number(6), number(11)
		entry := string(raw[at+110 : at+110+length-1])
		data := (at + 110 + length + 3) &^ 3
		got[entry] = string(raw[data : data+size])
		order = append(order, entry)
		at = (data + size + 3) &^ 3
	}
	if got["usr/sbin/tool"] != "abcde" || got["plan.json"] != "{}" || order[len(order)-1] != "TRAILER!!!" {
		t.Errorf("entries %v", order)
	}
	seen := map[string]bool{".": true}
	for _, e := range order[:len(order)-1] {
		if !seen[filepath.Dir(e)] {
			t.Errorf("%s comes before its folder", e)
		}
		seen[e] = true
	}
}
