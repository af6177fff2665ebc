// SPDX-License-Identifier: Apache-2.0

package cni_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/cni"
)

// What one end writes the other must read, and nothing else may follow.
func TestMessageRoundTrip(t *testing.T) {
	want := cni.Request{Command: "ADD", ContainerID: "c", Args: strings.Repeat("x", 100_000), Valid: []cni.Attachment{{ContainerID: "a", IfName: "b"}}}
	var buf bytes.Buffer
	if err := cni.WriteMessage(&buf, want); err != nil {
		t.Fatal(err)
	}
	var got cni.Request
	if err := cni.ReadMessage(&buf, &got); err != nil || !reflect.DeepEqual(got, want) || buf.Len() != 0 {
		t.Errorf("got %v, %v, %d bytes left", got, err, buf.Len())
	}
}

// A length that lies must neither allocate a gigabyte nor hang.
func TestMessageLengths(t *testing.T) {
	for name, b := range map[string][]byte{
		"empty":    nil,
		"cut head": {0, 0},
		"cut body": {0, 0, 0, 9, '{'},
		"huge":     {0xff, 0xff, 0xff, 0xff},
		"too long": binary.BigEndian.AppendUint32(nil, cni.MaxMessage+1),
		"no JSON":  {0, 0, 0, 1, 'x'},
	} {
		var r cni.Request
		if err := cni.ReadMessage(bytes.NewReader(b), &r); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if err := cni.WriteMessage(&bytes.Buffer{}, strings.Repeat("x", cni.MaxMessage)); err == nil {
		t.Error("wrote what nobody would read")
	}
}

func FuzzReadMessage(f *testing.F) {
	var buf bytes.Buffer
	if err := cni.WriteMessage(&buf, cni.Request{Command: "DEL", ContainerID: "x", IfName: "eth0"}); err != nil {
		f.Fatal(err)
	}
	f.Add(buf.Bytes())
	f.Add([]byte{0, 0, 0, 2, '{', '}'})
	f.Fuzz(func(t *testing.T, b []byte) {
		var r cni.Request
		if err := cni.ReadMessage(bytes.NewReader(b), &r); err != nil {
			return
		}
		var again bytes.Buffer
		if err := cni.WriteMessage(&again, r); err != nil {
			t.Fatalf("was read, but cannot be written: %v", err)
		}
		var r2 cni.Request
		if err := cni.ReadMessage(&again, &r2); err != nil || !reflect.DeepEqual(r, r2) {
			t.Fatalf("%+v became %+v, %v", r, r2, err)
		}
	})
}

func TestParseArgs(t *testing.T) {
	for args, want := range map[string]cni.Pod{
		"K8S_POD_NAMESPACE=ns;K8S_POD_NAME=p": {Namespace: "ns", Name: "p"},
		"IgnoreUnknown=1;K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=dns.0;K8S_POD_INFRA_CONTAINER_ID=c;K8S_POD_UID=u-1;": {Namespace: "kube-system", Name: "dns.0", UID: "u-1"},
	} {
		if got, err := cni.ParseArgs(args); err != nil || got != want {
			t.Errorf("%s: got %+v, %v", args, got, err)
		}
	}
	for args, want := range map[string]string{
		"":                                      "K8S_POD_NAMESPACE or K8S_POD_NAME is missing",
		"K8S_POD_NAMESPACE=ns":                  "is missing",
		"K8S_POD_NAMESPACE=ns;K8S_POD_NAME":     `"K8S_POD_NAME" is not KEY=VALUE`,
		"K8S_POD_NAMESPACE=a/b;K8S_POD_NAME=p":  `"a/b" is not a name`,
		"K8S_POD_NAMESPACE=ns;K8S_POD_NAME=p q": `"p q" is not a name`,
	} {
		if _, err := cni.ParseArgs(args); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", args, err, want)
		}
	}
}

