// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	agentDir = "/run/bench" // settings, credentials, CNI directories
	runDir   = "/run/weft"
	// settleFor is how long the agent is left alone before its memory is read:
	// what its start or the pods' left behind is collected by then.
	settleFor   = 8 * time.Second
	rssReadings = 10
)

// memory starts the agent as a node that was proven before and whose API server
// is away: ADD and DEL work then, and nothing else is at work.
func memory(f figures, pods []pod, program string) (err error) {
	program, err = filepath.Abs(program)
	if err != nil {
		return err
	}
	if _, err := os.Stat(program); err != nil {
		return fmt.Errorf("%w: run make build", err)
	}
	if err := agentFiles(); err != nil {
		return err
	}
	var log bytes.Buffer
	cmd := exec.Command(program, "--node-name", nodeName, "--config-dir", agentDir+"/config", "--run-dir", runDir,
		"--bpf-root", bpffs+"/weft", "--cni-conf-dir", agentDir+"/net.d", "--cni-bin-dir", agentDir+"/bin",
		"--health-netns", "/run/netns/weft-health", "--credentials-dir", agentDir+"/credentials")
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed: it says so
		if err != nil {
			err = fmt.Errorf("%w; the agent said:\n%s", err, tail(log.String()))
		}
	}()
	if err := awaitAgent(context.Background()); err != nil {
		return err
	}
	if f["agent_rss_mib_idle"], err = rss(cmd.Process.Pid); err != nil {
		return err
	}
	add := func(p pod) error {
		err := ask(p.request("ADD"))
		return err
	}
	if _, err := oneByOne(pods, add); err != nil {
		return err
	}
	f[fmt.Sprintf("agent_rss_mib_%d_pods", len(pods))], err = rss(cmd.Process.Pid)
	return err
}

func tail(s string) string { return s[max(0, len(s)-3000):] }

// agentFiles writes what an agent finds on its node.
func agentFiles() error {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	node, err := json.Marshal(map[string]any{
		"bootID": strings.TrimSpace(string(boot)), "node": nodeName, "uid": "bench",
		"addrs": []netip.Addr{netip.MustParseAddr(nodeAddr)}, "podCIDRs": ranges, "provenAt": time.Now(),
	})
	if err != nil {
		return err
	}
	ca, err := certificate()
	if err != nil {
		return err
	}
	files := map[string][]byte{
		runDir + "/node.json":               node,
		agentDir + "/config/enable-ipv6":    []byte("true"),
		agentDir + "/config/k8s-api-server": []byte("https://127.0.0.1:1"), // nobody listens
		agentDir + "/credentials/token":     []byte("bench"),
		agentDir + "/credentials/ca.crt":    ca,
		agentDir + "/net.d/README":          nil,
		agentDir + "/bin/README":            nil,
		agentDir + "/credentials/namespace": []byte("kube-system"),
	}
	for path, content := range files {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// certificate makes a certificate authority that signs nothing.
func certificate() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

// rss returns the resident memory of a process in MiB, files mapped included:
// the median of some readings, once the process was left alone for a while.
func rss(pid int) (float64, error) {
	timer := time.NewTimer(settleFor)
	<-timer.C
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	var readings []float64
	for range rssReadings {
		<-tick.C
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return 0, err
		}
		kib, err := field(string(b), "VmRSS:")
		if err != nil {
			return 0, err
		}
		readings = append(readings, float64(kib)/1024)
	}
	slices.Sort(readings)
	return readings[len(readings)/2], nil
}

func field(status, name string) (int, error) {
	for line := range strings.Lines(status) {
		if v, ok := strings.CutPrefix(line, name); ok {
			return strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(v), "kB")))
		}
	}
	return 0, errors.New("no " + name)
}
