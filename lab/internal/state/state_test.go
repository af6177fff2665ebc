// SPDX-License-Identifier: Apache-2.0

package state

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Guards against down acting on half a line: what it names was not made.
func TestTornJournalEntryIsIgnored(t *testing.T) {
	d := Dir(t.TempDir())
	for _, e := range []Entry{{KindCgroup, "/sys/fs/cgroup/a b"}, {KindNetns, "/run/netns/t-n1"}} {
		if err := d.Journal(e); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.OpenFile(d.Path("journal"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(f, "netns /run/net")
	f.Close()
	got, err := d.Entries()
	if err != nil || len(got) != 2 || got[0].Value != "/run/netns/t-n1" || got[1].Value != "/sys/fs/cgroup/a b" {
		t.Errorf("entries %v %v, want the last first", got, err)
	}
}

// Guards against two processes that change one lab at once, also when the
// first removes the file while the second waits for it.
func TestLockExcludes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.lock")
	first, err := Lock(t.Context(), path, time.Second, nil)
	if err != nil {
		t.Fatal(err)
	}
	told := ""
	_, err = Lock(t.Context(), path, 300*time.Millisecond, func(h string) { told = h })
	if err == nil || !strings.Contains(told, fmt.Sprintf("pid %d", os.Getpid())) {
		t.Fatalf("second lock: %v, told of %q", err, told)
	}
	got := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	go func() {
		l, err := Lock(ctx, path, 10*time.Second, nil)
		if err == nil {
			err = l.Remove()
		}
		got <- err
	}()
	if err := first.Remove(); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the lock's file is left")
	}
}

func TestRecordSurvivesAndForgetsHosts(t *testing.T) {
	d := Dir(t.TempDir())
	if _, err := d.Load(); err == nil || !strings.Contains(err.Error(), "is not up") {
		t.Errorf("load of nothing: %v", err)
	}
	l := &Lab{Cuts: []Cut{{A: "n1", B: "n2"}, {A: "n2", B: "n3"}}, Links: map[string]Impairments{"n9": {Loss: 1}}}
	l.Options.Name = "x"
	if err := d.Save(l); err != nil {
		t.Fatal(err)
	}
	back, err := d.Load()
	if err != nil || len(back.Cuts) != 2 || back.Links["n9"].Loss != 1 {
		t.Fatalf("loaded %+v %v", back, err)
	}
	back.RemoveHost("n1")
	if len(back.Cuts) != 1 || back.Cuts[0].A != "n2" {
		t.Errorf("cuts of a removed host: %v", back.Cuts)
	}
}