func FuzzParseArgs(f *testing.F) {
	f.Add("IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=p")
	f.Add("=;=;")
	f.Fuzz(func(t *testing.T, args string) {
		p, err := cni.ParseArgs(args)
		if err != nil {
			return
		}
		if p.Namespace == "" || p.Name == "" || strings.ContainsAny(p.Namespace+p.Name+p.UID, " /\n\x00") {
			t.Fatalf("took %+v", p)
		}
		again, err := cni.ParseArgs("K8S_POD_NAMESPACE=" + p.Namespace + ";K8S_POD_NAME=" + p.Name + ";K8S_POD_UID=" + p.UID)
		if err != nil || again != p {
			t.Fatalf("%+v became %+v, %v", p, again, err)
		}
	})
}

// A queue must survive what a node does to files: halves, strangers, repeats.
func TestQueue(t *testing.T) {
	q := cni.Queue{Dir: filepath.Join(t.TempDir(), "deletes")}
	if got, err := q.List(); err != nil || len(got) != 0 {
		t.Errorf("no directory: %v, %v", got, err)
	}
	del := cni.Request{Command: "DEL", ContainerID: "../../etc/passwd", IfName: "eth0", Netns: "/run/netns/x"}
	for range 2 {
		if err := q.Put(del); err != nil {
			t.Fatal(err)
		}
	}
	a := cni.Attachment{ContainerID: del.ContainerID, IfName: del.IfName}
	if !q.Has(a) || q.Has(cni.Attachment{ContainerID: "other", IfName: "eth0"}) {
		t.Error("Has")
	}
	for name, content := range map[string]string{
		".new-123": "{", "README": "x", "broken.json": "{", "add.json": `{"command":"ADD","containerID":"c","ifName":"eth0"}`, "nobody.json": `{"command":"DEL"}`,
	} {
		if err := os.WriteFile(filepath.Join(q.Dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := q.List()
	if err != nil {
		t.Fatal(err)
	}
	good, bad := 0, 0
	for _, e := range got {
		if e.Err != nil {
			bad++
		} else if good++; !reflect.DeepEqual(e.Request, del) {
			t.Errorf("got %+v", e.Request)
		}
	}
	if good != 1 || bad != 3 {
		t.Errorf("%d good, %d bad: %+v", good, bad, got)
	}
	for range 2 {
		if err := q.Remove(a); err != nil {
			t.Fatal(err)
		}
	}
	if q.Has(a) {
		t.Error("is there after Remove")
	}
}

// A runtime must find the version that has STATUS and GC, one that does not read
// cniVersions a version that it knows, and portmap its port mappings; but no
// version that the portmap on the node does not speak.
func TestConflist(t *testing.T) {
	for _, c := range []struct {
		portMap []string
		want    []string
	}{
		{nil, cni.SupportedVersions()},
		{[]string{"0.4.0", "1.0.0"}, []string{"0.4.0", "1.0.0"}},
		{[]string{"1.0.0", "1.1.0"}, []string{"1.0.0", "1.1.0"}},
	} {
		b, err := cni.Conflist(c.portMap)
		if err != nil {
			t.Fatal(err)
		}
		var list struct {
			CNIVersion  string   `json:"cniVersion"`
			CNIVersions []string `json:"cniVersions"`
			Name        string   `json:"name"`
			Plugins     []struct {
				Type         string          `json:"type"`
				Capabilities map[string]bool `json:"capabilities"`
			} `json:"plugins"`
		}
		if err := json.Unmarshal(b, &list); err != nil {
			t.Fatal(err)
		}
		if list.CNIVersion != "1.0.0" || !slices.Equal(list.CNIVersions, c.want) {
			t.Errorf("versions %s, %v, want %v", list.CNIVersion, list.CNIVersions, c.want)
		}
		if list.Name != "weft" || list.Plugins[0].Type != "weft-cni" {
			t.Errorf("got %+v", list)
		}
		chained := len(list.Plugins) == 2 && list.Plugins[1].Type == "portmap" && list.Plugins[1].Capabilities["portMappings"]
		if chained != (c.portMap != nil) {
			t.Errorf("portmap %v: %s", c.portMap, b)
		}
	}
}
